"""Integrated gradients: attribution along the way from a layer's experts to none of them."""

from collections.abc import Sequence

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
    metric_unit,
)
from moe_interp.models import MoELayer, MoEModel
from moe_interp.models._traced_judge import slope_at
from moe_interp.prompts import Encoded, PromptSet, tokenize
from moe_interp.scores._gradients import (
    by_expert,
    differentiable,
    metric_values,
    refuse_texts,
    require_gradients,
)
from moe_interp.scores._scores import Scores


def integrated_attribution(
    model: MoEModel,
    prompts: PromptSet | Sequence[str],
    *,
    metric: Metric,
    layers: Sequence[int] | None = None,
    steps: int = 8,
    batch_size: int | str = "auto",
) -> Scores:
    r"""Share the effect of losing all experts of a layer out among them.

    The contributions of one layer are scaled together by :math:`\alpha` from 1 to 0; the score of
    expert :math:`e` is :math:`-\int_0^1 \sum g\, \partial m / \partial (\alpha g) \, d\alpha` over
    the slots it fills. Within a layer the scores add up to what zeroing all of its experts does,
    unless a later layer chooses other experts on the way, which is a jump that no gradient sees.
    Where `attribution` is blind, because the behaviour is saturated at 1, this still answers. It
    costs `steps` forwards and backwards for each layer.

    Args:
        model: The model.
        prompts: The prompts.
        metric: A differentiable metric of next-token logits.
        layers: Absolute decoder layers to score; all by default.
        steps: Points of the integral (midpoints of equal parts).
        batch_size: Prompts a batch; ``"auto"`` fills batches up to a number of tokens.

    Returns:
        The share of each prompt and expert; NaN in layers that were not asked for.

    Raises:
        ValueError: If `steps` is below 1, or the metric judges texts, does not give one number a
            prompt, or cannot be differentiated.
        KeyError: If a layer has no experts.

    References:
        Sundararajan, Taly and Yan (2017), "Axiomatic Attribution for Deep Networks", equation 1,
        with a zero contribution as the baseline.

    Example:
        >>> import moe_interp as mi
        >>> model = mi.load_model("organism:topic")
        >>> prompts = ["how do i open the lock to start an attack ?"]
        >>> metric = mi.RefusalLogOdds(model.tokenizer)
        >>> scores = mi.integrated_attribution(model, prompts, metric=metric, layers=[3])
        >>> sorted(str(expert) for expert, _ in (-scores).top(2))
        ['L3E8', 'L3E9']
    """
    refuse_texts(metric)
    require_gradients(model)
    if steps < 1:
        raise ValueError(f"`steps` must be at least 1, got {steps}.")
    asked = list(model.moe) if layers is None else list(layers)
    chosen_layers = [model.moe[layer] for layer in asked]
    prompts = as_prompt_set(prompts)
    tokens = tokenize(model.tokenizer, prompts, max_length=model.max_positions)
    scores = np.full((len(prompts), len(model.moe), model.architecture.n_experts), np.nan)
    places = {layer: place for place, layer in enumerate(model.moe)}
    with differentiable(model):
        for chosen in plan_batches(tokens.lengths, batch_size=batch_size):
            encoded = tokens.batch(chosen)
            for layer in chosen_layers:
                shares = [
                    _slope(model, encoded, metric, layer, (step + 0.5) / steps)
                    for step in range(steps)
                ]
                mean = torch.stack(shares).mean(0)
                scores[chosen, places[layer.layer]] = mean.double().cpu().numpy()
    return Scores.of_array(
        "integrated_attribution", metric_unit(metric), scores, layers=tuple(model.moe)
    )


def _slope(
    model: MoEModel, encoded: Encoded, metric: Metric, layer: MoELayer, alpha: float
) -> Float[Tensor, "batch expert"]:
    """Minus weight times slope where the layer's contributions are scaled by `alpha`."""
    root = model.nnsight
    inputs, options = forward_arguments(model, encoded)
    if model.connection is not None:
        with torch.enable_grad(), root.trace(inputs, backend=model.backend(), **options):
            found = nnsight.save(slope_at(root, layer, alpha, metric))
        index, weights, gradient, values = found
        checked_values(values, len(encoded.input_ids), metric)
        return by_expert(layer, index, -(weights * gradient).float())
    with torch.enable_grad(), root.trace(inputs, **options):
        index = layer.expert_index.save()
        weights = layer.routing_weights.detach().save()
        scaled = (weights * alpha).requires_grad_(True).save()
        layer.routing_weights = scaled
        logits = root.output.logits[:, -1].save()
    gradient = torch.autograd.grad(metric_values(metric, logits).sum(), scaled)[0]
    return by_expert(layer, index, -(weights * gradient).float())
