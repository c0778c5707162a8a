"""Attribution: what a gradient predicts that taking an expert away would do.

To first order in its weights, zeroing an expert changes a metric by minus the sum of weight times
gradient over the slots it fills. One forward and one backward give that for all experts at once.
The prediction is local: it misses experts that stand in for each other, and saturates.

References:
    Michel, Levy and Neubig (2019), "Are Sixteen Heads Really Better than One?", section 4.1: the
    gradient with respect to a mask variable as importance. Nanda (2023), "Attribution Patching".
"""

from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor

from moe_interp.interventions import Metric, metric_unit
from moe_interp.models import MoELayer, MoEModel
from moe_interp.prompts import PromptSet
from moe_interp.scores._gradients import by_expert, gradient_scores
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
    scores = gradient_scores(
        model, prompts, metric, "routing_weights", _minus_product, batch_size=batch_size
    )
    return Scores.of_array("attribution", metric_unit(metric), scores, layers=tuple(model.moe))


def _minus_product(
    layer: MoELayer, read: dict[str, Tensor], gradient: Tensor, real: Tensor
) -> Float[Tensor, "batch expert"]:
    """Minus weight times gradient, over the slots of each expert; padding has no gradient."""
    predicted = -(read["routing_weights"] * gradient).detach().float()
    return by_expert(layer, read["expert_index"], predicted)
