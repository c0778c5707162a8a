"""What interventions do where they should do nothing: harmless prompts and neutral text."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float
from numpy import ndarray

from moe_interp.errors import DesignError
from moe_interp.interventions import (
    Intervention,
    Metric,
    RunResult,
    as_prompt_set,
    as_recipe,
    measure,
    metric_name,
    metric_unit,
    run,
    text_losses,
)
from moe_interp.metrics import RefusalRate, TextMetric
from moe_interp.models import MoEModel
from moe_interp.prompts import PromptSet
from moe_interp.scores._matching import Draw, for_each_draw, null_p_value, recipes_once
from moe_interp.scores._side_effects import (
    BENIGN,
    NEUTRAL,
    OffTarget,
    SideEffect,
    difference_interval,
)


def off_target(
    model: MoEModel,
    interventions: Intervention | Sequence[Intervention],
    *,
    benign: PromptSet | Sequence[str] | None = None,
    neutral: Sequence[str] | None = None,
    metric: Metric | None = None,
    refusal: TextMetric | None = None,
    max_new_tokens: int = 24,
    batch_size: int | str = "auto",
) -> OffTarget:
    """Measure in one call what interventions change that they should not.

    On harmless prompts: the metric of the study, how many answers become refusals
    (over-refusal), how many greedy answers differ at all, and how many of their tokens are
    different ones (distinct-1: a model that repeats itself has few). On neutral texts: the loss
    that perplexity is the exponential of. With random counterparts beside each number,
    `matched_null` calls this too.

    Args:
        model: The model.
        interventions: What to change, applied in list order.
        benign: Harmless prompts.
        neutral: Texts to be foretold, read as they are; they need not be answered.
        metric: A further number of the harmless prompts: the one whose change is wanted elsewhere.
        refusal: What judges whether an answer is a refusal; `RefusalRate()` if not given.
        max_new_tokens: Tokens of an answer.
        batch_size: Rows in one forward; ``"auto"`` fills batches up to a number of tokens.

    Returns:
        The numbers, each with its interval.

    Raises:
        DesignError: If neither harmless prompts nor neutral texts are given, or some of the
            harmless prompts are labelled harmful.
        ValueError: If an intervention does not fit the model or the prompts.

    References:
        Röttger et al. (2024), "XSTest", for over-refusal; Li et al. (2016), "A Diversity-Promoting
        Objective Function for Neural Conversation Models", section 5, for distinct-1.

    Example:
        >>> import moe_interp as mi
        >>> model = mi.load_model("organism:topic")
        >>> prompts = mi.load_prompts("organism", per_topic=2)
        >>> harmless = prompts.select(~prompts.harm)
        >>> panel = off_target(model, mi.Ban("L3E8,L3E9"), benign=harmless)
        >>> panel["over_refusal"].observed, panel["answers_changed"].observed
        (0.0, 0.0)
    """
    return panel(
        model,
        as_recipe(interventions),
        (),
        benign=benign,
        neutral=neutral,
        metric=metric,
        refusal=refusal,
        max_new_tokens=max_new_tokens,
        batch_size=batch_size,
    )


def panel(
    model: MoEModel,
    recipe: tuple[Intervention, ...],
    draws: Sequence[Draw],
    *,
    benign: PromptSet | Sequence[str] | None,
    neutral: Sequence[str] | None,
    metric: Metric | None,
    refusal: TextMetric | None,
    max_new_tokens: int,
    batch_size: int | str,
) -> OffTarget:
    """Measure the panel of a recipe, and of random counterparts where no text is written."""
    if benign is None and neutral is None:
        raise DesignError(
            "There is nothing to look at off target: give `benign` prompts, `neutral` texts, or "
            "both."
        )
    recipes = recipes_once(recipe, draws)
    found: list[SideEffect] = []
    if benign is not None:
        prompts = _harmless(benign)
        if metric is not None:
            measured = measure(
                model,
                prompts,
                recipes,
                metric,
                max_new_tokens=max_new_tokens,
                batch_size=batch_size,
            )
            name, unit = f"benign_{metric_name(metric)}", metric_unit(metric)
            found.append(_beside(name, unit, BENIGN, measured, draws))
        found += _of_answers(
            model, prompts, recipe, refusal or RefusalRate(), max_new_tokens, batch_size
        )
    if neutral is not None:
        losses = text_losses(model, neutral, recipes, batch_size=batch_size)
        found.append(_beside("neutral_loss", "nats/token", NEUTRAL, losses, draws))
    return OffTarget(tuple(map(repr, recipe)), tuple(found))


def _harmless(benign: PromptSet | Sequence[str]) -> PromptSet:
    prompts = as_prompt_set(benign)
    wrong = [prompt.id for prompt in prompts if prompt.harm]
    if wrong:
        raise DesignError(
            f"{len(wrong)} of the {len(prompts)} `benign` prompts are labelled harmful, the first "
            f"is {wrong[0]!r}. Give harmless ones: prompts.select(~prompts.harm)."
        )
    return prompts


def _of_answers(
    model: MoEModel,
    prompts: PromptSet,
    recipe: tuple[Intervention, ...],
    refusal: TextMetric,
    max_new_tokens: int,
    batch_size: int | str,
) -> tuple[SideEffect, ...]:
    before, after = (
        run(model, prompts, change, max_new_tokens=max_new_tokens, batch_size=batch_size)
        for change in ((), recipe)
    )
    return compare_answers(before, after, refusal=refusal)


def compare_answers(
    before: RunResult, after: RunResult, *, refusal: TextMetric | None = None
) -> tuple[SideEffect, ...]:
    """Compare the answers of two models, or of one with and without a change, prompt by prompt.

    Args:
        before: The answers of the first to harmless prompts.
        after: Those of the second to the same prompts.
        refusal: What judges whether an answer is a refusal; `RefusalRate()` if not given.

    Returns:
        Over-refusal, answers changed and distinct-1, as in `off_target`.

    Raises:
        DesignError: If the prompts differ, some are labelled harmful, or there are no texts.
    """
    if before.prompts != after.prompts:
        raise DesignError("`before` and `after` answer other prompts; run both on the same.")
    if before.tokens is None or after.tokens is None:
        raise DesignError("There are no texts to compare: run with `max_new_tokens` above 0.")
    _harmless(before.prompts)
    judge = refusal or RefusalRate()
    refused = np.stack([judge.of_texts(one.texts) for one in (before, after)])
    differ = [old != new for old, new in zip(before.tokens, after.tokens, strict=True)]
    changed = np.stack([np.zeros(len(differ)), np.array(differ, dtype=float)])
    distinct = np.array(
        [[len(set(row)) / len(row) for row in one.tokens] for one in (before, after)]
    )
    share = "fraction of prompts"
    return (
        _beside("over_refusal", share, BENIGN, refused),
        _beside("answers_changed", share, BENIGN, changed),
        _beside("distinct_1", "fraction of an answer's tokens", BENIGN, distinct),
    )


def _beside(
    name: str,
    unit: str,
    of: str,
    measured: Float[ndarray, "recipe prompt"],
    draws: Sequence[Draw] = (),
) -> SideEffect:
    """Average over prompts, and set the effect beside those of random counterparts, if any."""
    mean = for_each_draw(measured, draws).mean(axis=1)
    difference = measured[1] - measured[0]
    low, high = difference_interval(difference)
    null, p_value = None, None
    if draws:
        null = mean[2:]
        p_value = null_p_value(mean[1] - mean[0], null - mean[0], draws)
    return SideEffect(
        name=name,
        unit=unit,
        of=of,
        n=len(difference),
        baseline=float(mean[0]),
        observed=float(mean[1]),
        low=low,
        high=high,
        difference=difference,
        null=null,
        p_value=p_value,
    )
