"""Siddiky (2026): activation and gradient scores by group, and what suppressing experts does."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from einops import rearrange
from jaxtyping import Float
from numpy import ndarray
from numpy.random import Generator

from moe_interp.capture import record_routing
from moe_interp.experts import ExpertSet
from moe_interp.metrics import RefusalLogOdds
from moe_interp.models import MoEModel
from moe_interp.prompts import PromptSet
from moe_interp.scores import Scores, gradient_sensitivity, selection_frequency
from moe_interp.scores._gradients import require_gradients
from moe_interp.stats import Concentration, PairedTest, concentration, paired_permutation_test
from moe_interp.studies._causal import (
    Arm,
    judge,
    of_prompts,
    planted_experts,
    refusal_of,
    smallest_p,
    unit_means,
)
from moe_interp.studies._result import StudyResult
from moe_interp.studies._study import Study

NAME, PAPER = "siddiky2026", "Siddiky (2026)"
GROUPS = ("benign", "harmful")
STATUS = {
    "activation score": "our reconstruction from secondary notes (selection frequency by group)",
    "gradient score": "our reconstruction from secondary notes (mean |d metric / d router logit|)",
    "metric of the gradient": "our reconstruction (refusal log-odds of the next token)",
    "entropy, effective experts, k80/k90/k95": "secondary notes",
    "dominance": "our reconstruction (difference of the group scores)",
    "suppression of the top n": "secondary notes; the experts are banned from the choice",
}


@dataclass(frozen=True)
class _Measured:
    """One score of all prompts.

    Attributes:
        name: ``"activation"`` or ``"gradient"``.
        scores: The score of each prompt.
        tokens: Tokens of each prompt, which the group means weight by.
    """

    name: str
    scores: Scores
    tokens: Float[ndarray, " prompt"]


def siddiky2026(
    model: MoEModel,
    prompts: PromptSet,
    *,
    rng: Generator,
    n_suppressed: int = 5,
    n_top: int = 10,
    n_null: int = 100,
    n_resamples: int = 1999,
    alpha: float = 0.05,
    openers: Sequence[str] | None = None,
) -> StudyResult:
    r"""Score experts by group, by use and by gradient, and suppress those that a group prefers.

    For each group :math:`g` (benign, harmful) the activation score is
    :math:`A_g = \sum_{x,t} 1[e \in \mathrm{top}_k] / \sum_x T_x` and the gradient score
    :math:`G_g = \mathrm{mean}_{x,t} |\partial m / \partial z_{t,e}|`, with :math:`m` the log-odds
    of a refusal and :math:`z` the router's logits. Dominance is the difference of the groups.
    These formulas are our reconstruction: the paper's own were not at hand.

    Added here: experts are chosen on half of the prompts and suppressed on the other half, beside
    random experts of the same layers and use; dominance is tested over exchange units with
    correction for all experts; both directions of dominance are suppressed.

    Args:
        model: The model.
        prompts: Harmful and harmless prompts, in pairs or sharing wordings.
        rng: Source of randomness.
        n_suppressed: Experts to suppress by each score.
        n_top: Size of the top sets whose overlap between groups is given.
        n_null: Random expert sets in each matched null.
        n_resamples: Sign patterns in the tests of dominance.
        alpha: Level of the classification.
        openers: Words that open a refusal; by default the card's or the usual.

    Returns:
        Scores, concentrations, classes, overlaps and the four suppressions.

    Raises:
        PromptError: If prompts lack harm or hang together in one unit.
        DesignError: If fewer than two units have harmful and harmless prompts.
        ValueError: If a number is out of range.

    References:
        Siddiky (2026), "Safety-Oriented Routing Analysis of Mixtral MoE", arXiv 2605.24270.

    Example:
        >>> import moe_interp as mi
        >>> model = mi.load_model("organism:harm")
        >>> prompts = mi.load_prompts("organism", per_topic=4)
        >>> result = siddiky2026(model, prompts, rng=np.random.default_rng(0), n_null=19)
        >>> result.arm("activation_harmful_dominant").null.observed
        0.0
    """
    require_gradients(model)
    prompts = prompts.balanced()
    first, second = prompts.split(rng=rng)
    metric = refusal_of(model, openers)
    use, measured = _measure(model, prompts, metric)
    tests = {one.name: _test(one, prompts, n_resamples, rng) for one in measured}
    dominance = {one.name: _dominance(one, prompts, first) for one in measured}
    changes = {
        f"{name}_{direction}_dominant": _largest(sign * scores.mean, scores, n_suppressed)
        for name, scores in dominance.items()
        for direction, sign in (("benign", 1), ("harmful", -1))
    }
    arms = judge(model, second, changes, metric=metric, match=use, n_null=n_null, rng=rng)
    spread = _concentrations(measured, prompts)
    overlap = {one.name: _overlap(one, prompts, n_top) for one in measured}
    return STUDY.result(
        model,
        prompts,
        rng,
        settings={
            "n_suppressed": n_suppressed,
            "n_top": n_top,
            "n_null": n_null,
            "n_resamples": n_resamples,
            "alpha": alpha,
            "chosen on": len(first),
            "judged on": len(second),
        },
        answers=(
            *_said_of_spread(spread, overlap, n_top),
            *(_said_of_test(name, test, alpha) for name, test in tests.items()),
            *(arm.sentence() for arm in arms),
        ),
        numbers={
            "coverage": {name: found.coverage for name, found in spread.items()},
            "overlap": overlap,
            "chance_overlap": n_top / use.mean.size,
            "chosen": {name: [str(e) for e in experts] for name, experts in changes.items()},
        },
        tables={
            "experts": _expert_table(measured, prompts, tests, arms, alpha),
            "layers": _layer_table(spread),
        },
        arms=arms,
        maps={
            "Activation score: harmful less benign": "activation_difference",
            "Gradient score: harmful less benign": "gradient_difference",
        },
        truth=tuple(map(str, planted_experts(model))),
    )


def _measure(
    model: MoEModel, prompts: PromptSet, metric: RefusalLogOdds
) -> tuple[Scores, list[_Measured]]:
    record = record_routing(model, prompts, spans=("prompt",), n_random_routers=0, progress=False)
    tokens = record.n_slots("prompt") / record.top_k
    use = selection_frequency(record, span="prompt")
    slope = gradient_sensitivity(model, prompts, metric=metric)
    return use, [_Measured("activation", use, tokens), _Measured("gradient", slope, tokens)]


def _group(one: _Measured, prompts: PromptSet, *, harm: bool) -> Float[ndarray, "layer expert"]:
    """The group's mean over tokens: prompts count by their length."""
    chosen = prompts.harm == harm
    return np.average(one.scores.array.values[chosen], axis=0, weights=one.tokens[chosen])


def _dominance(one: _Measured, prompts: PromptSet, chosen: PromptSet) -> Scores:
    """Benign less harmful, on the prompts that experts are chosen on."""
    inside = np.isin(prompts.ids, chosen.ids)
    kept = _Measured(one.name, of_prompts(one.scores, prompts, chosen), one.tokens[inside])
    difference = _group(kept, chosen, harm=False) - _group(kept, chosen, harm=True)
    return Scores.of_array("dominance", one.scores.unit, difference, layers=one.scores.layers)


def _largest(values: Float[ndarray, "layer expert"], like: Scores, n: int) -> ExpertSet:
    """The `n` largest of those above 0: an expert that a group does not prefer is not dominant.

    What is within rounding of 0 is none.
    """
    scores = Scores.of_array(like.name, like.unit, values, layers=like.layers)
    least = 1e-9 * np.abs(values).max()
    return ExpertSet(expert for expert, value in scores.top(n) if value > least)


def _test(one: _Measured, prompts: PromptSet, n_resamples: int, rng: Generator) -> PairedTest:
    flat = rearrange(one.scores.array.values, "prompt layer expert -> prompt (layer expert)")
    harmful, benign = unit_means(flat, prompts)
    return paired_permutation_test(harmful, benign, n_resamples=n_resamples, rng=rng)


def _overlap(one: _Measured, prompts: PromptSet, n_top: int) -> float:
    tops = [
        set(_largest(_group(one, prompts, harm=harm), one.scores, n_top)) for harm in (False, True)
    ]
    return len(tops[0] & tops[1]) / n_top


def _concentrations(measured: list[_Measured], prompts: PromptSet) -> dict[str, Concentration]:
    return {
        f"{one.name} {group}": concentration(
            _group(one, prompts, harm=group == "harmful"), layers=one.scores.layers
        )
        for one in measured
        for group in GROUPS
    }


def _expert_table(
    measured: list[_Measured],
    prompts: PromptSet,
    tests: dict[str, PairedTest],
    arms: tuple[Arm, ...],
    alpha: float,
) -> pd.DataFrame:
    table = measured[0].scores.to_frame()[["layer", "expert"]]
    for one in measured:
        benign, harmful = (_group(one, prompts, harm=harm).ravel() for harm in (False, True))
        test = tests[one.name]
        differs = test.p_adjusted <= alpha
        table[f"{one.name}_benign"] = benign
        table[f"{one.name}_harmful"] = harmful
        table[f"{one.name}_difference"] = harmful - benign
        table[f"{one.name}_p"] = test.p_value
        table[f"{one.name}_p_adjusted"] = test.p_adjusted
        table[f"{one.name}_class"] = np.select(
            [differs & (test.effect > 0), differs & (test.effect < 0)],
            ["harmful-dominant", "benign-dominant"],
            "shared",
        )
    places = [f"L{layer}E{e}" for layer, e in zip(table["layer"], table["expert"], strict=True)]
    for arm in arms:
        chosen = {str(expert) for expert in arm.null.experts}
        table[arm.name] = [place in chosen for place in places]
    return table


def _layer_table(spread: dict[str, Concentration]) -> pd.DataFrame:
    frames = [found.to_frame().assign(score=name) for name, found in spread.items()]
    return pd.concat(frames, ignore_index=True)


def _said_of_spread(
    spread: dict[str, Concentration], overlap: dict[str, float], n_top: int
) -> list[str]:
    said = [f"{name} score: {found.summary()}" for name, found in spread.items()]
    shared = ", ".join(f"{part:.0%} by {name}" for name, part in overlap.items())
    return [*said, f"The top {n_top} of both groups share {shared}."]


def _said_of_test(name: str, test: PairedTest, alpha: float) -> str:
    more, less = (
        int(((test.p_adjusted <= alpha) & (sign * test.effect > 0)).sum()) for sign in (1, -1)
    )
    return (
        f"By {name}, {more} experts are harmful-dominant, {less} benign-dominant and "
        f"{len(test.effect) - more - less} shared at the {alpha:.0%} level after correction "
        f"({test.n_pairs} exchange units, with which no p-value is below {smallest_p(test):.2g})."
    )


STUDY = Study(
    name=NAME,
    paper=PAPER,
    arxiv="2605.24270",
    claim="Safety-related routing of Mixtral is subtle, depends on depth and is distributed; "
    "suppressing the top benign-dominant experts lowers restricted responses.",
    status=STATUS,
    adds="held-out prompts, matched random experts, both directions of dominance, "
    "permutation tests over exchange units, McNemar's test",
    run=siddiky2026,
)
