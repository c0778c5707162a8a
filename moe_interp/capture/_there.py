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
from moe_interp.remote import ServerBackend

#: Batches in one job: its queue is waited in once, and what is lost with it is little.
BATCHES_PER_JOB = 8


Batches = Sequence[Sequence[int]]
Given = list[tuple[dict[str, Tensor], Tensor, Tensor]]


def parts_of(batches: Batches) -> list[Batches]:
    """Divide batches into those that share a job.

    Args:
        batches: The prompts of each batch.

    Returns:
        The batches of each job.
    """
    return [batches[n : n + BATCHES_PER_JOB] for n in range(0, len(batches), BATCHES_PER_JOB)]


def recorded_there(
    model: MoEModel,
    tokens: TokenizedPrompts,
    batches: Batches,
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
    for part in parts_of(batches):
        given = _given(tokens, part, padding_side)
        for chosen, packed in zip(part, _run_job(model, given, names, routers), strict=True):
            yield chosen, by_layer(model, packed)


def submit_part(
    model: MoEModel, tokens: TokenizedPrompts, batches: Batches, names: Sequence[str]
) -> str:
    """Ask for some batches in one job, without waiting for it.

    Args:
        model: The model, which is on a server.
        tokens: The prompts as tokens.
        batches: The prompts of each batch.
        names: What to record.

    Returns:
        The job's name on the server; its result holds ``packed``, batch by batch.
    """
    backend = model.backend()
    backend.blocking = False
    _run_job(model, _given(tokens, batches, "right"), names, {}, backend)
    return backend.job


def by_layer(model: MoEModel, packed: dict[str, Tensor]) -> dict[int, dict[str, Tensor]]:
    """What one batch recorded, layer by layer again.

    Args:
        model: The model.
        packed: Stacked over its layers.

    Returns:
        By layer, what `record_layers` recorded.
    """
    return {
        layer: {name: stacked[row] for name, stacked in packed.items()}
        for row, layer in enumerate(model.moe)
    }


def _given(tokens: TokenizedPrompts, batches: Batches, padding_side: str) -> Given:
    """What a job needs of each batch: inputs, real tokens and spans."""
    given = []
    for chosen in batches:
        encoded = tokens.batch(chosen, padding_side=padding_side)
        spans = torch.stack(list(encoded.spans.values()))
        given.append((dict(encoded.inputs), encoded.attention_mask.bool(), spans))
    return given


def _run_job(
    model: MoEModel,
    batches: Given,
    names: Sequence[str],
    routers: dict[int, dict[str, Any]],
    backend: ServerBackend | None = None,
) -> list[dict[str, Tensor]]:
    """Run some batches in one job; the block names nothing but these locals.

    Nothing comes back here if the backend does not wait.
    """
    nn, layers = model.nnsight, list(model.moe.values())
    names, n_experts, packed = list(names), model.architecture.n_experts, []
    # The logits over the vocabulary are not looked at.
    takes = inspect.signature(nn._module.forward).parameters
    options = {"logits_to_keep": 1} if "logits_to_keep" in takes else {}
    with nn.session(backend=backend or model.backend()):
        packed = nnsight.save([])
        for inputs, real, spans in batches:
            with nn.trace(inputs, **options):
                recorded = record_layers(layers, names, real, spans, routers)
                packed.append(pack(recorded, n_experts))
    return packed
