"""Frozen routing: layers after a change route as in the untouched run, so that only it is seen."""

from collections.abc import Iterable

import numpy as np

from moe_interp.interventions._intervention import Batch, Intervention
from moe_interp.interventions._source import routing_of
from moe_interp.interventions._transplant import Transplant
from moe_interp.models import MoEModel
from moe_interp.prompts import PromptSet, tokenize


def with_frozen_routing(
    model: MoEModel,
    prompts: PromptSet,
    recipe: tuple[Intervention, ...],
    *,
    batch_size: int | str = "auto",
) -> tuple[Intervention, ...]:
    """Add to a recipe what keeps the routing after the first changed layer as it was.

    The routing comes first in the list: interventions at later layers act on it.

    Args:
        model: The model.
        prompts: The prompts that will run.
        recipe: The interventions.
        batch_size: As in `run`.

    Returns:
        The recipe, unchanged if nothing comes after what it changes.

    Raises:
        ValueError: If an intervention does not fit the model.
        PromptError: If a prompt is longer than the model reads.
    """
    for intervention in recipe:
        intervention.check(model)
    changed = _changed_layers(model, prompts, recipe)
    later = [layer for layer in model.moe if changed and layer > min(changed)]
    if not later:
        return recipe
    routing = routing_of(model, prompts, later, batch_size=batch_size)
    return (Transplant(routing), *recipe)


def _changed_layers(
    model: MoEModel, prompts: PromptSet, recipe: Iterable[Intervention]
) -> set[int]:
    tokenized = tokenize(model.tokenizer, prompts, max_length=model.max_positions)
    layers = set()
    for prompt in range(len(prompts)):
        batch = Batch(model, np.array([prompt]), tokenized.batch([prompt]).spans)
        for intervention in recipe:
            layers |= {edit.layer for edit in intervention.edits(batch)}
    return layers
