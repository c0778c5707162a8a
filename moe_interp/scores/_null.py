"""The matched null: what the same change at random experts of the same layers and use would do."""

from collections.abc import Iterable, Sequence

import numpy as np
from jaxtyping import Float
from numpy import ndarray
from numpy.random import Generator

from moe_interp.experts import Expert, ExpertSet
from moe_interp.interventions import (
    Intervention,
    Metric,
    Mode,
    as_expert_set,
    as_prompt_set,
    as_recipe,
    intervention_maker,
    measure,
    metric_name,
    metric_unit,
    mode_name,
)
from moe_interp.metrics import TextMetric
from moe_interp.models import MoEModel
from moe_interp.prompts import PromptSet
from moe_interp.scores._matching import (
    Draw,
    as_scores,
    draw_counterparts,
    for_each_draw,
    mean_use,
    named_experts,
    null_p_value,
    recipes_once,
)
from moe_interp.scores._null_result import MatchedNull
from moe_interp.scores._off_target import panel
from moe_interp.scores._scores import Scores
from moe_interp.scores._side_effects import (
    OffTarget,
    SideEffect,
    difference_interval,
    welch_interval,
)

#: Experts, or interventions that name them.
Change = (
    Intervention
    | Sequence[Intervention]
    | ExpertSet
    | Iterable[Expert | tuple[int, int] | str]
    | str
)


def matched_null(
    model: MoEModel,
    prompts: PromptSet | Sequence[str],
    experts: Change,
    *,
    metric: Metric,
    match: Scores | Sequence[Scores],
    mode: Mode = "ban",
    benign: PromptSet | Sequence[str] | None = None,
    neutral: Sequence[str] | None = None,
    refusal: TextMetric | None = None,
    n_draws: int = 100,
    rng: Generator,
    max_new_tokens: int = 24,
    batch_rows: int | str = "auto",
) -> MatchedNull:
    r"""Compare a change of some experts with the same change of random experts of like use.

    The null hypothesis: these experts matter no more than others of their layers that are used
    as much. Each random counterpart replaces every expert by one of the same layer that is not in
    question, without repeats. A candidate with use :math:`f'` replaces one with :math:`f` with
    probability in proportion to :math:`\exp(-\tfrac12 (\log_2 f'/f)^2)`; given several measures
    of use, the exponents add up. A vector is compared with random directions of its length.
    Where a layer has few experts the same set is drawn more than once: it runs once, and

    .. math:: p = \max\left(\frac{1 + \#\{\text{draws}\}}{1 + n_\text{draws}},
              \frac{1 + \#\{\text{distinct}\}}{1 + n_\text{distinct}}\right)

    counts the random sets that change the mean metric at least as much, in either direction.
    No match is exact: much-used experts have none that are used as much. So the same is counted
    once more with each random set's change multiplied by how many times as much the experts in
    question are used, for each measure of use, and the largest p is given. What stands out is
    more than others both as it is and for its use. With random effects that grow with use, the
    most used experts get 0.05 or less in 0 to 9 % of cases, and by the plain count in up to 39 %;
    the worst case is eight experts of layers of 16, with 11 % (``benchmarks/RESULTS.md``). See
    `MatchedNull.match` for how close the match is. An effect on harmful prompts may also
    be one on all prompts: with `benign` prompts, `MatchedNull.specificity` tests the difference
    of the two effects against that of the same random sets.

    Args:
        model: The model.
        prompts: The prompts; not those the experts were chosen on.
        experts: The experts in question, or interventions; of several, those that name the same
            expert stay together.
        metric: What to measure.
        match: Use of every expert: `selection_frequency` or `mean_routing_weight` of a record, or
            several of them.
        mode: ``"ban"``, ``"zero"``, or a function that turns a set into an intervention. Not used
            if interventions are given.
        benign: Harmless prompts, to see what the change does to them.
        neutral: Texts whose loss should stay, see `off_target`.
        refusal: What judges answers to the harmless prompts, see `off_target`.
        n_draws: Random sets, at least 19, so that p can reach 0.05.
        rng: Source of randomness.
        max_new_tokens: How much to generate for a metric of texts and for answers.
        batch_rows: Rows in one forward.

    Returns:
        The effect, the null, how well it matches, and what changed elsewhere.

    Raises:
        ValueError: If there are no experts, one does not exist, `match` does not measure use, or
            `n_draws` is too small.
        DesignError: If a layer has no experts left to draw from, an intervention has no random
            counterpart, or harmless prompts are labelled harmful.
    """
    recipe, named, done = _as_change(experts, mode)
    prompts, scores = as_prompt_set(prompts), as_scores(match)
    if n_draws < 19:
        raise ValueError(f"`n_draws` must be at least 19, got {n_draws}: fewer cannot give 0.05.")
    for one in recipe:
        one.check(model)
    draws = draw_counterparts(recipe, scores, n_draws, rng)
    use = mean_use(named, scores)
    null_use = np.array([mean_use(draw.experts, scores) for draw in draws])
    once = measure(
        model,
        prompts,
        recipes_once(recipe, draws),
        metric,
        max_new_tokens=max_new_tokens,
        batch_size=batch_rows,
    )
    measured = for_each_draw(once, draws)
    mean = measured.mean(axis=1)
    low, high = difference_interval(measured[1] - measured[0])
    elsewhere = None
    if benign is not None or neutral is not None:
        elsewhere = panel(
            model,
            recipe,
            draws,
            benign=benign,
            neutral=neutral,
            metric=metric,
            refusal=refusal,
            max_new_tokens=max_new_tokens,
            batch_size=batch_rows,
        )
    return MatchedNull(
        experts=named,
        metric=metric_name(metric),
        unit=metric_unit(metric),
        mode=done,
        n_prompts=len(prompts),
        baseline=float(mean[0]),
        observed=float(mean[1]),
        low=low,
        high=high,
        null=mean[2:],
        sets=tuple(draw.experts for draw in draws),
        p_value=null_p_value(
            mean[1] - mean[0], mean[2:] - mean[0], draws, use=use, null_use=null_use
        ),
        n_distinct=len({draw.key for draw in draws}),
        matched_on=tuple(score.name for score in scores),
        use=use,
        null_use=null_use,
        off_target=elsewhere,
        specificity=None
        if benign is None
        else _specificity(measured, elsewhere, draws, metric, use, null_use),
    )


def _as_change(experts: Change, mode: Mode) -> tuple[tuple[Intervention, ...], ExpertSet, str]:
    """The interventions, the experts they name, and what they are called."""
    given = experts if isinstance(experts, Intervention | ExpertSet | str) else tuple(experts)
    if isinstance(given, Intervention) or (
        isinstance(given, tuple) and any(isinstance(one, Intervention) for one in given)
    ):
        recipe = as_recipe(given)
        return recipe, named_experts(recipe), " + ".join(type(one).__name__ for one in recipe)
    chosen = as_expert_set(given)
    if not len(chosen):
        raise ValueError("`experts` is empty. Give at least one expert to compare.")
    return (intervention_maker(mode)(chosen),), chosen, mode_name(mode)


def _specificity(
    measured: Float[ndarray, "recipe prompt"],
    elsewhere: OffTarget,
    draws: Sequence[Draw],
    metric: Metric,
    use: Float[ndarray, " score"],
    null_use: Float[ndarray, "draw score"],
) -> SideEffect:
    """The effect less that on harmless prompts, for the change and for each counterpart."""
    benign = elsewhere[f"benign_{metric_name(metric)}"]
    there = np.array([benign.observed, *benign.null]) - benign.baseline
    contrast = measured[1:].mean(axis=1) - measured[0].mean() - there
    difference = measured[1] - measured[0]
    low, high = welch_interval(difference, benign.difference)
    return SideEffect(
        name="specificity",
        unit=metric_unit(metric),
        of="prompts less benign prompts",
        n=len(difference) + benign.n,
        baseline=0.0,
        observed=float(contrast[0]),
        low=low,
        high=high,
        difference=difference,
        null=contrast[1:],
        p_value=null_p_value(float(contrast[0]), contrast[1:], draws, use=use, null_use=null_use),
    )
