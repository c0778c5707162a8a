"""Batches of a capture on a model's server: several in one job, and packed before they travel."""

import inspect
from collections.abc import Iterator, Sequence
from typing import Any

import nnsight
import torch
from torch import Tensor

from moe_interp.models import MoEModel
from moe_interp.models._traced_pack import pack
from moe_interp.models._traced_record import record_layers
from moe_interp.prompts import TokenizedPrompts

#: Batches in one job: its queue is waited in once, and what is lost with it is little.
BATCHES_PER_JOB = 8


def recorded_there(
    model: MoEModel,
    tokens: TokenizedPrompts,
    batches: Sequence[Sequence[int]],
    names: Sequence[str],
    routers: dict[int, dict[str, Any]],
    padding_side: str,
) -> Iterator[tuple[Sequence[int], dict[int, dict[str, Tensor]]]]:
    """Run batches on the model's server, and read its layers there.

    Args:
        model: The model.
        tokens: The prompts as tokens.
        batches: The prompts of each batch.
        names: What to record.
        routers: What random routers of each layer are drawn from.
        padding_side: ``"right"`` or ``"left"``.

    Yields:
        The prompts of a batch, and what `record_layers` recorded of it, by layer; routing weights
        and probabilities at half precision.
    """
    for first in range(0, len(batches), BATCHES_PER_JOB):
        some = batches[first : first + BATCHES_PER_JOB]
        given = []
        for chosen in some:
            encoded = tokens.batch(chosen, padding_side=padding_side)
            spans = torch.stack(list(encoded.spans.values()))
            given.append((dict(encoded.inputs), encoded.attention_mask.bool(), spans))
        for chosen, packed in zip(some, _run_job(model, given, names, routers), strict=True):
            yield chosen, _by_layer(model, packed)


def _run_job(
    model: MoEModel,
    batches: list[tuple[dict[str, Tensor], Tensor, Tensor]],
    names: Sequence[str],
    routers: dict[int, dict[str, Any]],
) -> list[dict[str, Tensor]]:
    """Run some batches in one job; the block names nothing but these locals."""
    nn, layers = model.nnsight, list(model.moe.values())
    names, n_experts = list(names), model.architecture.n_experts
    # The logits over the vocabulary are not looked at.
    takes = inspect.signature(nn._module.forward).parameters
    options = {"logits_to_keep": 1} if "logits_to_keep" in takes else {}
    with nn.session(backend=model.backend()):
        packed = nnsight.save([])
        for inputs, real, spans in batches:
            with nn.trace(inputs, **options):
                recorded = record_layers(layers, names, real, spans, routers)
                packed.append(pack(recorded, n_experts))
    return packed


def _by_layer(model: MoEModel, packed: dict[str, Tensor]) -> dict[int, dict[str, Tensor]]:
    return {
        layer: {name: stacked[row] for name, stacked in packed.items()}
        for row, layer in enumerate(model.moe)
    }
