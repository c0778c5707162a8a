"""Measure recipes: one number for each recipe and prompt, by a metric of logits or of texts."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from moe_interp.interventions._rows import Outcome, Recipe, outcomes
from moe_interp.interventions._run import decode_texts
from moe_interp.metrics import LogitMetric, TextMetric
from moe_interp.models import MoEModel
from moe_interp.prompts import PromptSet

#: What judges a run: one of `moe_interp.metrics`, or any function of next-token logits.
Metric = LogitMetric | TextMetric | Callable[[Tensor], Tensor]


def measure(
    model: MoEModel,
    prompts: PromptSet,
    recipes: Sequence[Recipe],
    metric: Metric,
    *,
    max_new_tokens: int,
    batch_size: int | str,
) -> Float[np.ndarray, "recipe prompt"]:
    """Measure every prompt under every recipe.

    Args:
        model: The model.
        prompts: The prompts.
        recipes: Lists of interventions.
        metric: What to measure.
        max_new_tokens: How much to generate for a metric of texts.
        batch_size: Rows in one forward.

    Returns:
        The measured numbers.

    Raises:
        ValueError: If the metric returns something other than one number a row, or what
            `outcomes` refuses.
    """
    of_texts = isinstance(metric, TextMetric)
    if of_texts and max_new_tokens < 1:
        raise ValueError(
            f"{metric_name(metric)} judges texts, so `max_new_tokens` must be at least 1, got "
            f"{max_new_tokens}."
        )
    measured = np.full((len(recipes), len(prompts)), np.nan)
    new_tokens = max_new_tokens if of_texts else 0
    there = metric if judged_there(model, metric) else None
    for outcome in outcomes(
        model, prompts, recipes, max_new_tokens=new_tokens, batch_size=batch_size, metric=there
    ):
        measured[outcome.recipe, outcome.prompt] = _judged(model, outcome, metric)
    return measured


def judged_there(model: MoEModel, metric: Metric) -> bool:
    """Whether a metric is made of the logits on the model's server, so that they need not travel.

    Those of this package are known to work from what a server has; a user's own are made here.
    """
    own = type(metric).__module__ == LogitMetric.__module__
    return model.connection is not None and isinstance(metric, LogitMetric) and own


def metric_name(metric: Metric) -> str:
    """What a metric is called: its `name`, or the name of the function."""
    return getattr(metric, "name", None) or getattr(metric, "__name__", type(metric).__name__)


def metric_unit(metric: Metric) -> str:
    """The unit of a metric; empty for a plain function."""
    return getattr(metric, "unit", "")


def checked_values(values: Any, n_rows: int, metric: Metric) -> Tensor:  # noqa: ANN401
    """The numbers a metric of logits gave, if there is one for each row and none is NaN.

    Raises:
        ValueError: If there is not.
    """
    if not isinstance(values, Tensor) or tuple(values.shape) != (n_rows,):
        got = tuple(values.shape) if isinstance(values, Tensor) else type(values).__name__
        raise ValueError(
            f"`metric` {metric_name(metric)!r} must turn logits (batch, d_vocab) into one number "
            f"for each of the {n_rows} rows, shape ({n_rows},), got {got}."
        )
    if bool(values.isnan().any()):
        raise ValueError(
            f"`metric` {metric_name(metric)!r} gives NaN for {int(values.isnan().sum())} of "
            f"{n_rows} rows, whose logits are numbers. Let it give a number for every prompt."
        )
    return values


def _judged(model: MoEModel, outcome: Outcome, metric: Metric) -> Float[np.ndarray, " batch"]:
    if isinstance(metric, TextMetric):
        judged = np.asarray(metric.of_texts(decode_texts(model, outcome.tokens)), dtype=float)
        if judged.shape != outcome.prompt.shape or np.isnan(judged).any():
            got = judged.tolist() if judged.shape == outcome.prompt.shape else judged.shape
            raise ValueError(
                f"`metric` {metric_name(metric)!r} must judge each of the {len(outcome.prompt)} "
                f"texts by one number, shape ({len(outcome.prompt)},), got {got}."
            )
        return judged
    if outcome.values is not None:
        return outcome.values.double().cpu().numpy()
    with torch.no_grad():
        values = checked_values(metric(outcome.logits), len(outcome.prompt), metric)
    return values.double().cpu().numpy()
