"""How a metric answers to the router's logits: gradients before the choice of experts."""

from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor

from moe_interp.interventions import Metric, metric_unit
from moe_interp.models import MoELayer, MoEModel
from moe_interp.prompts import PromptSet
from moe_interp.scores._gradients import gradient_scores
from moe_interp.scores._scores import Scores

_KINDS = ("magnitude", "input")


def gradient_sensitivity(
    model: MoEModel,
    prompts: PromptSet | Sequence[str],
    *,
    metric: Metric,
    kind: str = "magnitude",
    batch_size: int | str = "auto",
) -> Scores:
    r"""Measure how much the metric of each prompt answers to each expert's router logit.

    ``"magnitude"`` is :math:`\frac1T \sum_t |\partial m / \partial z_{t,e}|` over the real tokens;
    ``"input"`` is :math:`\sum_t z_{t,e}\, \partial m / \partial z_{t,e}`. A gradient sees how the
    weights of the chosen experts shift, not that another expert would be chosen: an expert that
    no token chose has a slope only where the weights are a softmax over all experts. Routers
    whose weights do not depend on small changes (sparsemixer) have none at all.

    Args:
        model: The model.
        prompts: The prompts.
        metric: A differentiable metric of next-token logits.
        kind: ``"magnitude"`` or ``"input"``.
        batch_size: Prompts a batch; ``"auto"`` fills batches up to a number of tokens.

    Returns:
        The score of each prompt and expert; per unit of logit for ``"magnitude"``.

    Raises:
        ValueError: If the kind is unknown, or the metric judges texts, does not give one number a
            prompt, or cannot be differentiated.

    References:
        Siddiky (2026), "Safety-Oriented Routing Analysis of Mixtral MoE", arXiv 2605.24270: ranks
        experts by gate sensitivity; this formula is a reconstruction, the paper's own was not at
        hand. Shrikumar et al. (2017), "Learning Important Features Through Propagating Activation
        Differences": gradient times input.

    Example:
        >>> import moe_interp as mi
        >>> model = mi.load_model("organism:topic")
        >>> prompts = ["how do i open the lock to start an attack ?"]
        >>> metric = mi.RefusalLogOdds(model.tokenizer)
        >>> scores = mi.gradient_sensitivity(model, prompts, metric=metric)
        >>> scores.array.shape
        (1, 4, 16)
    """
    if kind not in _KINDS:
        raise ValueError(f"`kind` must be one of {_KINDS}, got {kind!r}.")
    per_layer = _magnitude if kind == "magnitude" else _input_times_gradient
    scores = gradient_scores(
        model, prompts, metric, "router_logits", per_layer, batch_size=batch_size
    )
    return Scores.of_array(
        f"gradient_sensitivity ({kind})", metric_unit(metric), scores, layers=tuple(model.moe)
    )


def _magnitude(
    layer: MoELayer, read: dict[str, Tensor], gradient: Tensor, real: Tensor
) -> Float[Tensor, "batch expert"]:
    tokens = real[..., None].to(gradient.dtype)
    return (gradient.abs() * tokens).sum(1) / tokens.sum(1)


def _input_times_gradient(
    layer: MoELayer, read: dict[str, Tensor], gradient: Tensor, real: Tensor
) -> Float[Tensor, "batch expert"]:
    return (read["router_logits"] * gradient * real[..., None]).sum(1)
