"""What tuning changed, and nothing else: a small file that applies to the model it came from."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from moe_interp.errors import ResultError, ResultExistsError
from moe_interp.experts import Expert, ExpertSet
from moe_interp.models import MoEModel
from moe_interp.tuning._slices import Slice

KIND, SCHEMA_VERSION = "moe_interp expert delta", 1


@dataclass(frozen=True)
class ExpertDelta:
    """The tuned values of chosen parameters, and the digests of those they replace.

    Attributes:
        model_class: Class of the model it belongs to.
        values: By key, the tuned values.
        slices: By key, where they lie; whole parameters have no expert.
        digests: By key, the SHA-256 of the values of the base model.
        settings: How they were made.
    """

    model_class: str
    values: Mapping[str, Float[Tensor, "*part"]] = field(repr=False)
    slices: Mapping[str, Slice | None] = field(repr=False)
    digests: Mapping[str, str] = field(repr=False)
    settings: Mapping[str, Any]

    @property
    def experts(self) -> ExpertSet:
        """The experts that were tuned."""
        return ExpertSet(part.expert for part in self.slices.values() if part is not None)

    @property
    def n_parameters(self) -> int:
        """How many numbers it holds."""
        return sum(value.numel() for value in self.values.values())

    @contextmanager
    def applied(self, model: MoEModel, *, scale: float = 1.0) -> Iterator[MoEModel]:
        """Tune the model for a while; afterwards it is what it was, bit for bit.

        Args:
            model: The base model.
            scale: As in `merge_delta`.

        Yields:
            The model, changed.

        Raises:
            ResultError: If it is not the model that the delta belongs to.
        """
        before = {key: part.detach().clone() for key, part in self._parts(model).items()}
        merge_delta(model, self, scale=scale)
        try:
            yield model
        finally:
            for key, part in self._parts(model).items():
                part.copy_(before[key])

    def save(self, path: str | Path, *, force: bool = False) -> None:
        """Write it to one safetensors file.

        Args:
            path: The file to write.
            force: Whether a file that is there may be replaced.

        Raises:
            ResultExistsError: If something is there and `force` is not given.
        """
        path = Path(path)
        if path.exists() and not force:
            raise ResultExistsError(f"{str(path)!r} exists. Give another path, or force=True.")
        facts = {
            "kind": KIND,
            "schema_version": SCHEMA_VERSION,
            "model_class": self.model_class,
            "digests": dict(self.digests),
            "slices": {key: _plain(part) for key, part in self.slices.items()},
            "settings": dict(self.settings),
        }
        tensors = {key: value.detach().contiguous().cpu() for key, value in self.values.items()}
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_name(f".{path.name}.part")
        save_file(tensors, unfinished, metadata={"moe_interp": json.dumps(facts)})
        unfinished.replace(path)

    def _parts(self, model: MoEModel) -> dict[str, Tensor]:
        """The model's own values at the places of the delta, as views that may be written."""
        parameters = dict(model.nnsight._module.named_parameters())
        parts = {}
        for key, part in self.slices.items():
            name = key if part is None else part.parameter
            if name not in parameters:
                raise ResultError(
                    f"The model has no parameter {name!r}, which this delta of a "
                    f"{self.model_class!r} changes. Apply it to the model it was made from."
                )
            whole = parameters[name].data
            parts[key] = whole if part is None else part.of(whole)
        return parts


def load_delta(path: str | Path) -> ExpertDelta:
    """Read what `ExpertDelta.save` wrote.

    Args:
        path: The file.

    Returns:
        The delta.

    Raises:
        FileNotFoundError: If there is no such file.
        ResultError: If it holds something else, or comes from a newer release.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"There is no delta at {str(path)!r}.")
    try:
        with safe_open(path, framework="pt") as file:
            facts = json.loads((file.metadata() or {}).get("moe_interp", "{}"))
            values = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except (SafetensorError, json.JSONDecodeError) as error:
        raise ResultError(f"{str(path)!r} is no delta of moe_interp: {error}") from error
    if facts.get("kind") != KIND or facts.get("schema_version") != SCHEMA_VERSION:
        raise ResultError(
            f"{str(path)!r} is no delta of moe_interp that this release reads: it says "
            f"{facts.get('kind')!r}, version {facts.get('schema_version')!r}."
        )
    slices = {key: _slice(part) for key, part in facts["slices"].items()}
    return ExpertDelta(
        facts["model_class"], values, slices, facts["digests"], settings=facts["settings"]
    )


def merge_delta(model: MoEModel, delta: ExpertDelta, *, scale: float = 1.0) -> None:
    r"""Put a delta into a model, or a multiple of it: :math:`\theta + s\,(\theta' - \theta)`.

    With scale 1 the tuned values themselves are written, so that nothing is lost to rounding;
    with -1 the change is turned round, as in the expert-level merges of SAFEx [1].

    Args:
        model: The base model; it is changed.
        delta: The delta.
        scale: The multiple.

    Raises:
        ResultError: If the model is not the one that the delta belongs to.
        ValueError: If the scale is not a finite number.

    References:
        [1] Lai et al. (2025), "SAFEx: Analyzing Vulnerabilities of MoE-Based LLMs via Stable
        Safety-critical Expert Identification".
    """
    if not torch.isfinite(torch.tensor(float(scale))):
        raise ValueError(f"`scale` must be a finite number, got {scale}.")
    parts = delta._parts(model)
    wrong = [key for key, part in parts.items() if digest(part) != delta.digests[key]]
    if wrong:
        raise ResultError(
            f"{len(wrong)} of {len(parts)} parameters are not those of the model that this delta "
            f"was made from, the first is {wrong[0]!r}. Apply it to the untouched base model, in "
            f"the dtype it was tuned in ({delta.settings.get('dtype')})."
        )
    for key, part in parts.items():
        tuned = delta.values[key].to(part.device)
        if scale == 1.0:
            part.copy_(tuned)
        else:
            base = part.double()
            part.copy_((base + scale * (tuned.double() - base)).to(part.dtype))


def digest(tensor: Tensor) -> str:
    """SHA-256 of a tensor's dtype, shape and bits.

    Args:
        tensor: The tensor.

    Returns:
        The digest in hexadecimal.
    """
    plain = tensor.detach().cpu().contiguous()
    said = f"{plain.dtype} {tuple(plain.shape)}".encode()
    return hashlib.sha256(said + plain.view(torch.uint8).numpy().tobytes()).hexdigest()


def _plain(part: Slice | None) -> dict[str, Any] | None:
    if part is None:
        return None
    rows = None if part.rows is None else list(part.rows)
    return {
        "parameter": part.parameter,
        "expert": str(part.expert),
        "rows": rows,
        "fused": part.fused,
    }


def _slice(part: Mapping[str, Any] | None) -> Slice | None:
    if part is None:
        return None
    rows = None if part["rows"] is None else tuple(part["rows"])
    return Slice(part["parameter"], Expert.parse(part["expert"]), rows, part["fused"])
