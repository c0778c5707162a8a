"""Ablation effects: what taking each expert away, alone, really does."""

from collections.abc import Iterable, Sequence

import numpy as np

from moe_interp.experts import Expert, ExpertSet
from moe_interp.interventions import (
    Metric,
    Mode,
    as_expert_set,
    as_prompt_set,
    check_experts,
    measure_many,
    metric_unit,
)
from moe_interp.models import MoEModel
from moe_interp.prompts import PromptSet
from moe_interp.scores._scores import Scores


def ablation_effect(
    model: MoEModel,
    prompts: PromptSet | Sequence[str],
    *,
    metric: Metric,
    mode: Mode = "ban",
    experts: ExpertSet | Iterable[Expert | tuple[int, int] | str] | str = "all",
    max_new_tokens: int = 24,
    batch_rows: int | str = "auto",
) -> Scores:
    """Measure what taking each expert away, alone, does to the metric of each prompt.

    Exact, one expert at a time, many of them in one batch. Experts that stand in for each other
    show no effect alone; `greedy_ablation` finds those.

    Args:
        model: The model.
        prompts: The prompts.
        metric: What to measure.
        mode: ``"ban"``, ``"zero"``, or a function that turns a set into an intervention.
        experts: The experts to take away, or ``"all"``.
        max_new_tokens: How much to generate for a metric of texts; else not used.
        batch_rows: Rows in one forward.

    Returns:
        Metric without the expert minus metric with it, for each prompt and expert; NaN for
        experts that were not asked for.

    Raises:
        ValueError: If a layer or expert does not exist, or the metric or mode does not fit.
    """
    prompts = as_prompt_set(prompts)
    layers, n_experts = tuple(model.moe), model.architecture.n_experts
    if isinstance(experts, str) and experts == "all":
        chosen = [Expert(layer, expert) for layer in layers for expert in range(n_experts)]
    else:
        asked = as_expert_set(experts)
        check_experts(model, asked)
        chosen = list(asked)
    sets = [ExpertSet(), *(ExpertSet([expert]) for expert in chosen)]
    measured = measure_many(
        model,
        prompts,
        sets,
        metric=metric,
        mode=mode,
        max_new_tokens=max_new_tokens,
        batch_rows=batch_rows,
    )
    effects = np.full((len(prompts), len(layers), n_experts), np.nan)
    for expert, without in zip(chosen, measured[1:], strict=True):
        effects[:, layers.index(expert.layer), expert.expert] = without - measured[0]
    return Scores.of_array("ablation_effect", metric_unit(metric), effects, layers=layers)
