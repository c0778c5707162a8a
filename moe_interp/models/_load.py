"""load_model: from a name, a folder or a loaded model to a checked MoEModel."""

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path

import torch
import transformers
from huggingface_hub import constants
from nnsight.modeling import huggingface
from nnsight.modeling.transformers import TransformersModel
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.models.auto import modeling_auto

from moe_interp import __version__
from moe_interp.errors import MissingPackageError, UnsupportedArchitectureError
from moe_interp.models._model import MoEModel
from moe_interp.models._registry import SEVERAL_MODELS
from moe_interp.models._selfcheck import check_access
from moe_interp.models._sites import find_sites
from moe_interp.models._support import known_families
from moe_interp.models._versions import check_versions
from moe_interp.remote import Connection, Server

_ORGANISM = "organism:"
# How transformers names the classes with a language-model head; own code may differ.
_LANGUAGE_MODELS = ("ForCausalLM", "ForConditionalGeneration", "LMHeadModel")
# The tables of model types, and the class that builds what they name. A composite model whose
# text part is a language model of its own is loaded as that.
_LOADERS = (
    (modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, AutoModelForCausalLM),
    (modeling_auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES, AutoModelForImageTextToText),
    (modeling_auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES, AutoModelForSeq2SeqLM),
)


def load_model(
    source: str | Path | PreTrainedModel,
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    check: bool = True,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    attn_implementation: str | None = None,
    experts_implementation: str | None = None,
    revision: str | None = None,
    trust_remote_code: bool = False,
    remote: bool | str | Server = False,
) -> MoEModel:
    """Load a Mixture-of-Experts model whose routers and experts can be read and edited.

    Args:
        source: A hub id, a local Hugging Face folder, ``"organism:NAME"`` for a packaged
            organism, or a Hugging Face model that is already loaded.
        tokenizer: The tokenizer; needed for a loaded model, read from `source` otherwise.
        check: Whether to run the self-check, a few tiny forwards that prove that what is read is
            what the model computes.
        device: Where to put the model; ``"auto"`` spreads it over the devices there are, which
            needs accelerate. A GPU if there is one, by default. A loaded model stays where it is.
        dtype: Floating-point format; the checkpoint's own by default, float32 for organisms.
        attn_implementation: As in transformers.
        experts_implementation: As in transformers: ``"eager"``, ``"batched_mm"``, ``"grouped_mm"``.
        revision: Branch, tag or commit on the hub.
        trust_remote_code: Whether to run model code that comes with the checkpoint.
        remote: Whether the model runs on an NDIF server: True for the one that nnsight is
            configured with, an address, or a `Server`. No weights are loaded then, and everything
            that is run with the model runs there.

    Returns:
        The model.

    Raises:
        NotMoEError: If the model has no routed experts.
        UnsupportedArchitectureError: If its experts cannot be read exactly.
        RoutingMismatchError: If the self-check finds that they are not.
        UnsupportedVersionError: If nnsight or transformers is of a release that was not tested.
        FileNotFoundError: If there is no such model, or no tokenizer beside it.
        MissingPackageError: If `device` is ``"auto"`` and accelerate is not installed.
        RemoteRunError: If the server does not run the self-check.
        ValueError: If a loaded model comes without a tokenizer, there is no such device or format,
            or what is asked for is no business of a server's client.
        TypeError: If `source` is something else.
    """
    check_versions()
    if remote is not False:
        server = Server.of(remote)
        _refuse_for_server(
            source,
            {"device": device, "dtype": dtype, "experts_implementation": experts_implementation},
        )
        code = {"revision": revision, "trust_remote_code": trust_remote_code}
        return _load_remote(source, server, tokenizer, check, attn_implementation, code)
    if isinstance(source, PreTrainedModel):
        return _wrap(source, tokenizer, str(source.name_or_path or type(source).__name__), check)
    if not isinstance(source, str | Path):
        raise TypeError(
            f"`source` must be a name, a folder or a Hugging Face model, got "
            f"{type(source).__name__!r}. A compiled or wrapped model hides what its layers "
            "compute: give the model itself."
        )
    device, dtype = _device(device), _dtype(dtype)
    name = str(source)
    place = _organism_folder(name) if name.startswith(_ORGANISM) else name
    remote = {"revision": revision, "trust_remote_code": trust_remote_code}
    loader = _loader(_config(name, place, remote), trust_remote_code)
    if dtype is None and name.startswith(_ORGANISM):
        dtype = torch.float32
    options = {
        "dtype": dtype,
        "attn_implementation": attn_implementation,
        "experts_implementation": experts_implementation,
        "device_map": "auto" if device == "auto" else None,
    }
    tokenizer = tokenizer or _tokenizer(name, place, remote)
    given = {key: value for key, value in options.items() if value is not None}
    model = loader.from_pretrained(place, **remote, **given).eval()
    if device != "auto":
        model = model.to(device)
    return _wrap(model, tokenizer, name, check, _card(place))


def _refuse_for_server(source: object, given: dict[str, object]) -> None:
    """Refuse what only makes sense for weights that are here."""
    if not isinstance(source, str) or source.startswith(_ORGANISM) or Path(source).exists():
        shown = source if isinstance(source, str | Path) else type(source).__name__
        raise ValueError(
            f"A server runs models of the Hugging Face Hub, named by their hub ids, got "
            f"{str(shown)!r}. Leave `remote` out to run it here."
        )
    for name, value in given.items():
        if value is not None:
            raise ValueError(
                f"`{name}` is set where the weights are loaded, and with `remote` that is the "
                f"server, got {value!r}. Leave it out."
            )


def _load_remote(
    name: str,
    server: Server,
    tokenizer: PreTrainedTokenizerBase | None,
    check: bool,
    attn_implementation: str | None,
    code: dict[str, object],
) -> MoEModel:
    """Build a model without weights, whose blocks run on a server."""
    _loader(_config(name, name, code), code["trust_remote_code"])
    tokenizer = tokenizer or _tokenizer(name, name, code)
    options = {"attn_implementation": attn_implementation, **code}
    given = {key: value for key, value in options.items() if value}
    wrapped = TransformersModel(name, task="text-generation", tokenizer=tokenizer, **given)
    if constants.HF_HUB_OFFLINE:
        # nnsight asks the hub how the name is spelled there, even where that cannot be.
        huggingface._ID_CACHE.setdefault(name, name)
    connection = Connection(server, wrapped.to_model_key(), __version__)
    sites = find_sites(wrapped._module)
    loaded = MoEModel(wrapped, sites, source=name, connection=connection)
    if check:
        _check(loaded)
    return loaded


def _check(model: MoEModel) -> None:
    layers = (*model.encoder_moe.values(), *model.moe.values())
    exact = check_access(model.nnsight, model.sites, layers, backend=model.backend())
    model.remember_exact_sums(exact)


def _wrap(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | None,
    source: str,
    check: bool,
    card: dict[str, object] | None = None,
) -> MoEModel:
    if tokenizer is None:
        raise ValueError(
            "A loaded model needs its tokenizer: load_model(model, tokenizer=tokenizer)."
        )
    _refuse_several(model.config.model_type)
    sites = find_sites(model)
    if not (model.can_generate() and type(model).__name__.endswith(_LANGUAGE_MODELS)):
        raise UnsupportedArchitectureError(
            f"{type(model).__name__!r} is no causal language model. Load the class with the "
            "language-model head."
        )
    with _quiet_about_the_task():
        wrapped = TransformersModel(model, tokenizer=tokenizer, task="text-generation")
    loaded = MoEModel(wrapped, sites, source=source, card=card)
    if check:
        _check(loaded)
    return loaded


@contextmanager
def _quiet_about_the_task() -> Iterator[None]:
    """Multimodal models are run on text here, which their entry in transformers does not name."""
    logger = logging.getLogger("transformers.pipelines.base")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)


def _organism_folder(name: str) -> str:
    folder = files("moe_interp") / "organism" / "weights" / name.removeprefix(_ORGANISM)
    if not (folder / "config.json").is_file():
        weights = Path(str(files("moe_interp") / "organism" / "weights"))
        shipped = sorted(path.parent.name for path in weights.glob("*/config.json"))
        raise FileNotFoundError(
            f"There is no organism {name.removeprefix(_ORGANISM)!r}. Shipped: "
            f"{', '.join(shipped) or 'none'}."
        )
    return str(folder)


def _config(name: str, place: str, remote: dict[str, object]) -> PretrainedConfig:
    if Path(place).is_dir() and not (Path(place) / "config.json").is_file():
        raise FileNotFoundError(
            f"The folder {name!r} holds no config.json. Give a Hugging Face checkpoint's folder."
        )
    try:
        return AutoConfig.from_pretrained(place, **remote)
    except OSError as error:
        raise FileNotFoundError(
            f"There is no model {name!r}: no such folder here, and the Hugging Face Hub does not "
            f"give it ({str(error).splitlines()[0]})"
        ) from error
    except ValueError as error:
        raise UnsupportedArchitectureError(
            f"The configuration of {name!r} is of no type that transformers knows "
            f"({str(error).splitlines()[0]}). Tested families: {known_families()}."
        ) from error


def _tokenizer(name: str, place: str, remote: dict[str, object]) -> PreTrainedTokenizerBase:
    try:
        return AutoTokenizer.from_pretrained(place, **remote)
    except (OSError, ValueError) as error:
        raise FileNotFoundError(
            f"{name!r} holds no tokenizer that can be read ({str(error).splitlines()[0]}) "
            "Save one beside the weights, or pass `tokenizer=`."
        ) from error


def _loader(config: PretrainedConfig, trust_remote_code: bool) -> type:
    """The class that loads a checkpoint, once its bare structure was not refused.

    Nothing of the weights is read or downloaded before that.
    """
    _refuse_several(config.model_type)
    if trust_remote_code and hasattr(config, "auto_map"):
        loader = AutoModelForCausalLM
    else:
        loader = next((one for types, one in _LOADERS if config.model_type in types), None)
        named = getattr(transformers, (config.architectures or [""])[0], None)
        if loader is None and getattr(named, "__name__", "").endswith(_LANGUAGE_MODELS):
            loader = named
    if loader is None:
        raise UnsupportedArchitectureError(
            f"A model of type {config.model_type!r} is no causal language model. "
            f"Tested families: {known_families()}."
        )
    with torch.device("meta"):
        if loader in [one for _, one in _LOADERS]:
            skeleton = loader.from_config(config, trust_remote_code=trust_remote_code)
        else:
            skeleton = loader(config)
    find_sites(skeleton)
    return loader


def _refuse_several(model_type: str) -> None:
    if model_type in SEVERAL_MODELS:
        raise UnsupportedArchitectureError(
            f"A model of type {model_type!r} is several language models: "
            f"{SEVERAL_MODELS[model_type]}."
        )


def _device(device: str | torch.device | None) -> str | torch.device:
    if device is None:
        return "cuda" if torch.cuda.is_available() else "cpu"
    if device == "auto":
        if find_spec("accelerate") is None:
            raise MissingPackageError(
                "`device='auto'` needs accelerate. Install it: pip install 'moe-interp[devices]'."
            )
        return "auto"
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, ValueError) as error:
        # The first line says what is wrong; those after it are torch's advice on debugging.
        raise ValueError(
            f"`device` must be one that torch has here, such as 'cpu' or 'cuda:0', or 'auto'; got "
            f"{str(device)!r}: {str(error).splitlines()[0]}"
        ) from error
    return device


def _dtype(dtype: str | torch.dtype | None) -> str | torch.dtype | None:
    if dtype is None or dtype == "auto":
        return dtype
    found = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if not isinstance(found, torch.dtype) or not found.is_floating_point:
        raise ValueError(
            f"`dtype` must be a floating-point format such as 'float32', 'bfloat16' or 'float16', "
            f"or 'auto' for the checkpoint's own; got {str(dtype)!r}."
        )
    return found


def _card(place: str) -> dict[str, object] | None:
    path = Path(place) / "card.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
