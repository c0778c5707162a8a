"""What the self-check runs: short traces over a few tokens, here or together on a server.

Plain code, for the reasons given in ``_traced_parts``.
"""

from collections.abc import Sequence

import nnsight
from jaxtyping import Float
from torch import Tensor

from moe_interp.models._traced import MoELayer
from moe_interp.models._traced_choice import choice_apart, choose, next_best
from moe_interp.models._traced_read import read

READ = (
    "router_logits",
    "router_probs",
    "expert_index",
    "routing_weights",
    "expert_outputs",
    "expert_contributions",
    "routed_output",
    "shared_output",
    "output",
)


def plain_logits(
    model: "object", batch: "dict[str, Tensor]"
) -> 'Float[Tensor, "batch pos d_vocab"]':
    """The model's output where nothing is read or written."""
    with model.trace(batch):
        logits = nnsight.save(model.output.logits)
    return logits.float()


def read_all(
    model: "object", layers: "Sequence[MoELayer]", batch: "dict[str, Tensor]"
) -> "list[dict[str, Tensor]]":
    """Read every quantity of every layer, and rebuild the block's output from its parts."""
    with model.trace(batch):
        found = nnsight.save([])
        for layer in layers:
            values = read(layer, [name for name in READ if name in layer.offered], False)
            shared = values["shared_output"] if layer.facts["shared_inside"] else None
            contributions = values["expert_contributions"]
            values["rebuilt"] = layer.output_from(contributions, shared)
            found.append(values)
    return found


def write_back(
    model: "object", layers: "Sequence[MoELayer]", batch: "dict[str, Tensor]"
) -> 'Float[Tensor, "batch pos d_vocab"]':
    """The model's output when each layer is assigned what was read from it."""
    with model.trace(batch):
        for layer in layers:
            layer.router_logits = layer.router_logits.clone()
            layer.routing_weights = layer.routing_weights.clone()
        logits = nnsight.save(model.output.logits)
    return logits.float()


def negate_logits(
    model: "object", layers: "Sequence[MoELayer]", batch: "dict[str, Tensor]"
) -> "list[tuple[Tensor, Tensor]]":
    """Per layer, the experts its router would choose and those chosen on negated logits."""
    with model.trace(batch):
        pairs = nnsight.save([])
        for layer in layers:
            own = choice_apart(layer)
            logits = layer.router_logits
            layer.router_logits = -logits
            if own is None:
                own = logits.topk(layer.top_k, -1).indices
            pairs.append((own, layer.expert_index))
    return pairs


def choose_others(
    model: "object", layers: "Sequence[MoELayer]", batch: "dict[str, Tensor]"
) -> "list[tuple[Tensor, Tensor]]":
    """Per layer, a corrected choice and the experts that ran."""
    with model.trace(batch):
        pairs = nnsight.save([])
        for layer in layers:
            lowest = layer.facts["unselectable_score"]
            asked = choose(layer, lambda scores, index: next_best(scores, index, lowest))  # noqa: B023
            pairs.append((asked, layer.expert_index))
    return pairs
