"""Which experts run and how each is weighted: read and written where the experts take it.

Plain code, for the reasons given in ``_traced_parts``. There are four ways in which a family hands
tokens to its experts; the fact ``dispatch`` says which.

* ``indexed``: the experts are called with (hidden states, index, weights).
* ``input_scaled``: every expert runs on every token, the score multiplies the expert's *input*.
* ``sorted``: token copies are sorted by expert, and added up after weighting.
* ``one_hot``: one expert per token, named by a one-hot row, all 0 for a token over capacity.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from moe_interp.models._traced_parts import (
    LayerParts,
    operation,
    own_rows,
    prepare,
    runs_alone,
    waiting_slots,
)


def dispatched(layer: "LayerParts") -> "tuple[Tensor, Tensor, Callable]":
    """Expert index and routing weights of the own rows, and ``write(index, weights)``."""
    prepare(layer)
    return DISPATCH[layer.facts["dispatch"]](layer)


def dispatch_indexed(layer: "LayerParts") -> "tuple[Tensor, Tensor, Callable]":
    """The experts' own arguments."""
    args, kwargs = layer.experts.inputs
    names = layer.facts["experts_arguments"]
    values = [args[i] if i < len(args) else kwargs[name] for i, name in enumerate(names)]
    index, put_index = own_rows(values[1])
    weights, put_weights = own_rows(values[2])

    def write(new_index: "Tensor", new_weights: "Tensor") -> None:
        if layer.facts["skips"] and new_index is not index:
            # The skip class is no expert: the experts get expert 0 with weight 0 in its place.
            skipped = new_index == layer.n_experts - 1
            new_index = new_index.masked_fill(skipped, 0)
            new_weights = new_weights.masked_fill(skipped, 0.0)
        new = {
            1: values[1] if new_index is index else put_index(new_index),
            2: put_weights(new_weights),
        }
        renew_slots(layer, new_index is index, new_weights)
        given = tuple(new.get(i, value) for i, value in enumerate(args))
        named = {**kwargs, **{names[i]: new[i] for i in new if i >= len(args)}}
        layer.experts.inputs = (given, named)

    return index, weights, write


def renew_slots(layer: "LayerParts", same_experts: "bool", weights: "Tensor") -> None:
    """Bring slots that were read before an edit of the dispatch up to date with it."""
    slots = waiting_slots(layer)
    if slots is None:
        return
    if not same_experts:
        slots["stale"] = True
        return
    weighted = slots["expert_outputs"] * weights[..., None]
    slots["routing_weights"] = weights
    slots["expert_contributions"] = weighted.to(slots["expert_outputs"].dtype)
    slots["weighted"] = slots["through"] = weighted


def dispatch_input_scaled(layer: "LayerParts") -> "tuple[Tensor, Tensor, Callable]":
    """From the router's scores over all experts, which are 0 where an expert is not chosen."""
    scores, logits = layer.router.output
    own, put = own_rows(scores)
    weights, index = own.topk(layer.top_k, -1)

    def write(new_index: "Tensor", new_weights: "Tensor") -> None:
        dense = torch.zeros_like(own).scatter(-1, new_index, new_weights.to(own.dtype))
        layer.router.output = (put(dense), logits)

    return index, weights, write


def dispatch_sorted(layer: "LayerParts") -> "tuple[Tensor, Tensor, Callable]":
    """From the router's sorted copies, put back in the order of tokens and slots."""
    order, _, weights, sizes, logits = layer.router.output
    if layer.top_k == 1 and not runs_alone():
        # One copy a token: at decode steps nnsight takes the sorted copies for the batch's rows.
        raise ValueError(
            f"Layer {layer.layer}: with one expert per token this model sorts the whole batch, "
            "which cannot be split into invokes. Trace the prompts in one invoke."
        )
    place = places(order)
    ids = torch.arange(len(sizes), device=order.device)
    experts = ids.repeat_interleave(torch.tensor(sizes, device=order.device))
    index, put_index = own_rows(experts[place].unflatten(0, (-1, layer.top_k)))
    own, put_weights = own_rows(weights[place].unflatten(0, (-1, layer.top_k)))

    def write(new_index: "Tensor", new_weights: "Tensor") -> None:
        flat = put_index(new_index).flatten()
        new_order = order if new_index is index else flat.sort(0).indices
        # Counted by expert, as the router does; a sort that is not stable would do as well.
        new_sizes = sizes if new_index is index else flat.bincount(minlength=len(sizes)).tolist()
        layer.router.output = (
            new_order,
            new_order.div(layer.top_k, rounding_mode="trunc"),
            put_weights(new_weights).flatten()[new_order],
            new_sizes,
            logits,
        )

    return index, own, write


def places(order: "Tensor") -> "Tensor":
    """Where each (token, slot) stands among the copies sorted by expert."""
    place = torch.empty_like(order)
    place[order] = torch.arange(len(order), device=order.device)
    return place


def dispatch_one_hot(layer: "LayerParts") -> "tuple[Tensor, Tensor, Callable]":
    """From the router's one-hot rows; a token over the expert's capacity has weight 0."""
    rows, weights, logits = layer.router.output
    runs = rows.sum(-1, keepdim=True) > 0
    index = torch.where(runs, rows.argmax(-1, keepdim=True), logits.argmax(-1, keepdim=True))
    own = torch.where(runs, weights, torch.zeros_like(weights))

    def write(new_index: "Tensor", new_weights: "Tensor") -> None:
        hot = torch.zeros_like(rows).scatter(-1, new_index, 1)
        layer.router.output = (hot, new_weights, logits)

    return index, own, write


DISPATCH = {
    "indexed": dispatch_indexed,
    "input_scaled": dispatch_input_scaled,
    "sorted": dispatch_sorted,
    "one_hot": dispatch_one_hot,
}


def read_expert_index(layer: "LayerParts") -> "Tensor":
    """The experts chosen, in the model's own order."""
    prepare(layer)
    choice = layer.facts["choice"]
    if layer.facts["skips"]:
        # The skip class is masked to expert 0 before the experts see it.
        return own_rows(operation(layer, choice).output[1])[0]
    if layer.facts["choice_gives"] == "argmax":
        # The row of a token over capacity does not tell what was chosen.
        return own_rows(operation(layer, layer.facts["choice_index"]).output.unsqueeze(-1))[0]
    index, weights, _ = dispatched(layer)
    refuse_lost_experts(layer, weights)
    return index


def refuse_lost_experts(layer: "LayerParts", weights: "Tensor") -> None:
    """Raise an error where only its weight tells whose a slot is, and that is 0."""
    if layer.facts["dispatch"] == "input_scaled" and bool((weights == 0).any()):
        raise ValueError(
            f"Layer {layer.layer}: some routing weights are 0, and the scores of this model, which "
            "are 0 where an expert is not chosen, do not tell whose they were. Read the experts in "
            "a trace of their own, or set the weights to 0 with an intervention such as Zero."
        )


def read_routing_weights(layer: "LayerParts") -> "Tensor":
    """What multiplies each expert; under autograd the tensor the model goes on with."""
    waiting = waiting_slots(layer)
    if waiting is not None:
        # The slots that take the place of the experts' output were weighted by these.
        return waiting["routing_weights"]
    index, weights, write = dispatched(layer)
    if weights.requires_grad:
        write(index, weights)
    return weights
