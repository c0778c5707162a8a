"""SteerMoE (2025): risk difference of paired prompts, and steering router logits by margins."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from einops import rearrange
from jaxtyping import Float, Int
from numpy import ndarray
from numpy.random import Generator

from moe_interp.capture import record_routing
from moe_interp.experts import Expert, ExpertSet
from moe_interp.interventions import Intervention, Steer
from moe_interp.models import MoEModel
from moe_interp.prompts import PromptSet
from moe_interp.scores import Scores, selection_frequency
from moe_interp.stats import PairedTest, paired_permutation_test
from moe_interp.studies._causal import (
    Arm,
    judge,
    planted_experts,
    rank_of_truth,
    refusal_of,
    said_of_ranks,
    smallest_p,
    unit_means,
    units_of,
)
from moe_interp.studies._result import StudyResult
from moe_interp.studies._study import Study

NAME, PAPER = "steermoe2025", "SteerMoE (2025)"
STATUS = {
    "risk difference, pooled over tokens": "read in code",
    "steering to the highest score + 0.01 or the lowest - 0.01": "read in code; set on logits, "
    "which for a softmax router is the same",
    "at most top-k activated experts a layer": "read in code",
    "pairs of harmful and harmless prompts": "our reconstruction (the paper pairs safe and unsafe "
    "responses; pass prompts with responses and span='response' for that)",
}


def steermoe2025(
    model: MoEModel,
    prompts: PromptSet,
    *,
    rng: Generator,
    span: str = "user",
    n_activated: int = 5,
    n_deactivated: int = 5,
    n_bootstrap: int = 1000,
    n_resamples: int = 1999,
    n_null: int = 100,
    openers: Sequence[str] | None = None,
) -> StudyResult:
    r"""Rank experts by how much more often harmful prompts choose them, and steer routing by it.

    :math:`\Delta(l, e) = A_1 / N_1 - A_2 / N_2`: the part of the tokens of a span that choose the
    expert, pooled over harmful (1) and over harmless prompts (2). Experts with positive
    :math:`\Delta` go with harmful prompts and so with refusing them, those with negative with
    answering. Steering sets, token by token, the logit of an activated expert to the highest
    plus 0.01 and that of a deactivated one to the lowest minus 0.01.

    The pairing by harm is our reconstruction: the paper pairs two responses to one question. Added
    here: intervals that draw exchange units again, not tokens; a paired test corrected for all
    experts; held-out prompts; the same steering of random experts of like use.

    Args:
        model: The model.
        prompts: Harmful and harmless prompts, in pairs or sharing wordings.
        rng: Source of randomness.
        span: The tokens that count.
        n_activated: Experts to activate.
        n_deactivated: Experts to deactivate.
        n_bootstrap: Draws of the intervals.
        n_resamples: Sign patterns in the paired test.
        n_null: Random counterparts of each steering.
        openers: Words that open a refusal; by default the card's or the usual.

    Returns:
        Risk differences with intervals and p-values, and four steerings.

    Raises:
        PromptError: If prompts lack harm or hang together in one unit.
        DesignError: If fewer than two units have harmful and harmless prompts.
        SpanError: If there is no such span.
        ValueError: If a number is out of range.

    References:
        Fayyaz et al. (2025), "Steering MoE LLMs via Expert (De)Activation", arXiv 2509.09660.

    Example:
        >>> import moe_interp as mi
        >>> model = mi.load_model("organism:harm")
        >>> prompts = mi.load_prompts("organism", per_topic=4)
        >>> result = steermoe2025(model, prompts, rng=np.random.default_rng(0), n_null=19)
        >>> result.arm("deactivate_positive").null.observed
        0.0
    """
    prompts = prompts.balanced()
    first, second = prompts.split(rng=rng)
    record = record_routing(
        model, prompts, spans=tuple({span, "prompt"}), n_random_routers=0, progress=False
    )
    record.check_every_prompt(span)
    frequency = selection_frequency(record, span=span)
    tokens = record.n_slots(span) / record.top_k
    inside = np.isin(prompts.ids, first.ids)
    flat = rearrange(frequency.array.values, "prompt layer expert -> prompt (layer expert)")
    delta = _risk_difference(flat[inside], tokens[inside], first.harm)
    low, high = _interval(flat[inside], tokens[inside], first, n_bootstrap, rng)
    harmful, harmless = unit_means(flat[inside], first)
    test = paired_permutation_test(harmful, harmless, n_resamples=n_resamples, rng=rng)
    scores = Scores.of_array(
        "risk_difference",
        "difference of fractions of tokens",
        delta.reshape(frequency.mean.shape),
        layers=frequency.layers,
    )
    positive, negative = _signed(scores, 1), _signed(scores, -1)
    arms = judge(
        model,
        second,
        _steerings(positive, negative, n_activated, n_deactivated, record.top_k),
        metric=refusal_of(model, openers),
        match=selection_frequency(record, span="prompt"),
        n_null=n_null,
        rng=rng,
        raises=("activate_positive",),
    )
    ranked = rank_of_truth(scores, planted_experts(model), use=frequency, rng=rng)
    return STUDY.result(
        model,
        prompts,
        rng,
        settings={
            "span": span,
            "n_activated": n_activated,
            "n_deactivated": n_deactivated,
            "n_bootstrap": n_bootstrap,
            "n_resamples": n_resamples,
            "n_null": n_null,
        },
        answers=(
            *_said(scores, test),
            *said_of_ranks({"risk_difference": ranked}),
            *(arm.sentence() for arm in arms),
            *_benign(arms),
        ),
        numbers={
            "positive": [str(expert) for expert in positive[:n_deactivated]],
            "negative": [str(expert) for expert in negative[:n_activated]],
            "rank_of_truth": ranked.to_dict() if ranked else None,
        },
        tables={"experts": _table(scores, low, high, test)},
        arms=arms,
        maps={"Risk difference: harmful less harmless": "risk_difference"},
        truth=tuple(map(str, planted_experts(model))),
    )


def _risk_difference(
    frequency: Float[ndarray, "prompt expert"],
    tokens: Float[ndarray, " prompt"],
    harm: ndarray,
) -> Float[ndarray, " expert"]:
    """Pooled over tokens: prompts count by their length."""
    mean = [
        np.average(frequency[harm == level], axis=0, weights=tokens[harm == level])
        for level in (True, False)
    ]
    return mean[0] - mean[1]


def _interval(
    frequency: Float[ndarray, "prompt expert"],
    tokens: Float[ndarray, " prompt"],
    prompts: PromptSet,
    n_bootstrap: int,
    rng: Generator,
) -> tuple[Float[ndarray, " expert"], Float[ndarray, " expert"]]:
    """Percentiles of the difference when exchange units are drawn again."""
    names, owner = np.unique(units_of(prompts), return_inverse=True)
    drawn = rng.multinomial(len(names), np.full(len(names), 1 / len(names)), size=n_bootstrap)
    weight: Int[ndarray, "draw prompt"] = drawn[:, owner]
    found = []
    for level in (True, False):
        here = prompts.harm == level
        total = (weight[:, here] * tokens[here]).sum(axis=1, keepdims=True)
        chosen = weight[:, here] @ (frequency[here] * tokens[here][:, None])
        found.append(np.divide(chosen, total, out=np.full(chosen.shape, np.nan), where=total > 0))
    low, high = np.nanquantile(found[0] - found[1], [0.025, 0.975], axis=0)
    return low, high


def _signed(scores: Scores, sign: int) -> list[Expert]:
    """The experts whose difference has a sign, the largest magnitude first.

    Differences within rounding of 0 are none.
    """
    ranking = (scores if sign > 0 else -scores).top(scores.mean.size)
    return [expert for expert, value in ranking if value > 1e-12]


def _at_most(experts: Sequence[Expert], n: int, per_layer: int) -> ExpertSet:
    """The first `n`, of which no layer has more than it can choose."""
    kept: list[Expert] = []
    for expert in experts[:n]:
        if sum(one.layer == expert.layer for one in kept) < per_layer:
            kept.append(expert)
    return ExpertSet(kept)


def _steerings(
    positive: list[Expert],
    negative: list[Expert],
    n_activated: int,
    n_deactivated: int,
    top_k: int,
) -> dict[str, Sequence[Intervention] | ExpertSet]:
    """Away from refusing in three ways, and towards it; nothing where there are no experts."""
    off = ExpertSet(positive[:n_deactivated])
    on = _at_most(negative, n_activated, top_k)
    back = _at_most(positive, n_activated, top_k)
    made: dict[str, Sequence[Intervention] | ExpertSet] = {}
    if len(off):
        made["deactivate_positive"] = [Steer(off, margin="min")]
    if len(on):
        made["activate_negative"] = [Steer(on, margin="max")]
    if len(on) and len(off):
        made["both"] = [Steer(on, margin="max"), Steer(off, margin="min")]
    if len(back):
        made["activate_positive"] = [Steer(back, margin="max")]
    return made


def _table(
    scores: Scores,
    low: Float[ndarray, " expert"],
    high: Float[ndarray, " expert"],
    test: PairedTest,
) -> pd.DataFrame:
    table = scores.to_frame()
    table["low"], table["high"] = low, high
    table["p"], table["p_adjusted"] = test.p_value, test.p_adjusted
    return table


def _said(scores: Scores, test: PairedTest) -> list[str]:
    top = ", ".join(f"{expert} {value:+.3f}" for expert, value in scores.top(4))
    bottom = ", ".join(f"{expert} {-value:+.3f}" for expert, value in (-scores).top(4))
    differ = int((test.p_adjusted <= 0.05).sum())
    return [
        f"Largest risk differences: {top}; smallest: {bottom}. {differ} experts differ at the "
        f"5 % level after correction ({test.n_pairs} exchange units, with which no p-value is "
        f"below {smallest_p(test):.2g})."
    ]


def _benign(arms: Sequence[Arm]) -> list[str]:
    said = []
    for arm in arms:
        if arm.raises:
            effect = arm.null.off_target[f"benign_{arm.null.metric}"]
            said.append(
                f"{arm.name.replace('_', ' ')}: refused openings of harmless prompts "
                f"{effect.baseline:.2f} -> {effect.observed:.2f} (p = {effect.p_value:.3g} "
                "against random experts of like use)."
            )
    return said


STUDY = Study(
    name=NAME,
    paper=PAPER,
    arxiv="2509.09660",
    claim="Experts chosen more often in safe than in unsafe examples can be (de)activated by "
    "router logits to make a model safer or less safe.",
    status=STATUS,
    adds="intervals and tests over exchange units, held-out prompts, the same steering of "
    "random experts of like use",
    run=steermoe2025,
)
