"""The choice of experts inside a trace: the model's own, corrected where a rule says so.

Plain code, for the reasons given in ``_traced_parts``.
"""

from collections.abc import Callable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from moe_interp.models._traced_parts import (
    LayerParts,
    checked_index,
    operation,
    own_rows,
    prepare,
)
from moe_interp.models._traced_rules import choose_next_best


def choice_apart(layer: "LayerParts") -> 'Int[Tensor, "batch pos top_k"] | None':
    """The experts that the router, called on its own, chooses for the input it has here.

    None for routers that do not return an index, which choose by their logits alone.
    """
    if layer.facts["dispatch"] != "indexed" or layer.facts["choice"].startswith("block:"):
        return None
    args, kwargs = layer.router.inputs
    given = []
    for arg in args:
        if torch.is_tensor(arg) and arg.dim() == 2 and arg.is_floating_point():
            arg = own_rows(arg)[0].flatten(0, 1)
        given.append(arg)
    returned = layer.router(*given, **kwargs)
    index = next(
        value for value in returned if torch.is_tensor(value) and not value.is_floating_point()
    )
    if layer.facts["skips"]:
        index = index.masked_fill(returned[1] == 0, layer.n_experts - 1)
    own, _ = own_rows(args[0])
    return index.reshape(*own.shape[:2], -1)


def choose(layer: "LayerParts", rule: "Callable") -> 'Int[Tensor, "batch pos top_k"]':
    """Let ``rule(scores, index) -> index`` correct the model's own choice of experts.

    Only changed slots are replaced, and their weights are made from the scores that the model
    itself chose by, so a token whose choice stands keeps its bits. One call per layer and forward:
    the scores are gone once the choice is made. Returns the corrected index.
    """
    prepare(layer)
    facts = layer.facts
    if facts["choice_gives"] == "sparsemixer":
        return choose_after_sparsemixer(layer, rule)
    if facts["choice_gives"] == "argmax":
        return choose_highest(layer, rule)
    scores, source = None, None
    if facts["choice_scores"]:
        scores = own_rows(operation(layer, facts["choice_scores"]).output)[0]
    if facts["choice_values"]:
        source = own_rows(operation(layer, facts["choice_values"]).output)[0]
    chosen = operation(layer, facts["choice"])
    if scores is None:
        scores = own_rows(chosen.inputs[0][0])[0]
    source = scores if source is None else source
    served = chosen.output
    if facts["choice_gives"] == "index":
        index, put = own_rows(served)
        new = rule(scores, index)
        if new is not index:
            chosen.output = put(new)
        return new
    values, put_values = own_rows(served[0])
    index, put_index = own_rows(served[1])
    new = rule(scores, index)
    if new is index:
        return index
    values = torch.where(new != index, source.gather(-1, new).to(values.dtype), values)
    chosen.output = torch.return_types.topk((put_values(values), put_index(new)))
    return new


def choose_highest(layer: "LayerParts", rule: "Callable") -> 'Int[Tensor, "batch pos top_k"]':
    """`choose` for routers that take the highest score for choice and weight alike.

    Another choice is made by leaving it the only score of its token.
    """
    place = operation(layer, layer.facts["choice"])
    scores, put = own_rows(place.output)
    index = scores.argmax(-1, keepdim=True)
    new = rule(scores, index)
    if new is not index:
        score = scores.gather(-1, new).clamp(min=torch.finfo(scores.dtype).tiny)
        alone = torch.zeros_like(scores).scatter(-1, new, score)
        place.output = put(torch.where(new != index, alone, scores))
    return new


def write_expert_index(layer: "LayerParts", new: 'Int[Tensor, "batch pos top_k"]') -> None:
    """Choose the given experts; the model weighs them by its own scores."""
    choose(layer, lambda scores, index: checked_index(layer, new, index))


def choose_after_sparsemixer(
    layer: "LayerParts", rule: "Callable"
) -> 'Int[Tensor, "batch pos top_k"]':
    """`choose` for routers that pick experts one after the other (Liu et al. 2024, SparseMixer).

    The weight of a pick is a softmax over the experts that are left and lie within twice the
    jitter of the best of them; so a changed row is weighted anew, in order of its logits.
    """
    logits, weights, index = layer.router.output
    (own_logits, _), (own_weights, put_weights) = own_rows(logits), own_rows(weights)
    own_index, put_index = own_rows(index)
    new = rule(own_logits, own_index)
    if new is own_index:
        return own_index
    changed = (new != own_index).any(-1, keepdim=True)
    order = own_logits.gather(-1, new).argsort(dim=-1, descending=True, stable=True)
    new = torch.where(changed, new.gather(-1, order), own_index)
    width = 2 * layer.facts["sparsemixer_jitter"]
    remaining, columns = own_logits, []
    for slot in range(new.shape[-1]):
        pick = new[..., slot : slot + 1]
        best = own_logits.gather(-1, pick).detach()
        distance = (best - own_logits) / torch.maximum(own_logits.abs(), best)
        out = (distance > width) | (own_logits > best)
        columns.append(remaining.masked_fill(out, float("-inf")).softmax(-1).gather(-1, pick))
        remaining = remaining.scatter(-1, pick, float("-inf"))
    rebuilt = torch.cat(columns, -1).to(own_weights.dtype)
    own_weights = torch.where(changed, rebuilt, own_weights)
    layer.router.output = (logits, put_weights(own_weights), put_index(new))
    return new


def over_tokens(
    layer: "LayerParts", mask: "Tensor", tokens: "Tensor | None", neutral: "bool | float"
) -> "Tensor":
    """Bring a per-expert mask to ``[batch|1 pos|1 expert]``, neutral where `tokens` is False."""
    wide = mask.reshape(1, 1, -1) if mask.dim() == 1 else mask
    wide = wide.unsqueeze(1) if wide.dim() == 2 else wide
    if wide.shape[-1] != layer.n_experts:
        raise ValueError(
            f"Layer {layer.layer} has {layer.n_experts} experts, the mask has {wide.shape[-1]}."
        )
    if tokens is None:
        return wide
    return torch.where(tokens.to(wide.device)[..., None], wide, torch.full_like(wide, neutral))


def ban_experts(
    layer: "LayerParts",
    banned: 'Bool[Tensor, "*rows expert"]',
    tokens: 'Bool[Tensor, "batch pos"] | None' = None,
) -> None:
    """Take experts out of the choice: the next best is chosen, all other scores stay as they are.

    ``banned`` is ``[expert]``, ``[batch|1 expert]`` (each row its own experts) or
    ``[batch|1 pos|1 expert]``; ``tokens`` limits the ban to the tokens that are True.
    """
    wide = over_tokens(layer, banned, tokens, False)

    def rule(scores: "Tensor", index: "Tensor") -> "Tensor":
        gone = wide.to(index.device).expand(*index.shape[:-1], layer.n_experts)
        return choose_next_best(layer, scores, index, gone)

    choose(layer, rule)


def next_best(
    scores: 'Float[Tensor, "batch pos expert"]',
    index: 'Int[Tensor, "batch pos top_k"]',
    lowest: "float",
) -> 'Int[Tensor, "batch pos top_k"]':
    """Replace the first expert of each token by the best one left, where there is one."""
    value, best = scores.detach().scatter(-1, index, float("-inf")).max(-1)
    first = torch.where(value > lowest, best, index[..., 0])
    return torch.cat([first[..., None], index[..., 1:]], -1)
