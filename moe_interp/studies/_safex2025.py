"""SAFEx (2025): experts that stay most used when prompts are drawn again, by group, and masked."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
from numpy.random import Generator

from moe_interp.capture import record_routing
from moe_interp.experts import Expert, ExpertSet
from moe_interp.interventions import Ban, run
from moe_interp.metrics import RefusalRate
from moe_interp.models import MoEModel
from moe_interp.prompts import PromptSet
from moe_interp.scores import (
    MatchedRanks,
    Scores,
    StabilitySelection,
    select_experts,
    selection_frequency,
    stability_selection,
)
from moe_interp.stats import mcnemar
from moe_interp.studies._causal import (
    ANSWER_TOKENS,
    judge,
    of_prompts,
    planted_experts,
    rank_of_truth,
    refusal_of,
    said_of_ranks,
    units_of,
)
from moe_interp.studies._result import StudyResult
from moe_interp.studies._study import Study

NAME, PAPER = "safex2025", "SAFEx (2025)"
STATUS = {
    "selection frequency of a group": "our reconstruction (the paper's image could not be read)",
    "stability selection, intersection over resamples": "read in full",
    "detection and control groups": "read in full; harmless prompts in the place of jailbreaks "
    "are our reconstruction",
    "number of experts and resamples": "our reconstruction (not stated)",
    "masking": "read in full (decoding only); masking of prompt tokens too is added",
}


def safex2025(
    model: MoEModel,
    prompts: PromptSet,
    *,
    rng: Generator,
    jailbreak: PromptSet | None = None,
    n_most_used: int = 8,
    threshold: float = 0.9,
    n_resamples: int = 200,
    n_null: int = 100,
    span: str = "prompt",
    openers: Sequence[str] | None = None,
) -> StudyResult:
    r"""Find the experts that are stably most used by harmful prompts, and mask them.

    Prompts of a group are drawn again :math:`S` times; in each draw the :math:`N` experts with the
    largest selection frequency are taken. The paper keeps the intersection of all draws; here
    the probability of being taken is given, and those from `threshold` on are kept. Stable for
    harmful prompts *and* for jailbreaks is the paper's detection group, stable for harmful
    prompts *and not* for jailbreaks its control group. Without `jailbreak` prompts the harmless
    ones take their place; "stable in both" then only says that an expert is always on.

    Raw frequency favours experts that every prompt uses. So the ranking is compared with that of
    the other group, and masking with that of random experts of like use, on held-out prompts.

    Args:
        model: The model.
        prompts: Harmful and harmless prompts.
        rng: Source of randomness.
        jailbreak: Rewritten harmful prompts, the paper's second group.
        n_most_used: Experts taken in each draw.
        threshold: Probability from which an expert counts as stable.
        n_resamples: Draws.
        n_null: Random expert sets in each matched null.
        span: The tokens that count.
        openers: Words that open a refusal; by default the card's or the usual.

    Returns:
        Selection probabilities, both groups, and what masking them does.

    Raises:
        PromptError: If prompts lack harm or hang together in one unit.
        SpanError: If there is no such span.
        ValueError: If a number is out of range.

    References:
        Lai et al. (2025), "SAFEx: Analyzing Vulnerabilities of MoE-Based LLMs via Stable
        Safety-critical Expert Identification", arXiv 2506.17368.

    Example:
        >>> import moe_interp as mi
        >>> model = mi.load_model("organism:harm")
        >>> prompts = mi.load_prompts("organism", per_topic=4)
        >>> result = safex2025(model, prompts, rng=np.random.default_rng(0), n_null=19)
        >>> result.arm("most_used").null.observed
        0.0
    """
    prompts = prompts.balanced()
    first, second = prompts.split(rng=rng)
    use = _frequency(model, prompts, span)
    harmful, benign = first.select(first.harm), first.select(~first.harm)
    other = benign if jailbreak is None else jailbreak
    contrast = (
        of_prompts(use, prompts, benign) if jailbreak is None else _frequency(model, other, span)
    )
    chosen = stability_selection(
        of_prompts(use, prompts, harmful),
        n=n_most_used,
        n_resamples=n_resamples,
        threshold=threshold,
        exclude=contrast,
        units=units_of(harmful).tolist(),
        exclude_units=units_of(other).tolist(),
        rng=rng,
    )
    groups = _groups(chosen)
    raw = select_experts(of_prompts(use, prompts, harmful), n=n_most_used)
    changes = {**groups, "most_used": raw}
    metric = refusal_of(model, openers)
    arms = judge(model, second, changes, metric=metric, match=use, n_null=n_null, rng=rng)
    planted = planted_experts(model)
    ranked = _ranked(chosen, planted, use, rng)
    group = "harmless" if jailbreak is None else "jailbreak"
    return STUDY.result(
        model,
        prompts,
        rng,
        settings={
            "second group": group,
            "n_most_used": n_most_used,
            "threshold": threshold,
            "n_resamples": n_resamples,
            "n_null": n_null,
            "span": span,
        },
        answers=(*_said(groups, group), *said_of_ranks(ranked), *(arm.sentence() for arm in arms)),
        numbers={
            "detection_group": [str(expert) for expert in groups["stable_in_both"]],
            "control_group": [str(expert) for expert in groups["stable_in_harmful_only"]],
            "intersection": [str(expert) for expert in chosen.intersection],
            "masked_in_decoding": _masked_in_decoding(model, second, changes),
            "rank_of_truth": {name: one and one.to_dict() for name, one in ranked.items()},
        },
        tables={"experts": _table(chosen, use, prompts)},
        arms=arms,
        maps={
            "Selection probability over harmful prompts": "probability",
            "Selection probability: harmful less second group": "difference",
        },
        truth=tuple(map(str, planted)),
    )


def _frequency(model: MoEModel, prompts: PromptSet, span: str) -> Scores:
    record = record_routing(model, prompts, spans=(span,), n_random_routers=0, progress=False)
    return selection_frequency(record, span=span)


def _groups(chosen: StabilitySelection) -> dict[str, ExpertSet]:
    """The paper's detection and control groups."""
    rows = np.argwhere(chosen.probability.mean >= chosen.threshold)
    stable = ExpertSet(Expert(chosen.probability.layers[row], int(e)) for row, e in rows)
    return {"stable_in_both": stable - chosen.experts, "stable_in_harmful_only": chosen.experts}


def _difference(chosen: StabilitySelection) -> Scores:
    difference = chosen.probability.mean - chosen.excluded.mean
    return Scores.of_array(
        "difference", chosen.probability.unit, difference, layers=chosen.probability.layers
    )


def _ranked(
    chosen: StabilitySelection, planted: ExpertSet, use: Scores, rng: Generator
) -> dict[str, MatchedRanks | None]:
    """Where the planted experts stand in each group, and in the difference of the two."""
    rankings = {
        "probability": chosen.probability,
        "probability_second_group": chosen.excluded,
        "difference": _difference(chosen),
    }
    return {
        name: rank_of_truth(replace(scores, name=name), planted, use=use, rng=rng)
        for name, scores in rankings.items()
    }


def _masked_in_decoding(
    model: MoEModel, prompts: PromptSet, changes: dict[str, ExpertSet]
) -> dict[str, dict[str, Any]]:
    """The paper's own masking: only while the answer is written, after its first token."""
    harmful, written = prompts.select(prompts.harm), RefusalRate()
    before = written.of_texts(run(model, harmful, max_new_tokens=ANSWER_TOKENS).texts) > 0
    found = {}
    for name, experts in changes.items():
        if len(experts):
            change = Ban(experts, phase="decode")
            texts = run(model, harmful, change, max_new_tokens=ANSWER_TOKENS).texts
            found[name] = mcnemar(before, written.of_texts(texts) > 0).to_dict()
    return found


def _table(chosen: StabilitySelection, use: Scores, prompts: PromptSet) -> pd.DataFrame:
    table = chosen.probability.to_frame()[["layer", "expert"]]
    values, harm = use.array.values, prompts.harm
    table["frequency_harmful"] = values[harm].mean(axis=0).ravel()
    table["frequency_harmless"] = values[~harm].mean(axis=0).ravel()
    table["probability"] = chosen.probability.mean.ravel()
    table["probability_second_group"] = chosen.excluded.mean.ravel()
    table["difference"] = _difference(chosen).mean.ravel()
    return table


def _said(groups: dict[str, ExpertSet], second: str) -> list[str]:
    return [
        f"Stable for harmful and {second} prompts: {groups['stable_in_both'] or 'none'}.",
        f"Stable for harmful and not for {second} prompts: "
        f"{groups['stable_in_harmful_only'] or 'none'}.",
    ]


STUDY = Study(
    name=NAME,
    paper=PAPER,
    arxiv="2506.17368",
    claim="A few experts that harmful prompts use stably detect harm or control the refusal; "
    "masking the latter lowers refusals by 19 to 23 points.",
    status=STATUS,
    adds="probabilities in the place of an intersection, whole exchange units drawn, a second "
    "group, held-out prompts, random experts of like use",
    run=safex2025,
)
