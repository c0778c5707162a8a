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
        n_experts: Number of experts that the router chooses among.
        top_k: Experts chosen per token.
        has_shared: Whether a shared expert runs beside the routed ones.
        refused: Quantities that this layer cannot give, and why.
    """

    def __init__(self, root: "object", facts: "dict") -> None:
        self.facts = facts
        self.layer = facts["layer"]
        self.n_experts = facts["n_experts"]
        self.top_k = facts["top_k"]
        self.has_shared = facts["shared"] is not None
        self.refused = facts["refused"]
        parts = {
            name: None if facts[name] is None else root.get(facts[name])
            for name in (
                "block",
                "router",
                "experts",
                "shared",
                "shared_gate",
                "entry",
                "leaving",
                "projection",
                "final_norm",
            )
        }
        self.block = parts["block"]
        self.router = parts["router"]
        self.experts = parts["experts"]
        self.shared = parts["shared"]
        self.shared_gate = parts["shared_gate"]
        self.entry = parts["entry"]
        self.leaving = parts["leaving"]
        self.projection = parts["projection"]
        self.final_norm = parts["final_norm"]

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


def prepare(layer: "LayerParts") -> None:
    """Open the block's source, if anything is read there, while the block has not begun."""
    if layer.facts["reads_block_source"]:
        layer.block.source  # noqa: B018


def operation(layer: "LayerParts", path: "str") -> "object":
    """An operation in the source of the layer's router, or of its block if the path says so.

    ``a/b`` is the operation b inside the function that the operation a calls.
    """
    inside = layer.router
    if path.startswith("block:"):
        inside, path = layer.block, path.removeprefix("block:")
    *outer, last = path.split("/")
    source = inside.source
    for name in outer:
        source = getattr(source, name).source
    return getattr(source, last)


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


def runs_alone() -> bool:
    """Whether the running block is the only one that this forward serves."""
    others = Mediator.current("a MoE layer").interleaver.mediators
    return len([other for other in others if not hasattr(other, "slots")]) == 1


def waiting_slots(layer: "LayerParts") -> "dict | None":
    """The slots that wait to take the place of the experts' output, if any do."""
    mediator = Mediator.current("a MoE layer")
    for other in mediator.interleaver.mediators:
        same = getattr(other, "block", None) == layer.facts["block"]
        if same and other.batch_group == mediator.batch_group and other.alive:
            return None if other.slots["stale"] else other.slots
    return None


def work_beside(layer: "LayerParts", slots: "dict", work: "Callable") -> None:
    """Let ``work(slots)`` wait for a later place of the model, beside the running block.

    The block itself stays where it is, so that whatever it asks for next is still to come. At the
    place waited for, `work` comes before the block.
    """
    mediator = Mediator.current("a MoE layer")
    code = compile("work(slots)", "<beside>", "exec")
    helper = Mediator(code, {}, {"work": work, "slots": slots})
    helper.batch_group = mediator.batch_group
    helper.block = layer.facts["block"]
    helper.slots = slots
    mediator.interleaver.mediators.insert(0, helper)
    helper.start(mediator.interleaver)


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
            f"`{name}` of layer {layer.layer} has shape {tuple(old.shape)} here (batch, pos, then "
            f"the quantity's own axes), got {tuple(new.shape)}."
        )
    return new.to(device=old.device, dtype=old.dtype)


def checked_index(layer: "LayerParts", new: "Tensor", old: "Tensor") -> "Tensor":
    """`checked` for expert ids, which must also be integers in range and differ per token."""
    if new.is_floating_point() or new.dtype == torch.bool:
        raise ValueError(
            f"`expert_index` of layer {layer.layer} holds integers, got {new.dtype!s}."
        )
    new = checked(layer, "expert_index", new, old)
    if bool(((new < 0) | (new >= layer.n_experts)).any()):
        raise ValueError(
            f"`expert_index` of layer {layer.layer} names experts 0–{layer.n_experts - 1}, got "
            f"{int(new.min())}–{int(new.max())}."
        )
    if bool((new.sort(-1).values.diff(dim=-1) == 0).any()):
        raise ValueError(
            f"`expert_index` of layer {layer.layer} names an expert twice for a token."
        )
    return new
