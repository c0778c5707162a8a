"""load_model: from a name, a folder or a loaded model to a checked MoEModel."""

import json
from importlib.resources import files
from pathlib import Path

import torch
from nnsight.modeling.transformers import TransformersModel
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from moe_interp.errors import UnsupportedArchitectureError
from moe_interp.models._model import MoEModel
from moe_interp.models._registry import SUPPORTED
from moe_interp.models._selfcheck import check_access
from moe_interp.models._sites import find_sites
from moe_interp.models._versions import check_versions

_ORGANISM = "organism:"


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
) -> MoEModel:
    """Load a Mixture-of-Experts model whose routers and experts can be read and edited.

    Args:
        source: A hub id, a local Hugging Face folder, ``"organism:NAME"`` for a packaged
            organism, or a Hugging Face model that is already loaded.
        tokenizer: The tokenizer; needed for a loaded model, read from `source` otherwise.
        check: Whether to run the self-check, a few tiny forwards that prove that what is read is
            what the model computes.
        device: Where to put the model; ``"auto"`` spreads it over the devices there are. A GPU
            if there is one, by default. A loaded model stays where it is.
        dtype: Floating-point format; the checkpoint's own by default, float32 for organisms.
        attn_implementation: As in transformers.
        experts_implementation: As in transformers: ``"eager"``, ``"batched_mm"``, ``"grouped_mm"``.
        revision: Branch, tag or commit on the hub.
        trust_remote_code: Whether to run model code that comes with the checkpoint.

    Returns:
        The model.

    Raises:
        NotMoEError: If the model has no routed experts.
        UnsupportedArchitectureError: If its experts cannot be read exactly.
        RoutingMismatchError: If the self-check finds that they are not.
        UnsupportedVersionError: If nnsight or transformers is of a release that was not tested.
        FileNotFoundError: If there is no such model, or no tokenizer beside it.
        ValueError: If a loaded model comes without a tokenizer.
    """
    check_versions()
    if isinstance(source, PreTrainedModel):
        return _wrap(source, tokenizer, str(source.name_or_path or type(source).__name__), check)
    name = str(source)
    place = _organism_folder(name) if name.startswith(_ORGANISM) else name
    remote = {"revision": revision, "trust_remote_code": trust_remote_code}
    _check_structure(_config(name, place, remote), trust_remote_code)
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
    model = AutoModelForCausalLM.from_pretrained(place, **remote, **given).eval()
    if device != "auto":
        model = model.to(_device(device))
    return _wrap(model, tokenizer, name, check, _card(place))


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
    sites = find_sites(model)
    if not model.can_generate():
        raise UnsupportedArchitectureError(
            f"{type(model).__name__!r} is no causal language model. Load the class with the "
            "language-model head."
        )
    wrapped = TransformersModel(model, tokenizer=tokenizer, task="text-generation")
    loaded = MoEModel(wrapped, sites, source=source, card=card)
    if check:
        layers = (*loaded.encoder_moe.values(), *loaded.moe.values())
        loaded.remember_exact_sums(check_access(wrapped, sites, layers))
    return loaded


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


def _config(name: str, place: str, remote: dict[str, object]) -> object:
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
            f"({str(error).splitlines()[0]}). Tested families: {', '.join(SUPPORTED)}."
        ) from error


def _tokenizer(name: str, place: str, remote: dict[str, object]) -> PreTrainedTokenizerBase:
    try:
        return AutoTokenizer.from_pretrained(place, **remote)
    except (OSError, ValueError) as error:
        raise FileNotFoundError(
            f"{name!r} holds no tokenizer that can be read ({str(error).splitlines()[0]}) "
            "Save one beside the weights, or pass `tokenizer=`."
        ) from error


def _check_structure(config: object, trust_remote_code: bool) -> None:
    """Refuse a model on its bare structure, before any weight is read or downloaded."""
    own_code = trust_remote_code and hasattr(config, "auto_map")
    if config.model_type not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES and not own_code:
        raise UnsupportedArchitectureError(
            f"A model of type {config.model_type!r} is no causal language model. "
            f"Tested families: {', '.join(SUPPORTED)}."
        )
    with torch.device("meta"):
        skeleton = AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code)
    find_sites(skeleton)


def _device(device: str | torch.device | None) -> str | torch.device:
    if device is not None:
        return device
    return "cuda" if torch.cuda.is_available() else "cpu"


def _card(place: str) -> dict[str, object] | None:
    path = Path(place) / "card.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
