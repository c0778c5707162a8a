"""What leaves a layer without one of its experts, for all experts at once.

In its own layer an expert's absence changes nothing but the tokens that chose it, each for itself.
So the layer runs once for each of a token's choices, every token without that one, and what leaves
it without an expert is put together: from these runs where the expert was chosen, and from the
untouched model elsewhere.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from moe_interp.interventions import Batch, Edit, Intervention, forward_arguments
from moe_interp.models import MoEModel
from moe_interp.models._traced_edits import apply_edits
from moe_interp.scores._sweep_anatomy import Anatomy
from moe_interp.scores._sweep_capture import Captured
from moe_interp.scores._sweep_rules import LOCAL_RULES


@dataclass(frozen=True)
class OwnLayer:
    """What leaves a layer when every token does without one of its choices.

    Attributes:
        layer: The layer.
        expert: The expert that each intervention takes away.
        outputs: For each choice, what leaves the layer without it.
    """

    layer: int
    expert: Int[Tensor, " recipe"]
    outputs: tuple[Tensor, ...]

    def of_rows(
        self,
        captured: Captured,
        prompt: Int[np.ndarray, " row"],
        recipe: Int[np.ndarray, " row"],
        n_run: int,
    ) -> Tensor:
        """Put together what leaves the layer in each row.

        Args:
            captured: What the untouched model computed.
            prompt: The prompt of each row.
            recipe: The intervention of each row.
            n_run: How many tokens, counted from the end.

        Returns:
            The hidden states of the rows.
        """
        left = captured.hidden[self.layer + 1]
        index = torch.from_numpy(prompt)
        chosen = captured.chosen[self.layer][index, -n_run:]
        hits = (chosen == self.expert[torch.from_numpy(recipe)][:, None, None]).to(left.device)
        index = index.to(left.device)
        rows = left[:, -n_run:].index_select(0, index)
        for choice, output in enumerate(self.outputs):
            without = output[:, -n_run:].index_select(0, index)
            hit = hits[..., choice].reshape(*hits.shape[:2], *[1] * (rows.dim() - 2))
            rows = torch.where(hit, without, rows)
        return rows


def own_layer(
    model: MoEModel,
    captured: Captured,
    interventions: Sequence[Intervention],
    layer: int,
    places: Anatomy,
) -> OwnLayer | None:
    """Run a layer once for each choice of its tokens.

    Args:
        model: The model.
        captured: What the untouched model computed.
        interventions: The interventions, each of which takes away one expert.
        layer: The layer.
        places: Where the forward can be cut.

    Returns:
        What leaves the layer; None if the interventions are not of one kind that changes only
        tokens that chose the expert, each for itself.
    """
    batch = Batch(model, captured.numbers, dict(captured.encoded.spans))
    found = [[e for e in each.edits(batch) if e.phase != "decode"] for each in interventions]
    if layer not in captured.hidden or not _alike(found, layer):
        return None
    chosen = captured.chosen[layer]
    n_experts = model.moe[layer].n_experts
    marked = torch.zeros(*chosen.shape[:2], n_experts, dtype=torch.bool)
    experts = []
    for (edit,) in found:
        where = edit.where.cpu()
        experts.append(int(where.flatten(0, 1).any(0).int().argmax()))
        marked |= where
    ids = torch.arange(n_experts)
    (first,) = found[0]
    outputs = tuple(
        _without(model, captured, first, marked & (chosen[..., choice, None] == ids), places)
        for choice in range(chosen.shape[-1])
    )
    return OwnLayer(layer, torch.tensor(experts), outputs)


def _alike(found: Sequence[Sequence[Edit]], layer: int) -> bool:
    """Whether each holds one edit of this layer that marks one expert, all by the same rule."""
    if not found or any(len(edits) != 1 for edits in found):
        return False
    (first,) = found[0]
    return first.rule in LOCAL_RULES and all(
        edit.rule is first.rule
        and (edit.layer, edit.stage) == (layer, first.stage)
        and not edit.values
        and not edit.shared
        and int(edit.where.flatten(0, 1).any(0).sum()) == 1
        for (edit,) in found
    )


def _without(
    model: MoEModel,
    captured: Captured,
    edit: Edit,
    where: Bool[Tensor, "prompt pos expert"],
    places: Anatomy,
) -> Tensor:
    """What leaves the layer of an edit that holds at these tokens for these experts."""
    root, stack, layer = model.nnsight, places.stack, edit.layer
    site, entering = model.moe[layer], captured.hidden[layer]
    table = {layer: {edit.stage: [(edit.rule, where, ())]}}
    inputs, options = forward_arguments(model, captured.encoded)
    n_outputs = captured.n_outputs
    given = (entering, *([None] * (n_outputs - 1))) if n_outputs else entering
    with torch.no_grad(), root.trace(inputs, backend=model.backend(), **options):
        for envoy in stack[:layer]:
            envoy.skip(given)
        apply_edits([site], table)
        left = stack[layer].output
        for envoy in stack[layer + 1 :]:
            envoy.skip(left)
        left = (left[0] if isinstance(left, tuple) else left).save()
    return left  # noqa: RET504  A name that the block binds; the block itself cannot return.
