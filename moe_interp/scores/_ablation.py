"""Ablation effects: what taking each expert away, alone, really does."""

from collections.abc import Iterable, Sequence

from moe_interp.experts import Expert, ExpertSet
from moe_interp.interventions import Metric, Mode
from moe_interp.models import MoEModel
from moe_interp.prompts import PromptSet
from moe_interp.scores._scores import Scores
from moe_interp.scores._sweep import sweep


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

    This is `sweep` by banning: another expert is chosen instead. Experts that stand in for each
    other show no effect alone; `greedy_ablation` finds those.

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
    swept = sweep(
        model,
        prompts,
        metric=metric,
        mode=mode,
        experts=experts,
        max_new_tokens=max_new_tokens,
        batch_size=batch_rows,
    )
    return Scores("ablation_effect", swept.unit, swept.array.rename("ablation_effect"))
