"""Proof that training changed what was chosen and nothing else."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from moe_interp.errors import TuningError
from moe_interp.tuning._delta import digest
from moe_interp.tuning._slices import Slice


def untouched_digests(
    root: nn.Module, slices: Sequence[Slice], whole: Sequence[str]
) -> dict[str, str]:
    """Take a fingerprint of every parameter and buffer, chosen parts left out.

    Args:
        root: The model.
        slices: Parts that may change.
        whole: Names of parameters that may change.

    Returns:
        By name, the fingerprint.
    """
    chosen: dict[str, list[Slice]] = {}
    for part in slices:
        chosen.setdefault(part.parameter, []).append(part)
    found = {}
    for name, tensor in _state(root).items():
        if name not in whole:
            found[name] = digest(_without(tensor, chosen.get(name, ())))
    return found


def check_untouched(root: nn.Module, before: Mapping[str, str], now: Mapping[str, str]) -> None:
    """Compare fingerprints.

    Args:
        root: The model, for its name.
        before: Fingerprints from before the change.
        now: Fingerprints of the same parts, now.

    Raises:
        TuningError: If something changed that was not chosen.
    """
    wrong = [name for name, print_ in before.items() if now.get(name) != print_]
    if wrong:
        raise TuningError(
            f"{len(wrong)} parameters of {type(root).__name__!r} changed that were not chosen, the "
            f"first is {wrong[0]!r}. An optimiser that decays all weights does this, and so does "
            "code of the model that writes to its own buffers. Give the optimiser the chosen "
            "parts alone, as tune_experts does."
        )


def _state(root: nn.Module) -> dict[str, Tensor]:
    return {**dict(root.named_parameters()), **dict(root.named_buffers())}


def _without(tensor: Tensor, parts: Sequence[Slice]) -> Tensor:
    if not parts:
        return tensor
    rest = tensor.detach().clone()
    for part in parts:
        part.of(rest).copy_(torch.zeros_like(part.of(rest)))
    return rest
