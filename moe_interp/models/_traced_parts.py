"""What a trace knows of one MoE layer, and which rows of a batch belong to the running invoke.

A trace body may be recompiled from source on another machine, in a process that has neither this
package nor the weights. So the ``_traced*`` files keep to functions of tensors, dicts and tuples
and to plain classes; no decorator but ``property``; no parameter is ever read: an expert's output
is had by calling the experts. Annotations are quoted, so that they travel as text.

Layout: routers and experts see tokens flattened to ``batch*pos``; everything that enters or leaves
these functions is ``[batch pos ...]`` and holds the rows of the running invoke only.
"""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Bool
from nnsight.intervention.interleaver import Mediator
from torch import Tensor


class LayerParts:
    """The envoys and plain facts of one MoE layer.

    Attributes:
        facts: The fields of its `Site`.
        layer: Absolute decoder layer.
        n_experts: Number of routed experts.
        top_k: Experts chosen per token.
        has_shared: Whether a shared expert runs beside the routed ones.
    """

    def __init__(self, root: "object", facts: "dict") -> None:
        self.facts = facts
        self.layer = facts["layer"]
        self.n_experts = facts["n_experts"]
        self.top_k = facts["top_k"]
        self.has_shared = facts["shared"] is not None
        self.block = root.get(facts["block"])
        self.router = root.get(facts["router"])
        self.experts = root.get(facts["experts"])
        self.shared = None if facts["shared"] is None else root.get(facts["shared"])
        self.shared_gate = None if facts["shared_gate"] is None else root.get(facts["shared_gate"])

    def __repr__(self) -> "str":
        shared = ", shared expert" if self.has_shared else ""
        experts = f"{self.n_experts} experts, top {self.top_k}{shared}"
        return f"{type(self).__name__}({self.layer}: {experts})"

    def mask(self, experts: "Sequence[int]") -> 'Bool[Tensor, " expert"]':
        """The experts as one boolean per expert of this layer.

        Args:
            experts: Ids of the experts.

        Returns:
            True for the experts named.

        Raises:
            ValueError: If an id is out of range.
        """
        wrong = [expert for expert in experts if not 0 <= expert < self.n_experts]
        if wrong:
            raise ValueError(f"Layer {self.layer} has experts 0–{self.n_experts - 1}, got {wrong}.")
        chosen = torch.zeros(self.n_experts, dtype=torch.bool)
        chosen[list(experts)] = True
        return chosen


def invoke_rows() -> tuple[int, int, int]:
    """First row, number of rows of the running invoke, and number of rows of the whole batch."""
    mediator = Mediator.current("a MoE layer")
    run = mediator.interleaver
    groups = [other.batch_group for other in run.mediators if other.batch_group is not None]
    total = max([start + size for start, size in groups], default=0)
    if total == 0 and run.batcher is not None:
        total = run.batcher.total
    start, size = (0, total) if mediator.batch_group is None else mediator.batch_group
    return start, size, total


def own_rows(served: "Tensor") -> "tuple[Tensor, Callable]":
    """Split the running invoke's rows off a served value, and give the way back.

    nnsight narrows only what has one entry a row: ``[batch pos ...]`` always, but a flattened
    ``[batch*pos ...]`` only at decode steps, where there is one position. The rest arrives whole.
    """
    if served.dim() == 3:
        return served, lambda new: new
    start, size, total = invoke_rows()
    if served.shape[0] == size:
        return served.unsqueeze(1), lambda new: new.flatten(0, 1)
    n_pos = served.shape[0] // total
    own = served.unflatten(0, (total, n_pos))[start : start + size]

    def put(new: "Tensor") -> "Tensor":
        if size == total:
            return new.flatten(0, 1)
        before, after = served[: start * n_pos], served[(start + size) * n_pos :]
        return torch.cat([before, new.flatten(0, 1), after])

    return own, put


def checked(layer: "LayerParts", name: str, new: "Tensor", old: "Tensor") -> "Tensor":
    """The new value in the dtype of the old, or an error that names both shapes."""
    if new.shape != old.shape:
        raise ValueError(
            f"`{name}` of layer {layer.layer} has shape {tuple(old.shape)} here (batch, pos, "
            f"expert or top_k), got {tuple(new.shape)}."
        )
    return new.to(old.dtype)
