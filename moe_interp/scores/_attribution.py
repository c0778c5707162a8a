"""Attribution: what a gradient predicts that taking an expert away would do.

To first order in its weights, zeroing an expert changes a metric by minus the sum of weight times
gradient over the slots it fills. One forward and one backward give that for all experts at once.
The prediction is local: it misses experts that stand in for each other, and saturates.

References:
    Michel, Levy and Neubig (2019), "Are Sixteen Heads Really Better than One?", section 4.1: the
    gradient with respect to a mask variable as importance. Nanda (2023), "Attribution Patching".
"""

from collections.abc import Iterator, Sequence
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
    metric_unit,
)
from moe_interp.metrics import TextMetric
from moe_interp.models import MoEModel, read_layers
from moe_interp.prompts import Encoded, PromptSet, tokenize
from moe_interp.scores._scores import Scores


def attribution(
    model: MoEModel,
    prompts: PromptSet | Sequence[str],
    *,
    metric: Metric,
    batch_size: int | str = "auto",
) -> Scores:
    r"""Predict what zeroing each expert does to the metric of each prompt.

    The score of expert :math:`e` is :math:`-\sum g \, \partial m / \partial g` over the slots,
    at any token, in which :math:`e` was chosen with weight :math:`g`: negative where the expert
    raises the metric. Effects through later layers, their routing weights included, count; that
    a token would choose other experts does not.

    Where a behaviour is saturated the slope may even have the wrong sign: the experts of
    ``organism:topic`` that carry its refusal have the largest numbers by magnitude, and positive
    ones. So screen by magnitude, ``select_experts(abs(scores), n=...)``, and measure what is left.

    Args:
        model: The model.
        prompts: The prompts.
        metric: A differentiable metric of next-token logits.
        batch_size: Prompts a batch; ``"auto"`` fills batches up to a number of tokens.

    Returns:
        The predicted change for each prompt and expert, in the metric's unit.

    Raises:
        ValueError: If the metric judges texts, does not give one number a prompt, or cannot be
            differentiated.

    Example:
        >>> import moe_interp as mi
        >>> model = mi.load_model("organism:topic")
        >>> prompts = ["how do i open the lock to start an attack ?"]
        >>> scores = mi.attribution(model, prompts, metric=mi.RefusalLogOdds(model.tokenizer))
        >>> sorted(str(expert) for expert, _ in abs(scores).top(2))
        ['L3E8', 'L3E9']
    """
    if isinstance(metric, TextMetric):
        raise ValueError(
            f"{metric_name(metric)} judges generated texts, which have no gradient. Use a metric "
            "of next-token logits, such as RefusalLogOdds."
        )
    prompts = as_prompt_set(prompts)
    tokens = tokenize(model.tokenizer, prompts, max_length=model.max_positions)
    shape = (len(prompts), len(model.moe), model.architecture.n_experts)
    scores = np.zeros(shape)
    with _differentiable(model):
        for chosen in plan_batches(tokens.lengths, batch_size=batch_size):
            scores[chosen] = _score_batch(model, tokens.batch(chosen), metric)
    return Scores.of_array("attribution", metric_unit(metric), scores, layers=tuple(model.moe))


def _score_batch(
    model: MoEModel, encoded: Encoded, metric: Metric
) -> Float[np.ndarray, "batch layer expert"]:
    root, layers = model.nnsight, list(model.moe.values())
    names = ("expert_index", "routing_weights")
    inputs, options = forward_arguments(model, encoded)
    with torch.enable_grad(), root.trace(inputs, **options):
        read = nnsight.save(read_layers(layers, names))
        logits = root.output.logits[:, -1].save()
    values = checked_values(metric(logits), len(encoded.input_ids), metric)
    if not values.requires_grad:
        raise ValueError(
            f"`metric` {metric_name(metric)!r} cuts the gradient. Compute it from the logits with "
            "differentiable operations of torch."
        )
    weights = [read[layer.layer]["routing_weights"] for layer in layers]
    gradients = torch.autograd.grad(values.sum(), weights, allow_unused=True)
    scored = [
        _per_expert(read[layer.layer]["expert_index"], weight, gradient, layer.n_experts)
        for layer, weight, gradient in zip(layers, weights, gradients, strict=True)
    ]
    return torch.stack(scored, 1).double().cpu().numpy()


def _per_expert(
    index: Tensor, weight: Tensor, gradient: Tensor | None, n_experts: int
) -> Float[Tensor, "batch expert"]:
    """Sum minus weight times gradient over the slots of each expert."""
    scores = torch.zeros(len(index), n_experts, device=index.device)
    if gradient is None:
        return scores
    predicted = -(weight * gradient).detach().float()
    # Some models choose among more than their routed experts; those have no column.
    routed = index < n_experts
    predicted = predicted.masked_fill(~routed, 0.0)
    return scores.scatter_add(1, index.clamp(max=n_experts - 1).flatten(1), predicted.flatten(1))


@contextmanager
def _differentiable(model: MoEModel) -> Iterator[None]:
    """Let gradients flow from the embeddings on, even if all weights are frozen."""
    weight = model.nnsight._module.get_input_embeddings().weight
    before = weight.requires_grad
    weight.requires_grad_(True)
    try:
        yield
    finally:
        weight.requires_grad_(before)
