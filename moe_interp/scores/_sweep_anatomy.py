"""Where the forward of a model can be cut, and what a sweep takes over from the untouched model."""

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from moe_interp.models import MoEModel


@dataclass(frozen=True)
class Reuse:
    """What the forwards of a sweep take over from the untouched model.

    Attributes:
        layers: The layers below the expert's are skipped.
        positions: Tokens before the first that is changed are not run again.
        last: In the last layer, experts run at the last token only.
        own: The expert's own layer runs once for each choice of its tokens, not for each expert.
    """

    layers: bool = False
    positions: bool = False
    last: bool = False
    own: bool = False

    @property
    def names(self) -> tuple[str, ...]:
        """What is taken over, in words."""
        words = {
            "layers below": self.layers,
            "positions before": self.positions,
            "last position of the last layer": self.last,
            "own layer": self.own,
        }
        return tuple(word for word, used in words.items() if used)


@dataclass(frozen=True)
class Anatomy:
    """Where the forward of a model can be cut.

    Attributes:
        stack: The decoder layers, as nnsight wraps them; empty if they are in no list.
        last: The last layer, if it is a MoE layer with a block of its own.
        possible: What may be taken over, before anything has been tried.
    """

    stack: tuple[Any, ...]
    last: int | None
    possible: Reuse


def anatomy(model: MoEModel) -> Anatomy:
    """Find where the forward of a model can be cut.

    Args:
        model: The model.

    Returns:
        The places.
    """
    root, blocks = model.nnsight, {n: site.facts["block"] for n, site in model.moe.items()}
    path = _stack_path(root._module, blocks)
    if path is None:
        return Anatomy((), None, Reuse())
    n_layers = len(root._module.get_submodule(path))
    stack = tuple(root.get(f"{path}.{number}") for number in range(n_layers))
    last = n_layers - 1
    apart = last in blocks and blocks[last] != f"{path}.{last}"
    known = inspect.signature(type(root._module).forward).parameters
    cached = {"past_key_values", "position_ids", "use_cache"} <= set(known)
    possible = Reuse(layers=True, positions=cached, last=apart, own=True)
    return Anatomy(stack, last if apart else None, possible)


def _stack_path(module: torch.nn.Module, blocks: Mapping[int, str]) -> str | None:
    """The path of the list that holds each MoE block's decoder layer at its number."""
    found = None
    for layer, block in blocks.items():
        parts = block.split(".")
        paths = {".".join(parts[:n]) for n, part in enumerate(parts) if n and part == str(layer)}
        found = paths if found is None else found & paths
    lists = [
        path
        for path in sorted(found or (), key=len)
        if isinstance(module.get_submodule(path), torch.nn.ModuleList)
    ]
    return lists[0] if lists else None
