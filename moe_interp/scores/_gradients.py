"""What a metric's gradient says at a quantity of every MoE layer: one forward and one backward."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import nnsight
import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from moe_interp.capture import plan_batches
from moe_interp.interventions import (
    Metric,
    as_prompt_set,
    checked_values,
    forward_arguments,
    metric_name,
)
from moe_interp.metrics import TextMetric
from moe_interp.models import MoELayer, MoEModel, read_layers
from moe_interp.models._traced_judge import slopes
from moe_interp.prompts import Encoded, PromptSet, tokenize

#: What a score makes of a layer, of what was read there, of its gradient and of the real tokens.
PerLayer = Callable[[MoELayer, dict[str, Tensor], Tensor, Tensor], Float[Tensor, "batch expert"]]


def gradient_scores(
    model: MoEModel,
    prompts: PromptSet | Sequence[str],
    metric: Metric,
    quantity: str,
    per_layer: PerLayer,
    *,
    batch_size: int | str,
) -> Float[np.ndarray, "prompt layer expert"]:
    """Score every expert from the gradient at one quantity of each layer.

    Args:
        model: The model.
        prompts: The prompts.
        metric: A differentiable metric of next-token logits.
        quantity: ``"routing_weights"`` or ``"router_logits"``.
        per_layer: What to make of one layer's values and gradients.
        batch_size: Prompts a batch; ``"auto"`` fills batches up to a number of tokens.

    Returns:
        The scores of each prompt.

    Raises:
        ValueError: If the metric judges texts, does not give one number a prompt, or cannot be
            differentiated.
    """
    refuse_texts(metric)
    require_gradients(model)
    prompts = as_prompt_set(prompts)
    tokens = tokenize(model.tokenizer, prompts, max_length=model.max_positions)
    scores = np.zeros((len(prompts), len(model.moe), model.architecture.n_experts))
    with differentiable(model):
        for chosen in plan_batches(tokens.lengths, batch_size=batch_size):
            encoded = tokens.batch(chosen)
            scores[chosen] = _score_batch(model, encoded, metric, quantity, per_layer)
    return scores


def refuse_texts(metric: Metric) -> None:
    """Refuse a metric that has no gradient.

    Args:
        metric: The metric.

    Raises:
        ValueError: If it judges texts.
    """
    if isinstance(metric, TextMetric):
        raise ValueError(
            f"{metric_name(metric)} judges generated texts, which have no gradient. Use a metric "
            "of next-token logits, such as RefusalLogOdds."
        )


def metric_values(
    metric: Metric, logits: Float[Tensor, "batch d_vocab"]
) -> Float[Tensor, " batch"]:
    """The metric of each prompt, from which a gradient can be taken.

    Args:
        metric: The metric.
        logits: Next-token logits.

    Returns:
        One number a prompt.

    Raises:
        ValueError: If it does not give one number a prompt, or cuts the gradient.
    """
    values = checked_values(metric(logits), len(logits), metric)
    if not values.requires_grad:
        raise ValueError(
            f"`metric` {metric_name(metric)!r} cuts the gradient. Compute it from the logits with "
            "differentiable operations of torch."
        )
    return values


def _score_batch(
    model: MoEModel, encoded: Encoded, metric: Metric, quantity: str, per_layer: PerLayer
) -> Float[np.ndarray, "batch layer expert"]:
    if model.connection is not None:
        return _score_there(model, encoded, metric, quantity, per_layer)
    root, layers = model.nnsight, list(model.moe.values())
    names = (quantity, "expert_index") if quantity == "routing_weights" else (quantity,)
    inputs, options = forward_arguments(model, encoded)
    with torch.enable_grad(), root.trace(inputs, **options):
        read = nnsight.save(read_layers(layers, names))
        logits = root.output.logits[:, -1].save()
    values = [read[layer.layer][quantity] for layer in layers]
    total = metric_values(metric, logits).sum()
    gradients = torch.autograd.grad(total, values, allow_unused=True)
    scored = []
    for layer, value, gradient in zip(layers, values, gradients, strict=True):
        slope = torch.zeros_like(value) if gradient is None else gradient
        real = encoded.attention_mask.bool().to(value.device)
        scored.append(per_layer(layer, read[layer.layer], slope, real).detach().double().cpu())
    return torch.stack(scored, 1).numpy()


def _score_there(
    model: MoEModel, encoded: Encoded, metric: Metric, quantity: str, per_layer: PerLayer
) -> Float[np.ndarray, "batch layer expert"]:
    """The same with both passes on the model's server."""
    root, layers = model.nnsight, list(model.moe.values())
    embeddings = root.get(_embeddings_path(model))
    inputs, options = forward_arguments(model, encoded)
    with torch.enable_grad(), root.trace(inputs, backend=model.backend(), **options):
        found = nnsight.save(slopes(root, embeddings, layers, quantity, metric))
    read, gradients, values = found
    checked_values(values, len(encoded.input_ids), metric)
    real = encoded.attention_mask.bool()
    scored = [
        per_layer(layer, read[layer.layer], gradients[layer.layer], real).double()
        for layer in layers
    ]
    return torch.stack(scored, 1).numpy()


def _embeddings_path(model: MoEModel) -> str:
    module = model.nnsight._module
    embeddings = module.get_input_embeddings()
    return next(path for path, part in module.named_modules() if part is embeddings)


def require_gradients(model: MoEModel) -> None:
    """Refuse a model whose server lets no gradient through, before anything is sent.

    Args:
        model: The model.

    Raises:
        UnsupportedOnServerError: If its server runs blocks in a sandbox.
    """
    model.require_gradients("This score", "Use `sweep` or `ablation_effect`, which need none")


def by_expert(
    layer: MoELayer, index: Tensor, values: Float[Tensor, "batch pos top_k"]
) -> Float[Tensor, "batch expert"]:
    """Add slots up by the expert that fills them.

    Args:
        layer: The layer.
        index: The experts chosen.
        values: A number for each slot.

    Returns:
        The sum over the slots of each expert.
    """
    sums = torch.zeros(len(index), layer.n_experts, dtype=values.dtype, device=values.device)
    return sums.scatter_add(1, index.flatten(1), values.flatten(1))


@contextmanager
def differentiable(model: MoEModel) -> Iterator[None]:
    """Let gradients flow from the embeddings on, even if all weights are frozen.

    Args:
        model: The model.

    Yields:
        Nothing.
    """
    weight = model.nnsight._module.get_input_embeddings().weight
    before = weight.requires_grad
    weight.requires_grad_(True)
    try:
        yield
    finally:
        weight.requires_grad_(before)
