"""RASET (2026): is routing driven by topic, and is safety changed without changing routing?"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float
from numpy import ndarray
from numpy.random import Generator

from moe_interp.capture import RoutingRecord, record_routing
from moe_interp.experts import ExpertSet
from moe_interp.interventions import measure_many, run
from moe_interp.metrics import RefusalLogOdds
from moe_interp.models import MoEModel
from moe_interp.prompts import PromptSet
from moe_interp.scores import (
    Scores,
    attribution,
    contrast_parts,
    contrastive_sensitivity,
    greedy_ablation,
    select_experts,
    selection_frequency,
)
from moe_interp.scores._gradients import require_gradients
from moe_interp.stats import HalfClaim, RoutingContrast, Verdict, routing_claim, verdict
from moe_interp.studies._causal import (
    ANSWER_TOKENS,
    Arm,
    judge,
    of_prompts,
    planted_experts,
    rank_of_truth,
    refusal_of,
    said_of_ranks,
)
from moe_interp.studies._raset2026_contrasts import (
    QUANTITIES,
    WHOLE,
    contrast_table,
    prompt_pairs,
    routing_contrasts,
    shared_tokens,
)
from moe_interp.studies._raset2026_tuning import (
    TunedArm,
    arms_to_run,
    compare_arms,
    is_organism,
    lessons_of,
    random_sets,
    tuning_table,
)
from moe_interp.studies._result import StudyResult
from moe_interp.studies._study import Study

NAME, PAPER = "raset2026", "RASET (2026)"
STATUS = {
    "divergence of routing weights and top-k overlap": "secondary notes; the vector, the pooling "
    "and the base of the logarithm are our reconstruction, so that several are given",
    "contrasts of topic, matched pair, refusal prefix, forced answer": "secondary notes; what a "
    "prefix is, and which answers are forced, is our reconstruction",
    "contrastive routing sensitivity": "our reconstruction (the paper's formula was not found)",
    "tuning of the selected experts, routers frozen": "abstract; loss and settings are our "
    "reconstruction",
    "judgement of both halves of the claim": "our reconstruction of a control",
}
DEFAULT_REFUSAL = "I'm sorry, but I can't help with that."
# Tokens that both members of a pair have, whose choices can be compared one by one.
TOKENS = "identical_tokens"
# Greedy ablation runs every candidate once a step, so attribution leaves it no more than these.
N_CANDIDATES = 24
# Below this share of refused harmful prompts there is no refusal to look for.
NEEDED_BASELINE = 0.5


@dataclass(frozen=True, eq=False)
class _Routing:
    """What was measured of routing, and what the model answers to harmless prompts, by id."""

    record: RoutingRecord
    found: Verdict
    contrasts: dict[tuple[str, str], RoutingContrast]
    answers: dict[str, str]
    span: str


@dataclass(frozen=True, eq=False)
class _Selected:
    """Experts chosen on the first half, and the scores they were chosen by."""

    contrast: Scores
    attribution: Scores
    use: Scores
    sets: dict[str, ExpertSet]


def raset2026(
    model: MoEModel,
    prompts: PromptSet,
    *,
    rng: Generator,
    span: str = "user",
    paraphrases: PromptSet | None = None,
    refusal: str | None = None,
    n_selected: int = 5,
    n_random: int = 3,
    steps: int = 64,
    learning_rate: float | None = None,
    neutral: Sequence[str] | None = None,
    arms: Sequence[str] | None = None,
    n_null: int = 100,
    n_resamples: int = 1999,
    n_random_routers: int = 99,
    openers: Sequence[str] | None = None,
) -> StudyResult:
    r"""Test both halves of RASET's claim: routing follows topic; safety changes without routing.

    *Contrasts*: Jensen-Shannon divergence and top-k overlap of routing when the topic, the intent,
    the words or the forced answer differ. *Selection*: experts whose use answers to harm more than
    to topic (`contrastive_sensitivity`), beside attribution, greedy ablation and use. *Tuning*:
    each selected set is trained with the routers frozen, beside random experts of like use,
    routers only, all experts, everything, and steering of the routers; each with its refusals, its
    routing drift and its harmless answers on prompts it was not trained on.

    On organisms the training teaches to answer what is refused, which audits where the refusal
    sits. On any other model it teaches to refuse. The halves do not imply each other.

    Args:
        model: The model; it is left as it was.
        prompts: Harmful and harmless prompts in matched pairs, of several topics.
        rng: Source of randomness.
        span: The tokens whose routing is contrasted.
        paraphrases: Other wordings of the same prompts, in their order: the floor. Organisms
            write their own.
        refusal: What a refusal says; by default the card's or a usual one.
        n_selected: Experts taken by each score.
        n_random: Random sets that are tuned.
        steps: Steps of training of each arm, about.
        learning_rate: Of every arm; by default 1e-3 on organisms and 1e-4 elsewhere.
        neutral: Texts whose loss is measured in every arm.
        arms: Names of the tunings to run; all by default, and on a server those that train nothing.
        n_null: Random expert sets beside each ablation.
        n_resamples: Relabellings of the verdict.
        n_random_routers: Random routers of the verdict.
        openers: Words that open a refusal; by default the card's or the usual.

    Returns:
        Contrasts, selections, ablations, the comparison of tunings, and the claim.

    Raises:
        PromptError: If prompts lack harm, or hang together in one unit.
        DesignError: If prompts lack pairs or topics.
        ValueError: If a number is out of range, or an arm does not exist.
        UnsupportedOnServerError: If an arm that trains is named and the weights are on a server, or
            the server lets no gradients through.

    References:
        Zhang et al. (2026), "RASET: Router-agnostic safety-critical expert tuning exposes
        localized safety enforcement failures in MoE LLMs", arXiv 2605.29708.

    Example:
        It takes a minute on an organism; ``docs/studies/raset2026.md`` has a run.

        >>> from moe_interp.studies import find_study
        >>> study = find_study("raset2026")
        >>> study.run is raset2026, study.reference
        (True, 'RASET (2026), arXiv 2605.29708')
    """
    require_gradients(model)
    arms = arms_to_run(model, arms, n_random)
    prompts = prompts.balanced()
    first, second = prompts.split(rng=rng)
    metric = refusal_of(model, openers)
    refusal = refusal or ((model.card or {}).get("refusal") or {}).get("text") or DEFAULT_REFUSAL
    rate = learning_rate or (1e-3 if is_organism(model) else 1e-4)
    seed = int(rng.integers(2**31))
    record = record_routing(
        model,
        prompts,
        quantities=QUANTITIES,
        spans=tuple(dict.fromkeys((span, WHOLE, TOKENS))),
        n_random_routers=n_random_routers,
        rng=rng,
        progress=False,
    )
    routing = _contrast(model, record, span, refusal, paraphrases, n_resamples, rng)
    chosen = _select(model, record, first, metric, span, n_selected)
    ablated = {name: experts for name, experts in chosen.sets.items() if name != "frequency"}
    judged = judge(model, second, ablated, metric=metric, match=chosen.use, n_null=n_null, rng=rng)
    drawn = random_sets(chosen.sets["contrastive"], chosen.use, n_random, rng)
    own = [routing.answers[prompt.id] for prompt in first if not prompt.harm]
    tuned = compare_arms(
        model,
        {"planted": planted_experts(model), **chosen.sets, **drawn},
        lessons_of(model, first, own, refusal),
        second,
        found=routing.found,
        topic_change=_slots_by_topic(record),
        steered=chosen.sets["contrastive"],
        steps=steps,
        learning_rate=rate,
        neutral=neutral,
        arms=arms,
        seed=seed,
    )
    settings = {
        "span": span,
        "refusal": refusal,
        "taught": "to answer" if is_organism(model) else "to refuse",
        "n_selected": n_selected,
        "n_random": n_random,
        "steps": steps,
        "learning_rate": rate,
        "n_null": n_null,
        "n_resamples": n_resamples,
        "n_random_routers": n_random_routers,
        "chosen and trained on": len(first),
        "judged on": len(second),
    }
    return _result(model, prompts, rng, settings, routing, chosen, judged, tuned)


def _contrast(
    model: MoEModel,
    record: RoutingRecord,
    span: str,
    refusal: str,
    paraphrases: PromptSet | None,
    n_resamples: int,
    rng: Generator,
) -> _Routing:
    """The verdict on the first half of the claim, and the contrasts beside it."""
    found = verdict(
        record.profile(span), record.random_profiles(span), n_resamples=n_resamples, rng=rng
    )
    prompts = record.prompts
    harmless = prompts.select(~prompts.harm)
    texts = run(model, harmless, max_new_tokens=ANSWER_TOKENS).texts
    contrasts = routing_contrasts(
        model, record, span=span, refusal=refusal, answers=texts, paraphrases=paraphrases
    )
    return _Routing(record, found, contrasts, dict(zip(harmless.ids, texts, strict=True)), span)


def _select(
    model: MoEModel,
    record: RoutingRecord,
    first: PromptSet,
    metric: RefusalLogOdds,
    span: str,
    n: int,
) -> _Selected:
    """Choose experts on the first half of the prompts, by contrast, by cause and by use."""
    place = {name: row for row, name in enumerate(record.prompts.ids)}
    rows = [place[name] for name in first.ids]
    contrast = contrastive_sensitivity(record.select(rows), span=span, direction="harmful")
    use = selection_frequency(record, span=WHOLE)
    harmful = first.select(first.harm)
    gradient = attribution(model, harmful, metric=metric)
    n = min(n, gradient.mean.size)
    sets = {
        "contrastive": select_experts(contrast, n=n),
        # By magnitude: where a refusal is saturated, the sign of a gradient is no guide.
        "attribution": select_experts(abs(gradient), n=n),
        "frequency": select_experts(of_prompts(use, record.prompts, harmful), n=n),
    }
    log_odds = measure_many(model, harmful, [""], metric=metric)[0]
    if float((log_odds > 0).mean()) >= NEEDED_BASELINE:
        candidates = select_experts(abs(gradient), n=min(N_CANDIDATES, gradient.mean.size))
        sets["greedy"] = greedy_ablation(
            model, harmful, metric=metric, candidates=candidates
        ).experts
    return _Selected(contrast, gradient, use, sets)


def _slots_by_topic(record: RoutingRecord) -> float | None:
    """Share of slots that differ between prompts of different topics, the claim's yard stick."""
    pairs = prompt_pairs(record.prompts).get("topic")
    if pairs is None:
        return None
    shares = record.shares(WHOLE)
    total, (first, second, _) = 0.0, pairs
    for start in range(0, len(first), 1024):
        one, other = first[start : start + 1024], second[start : start + 1024]
        total += float(np.abs(shares[one] - shares[other]).sum(axis=-1).mean(axis=-1).sum()) / 2
    return total / len(first) or None


def _result(
    model: MoEModel,
    prompts: PromptSet,
    rng: Generator,
    settings: dict[str, Any],
    routing: _Routing,
    chosen: _Selected,
    judged: Sequence[Arm],
    tuned: Sequence[TunedArm],
) -> StudyResult:
    planted = planted_experts(model)
    ranked = {
        "contrastive": rank_of_truth(chosen.contrast, planted, use=chosen.use, rng=rng),
        "attribution": rank_of_truth(abs(chosen.attribution), planted, use=chosen.use, rng=rng),
    }
    apart, name = _headline(tuned)
    first_half = routing_claim(routing.found).follows_topic
    shared = shared_tokens(routing.record, TOKENS)
    table = contrast_table(routing.contrasts, span=routing.span)
    return STUDY.result(
        model,
        prompts,
        rng,
        settings=settings,
        answers=(
            *_said_of_contrasts(routing.contrasts, shared, routing.record.top_k),
            *said_of_ranks(ranked),
            *(arm.sentence() for arm in judged),
            *(arm.sentence() for arm in tuned),
            *_said_of_place(model),
            f"Routing follows topic and not harm: {first_half.state}. {first_half.reason}",
            f"Safety behaviour changes while routing hardly does ({name}): {apart.state}. "
            f"{apart.reason}",
            "Neither half implies the other.",
        ),
        numbers={
            "claim": {
                "follows_topic": vars(first_half),
                "safety_apart": {"arm": name, **vars(apart)},
                "safety_apart_by_arm": {arm.name: arm.apart.state for arm in tuned},
            },
            "verdict": routing.found.to_dict(),
            "chosen": {name: [str(e) for e in found] for name, found in chosen.sets.items()},
            "rank_of_truth": {name: one and one.to_dict() for name, one in ranked.items()},
            "shared_of_identical_tokens": None if shared is None else float(shared.mean()),
            "arms": {arm.name: arm.change.to_dict() for arm in tuned},
        },
        tables={
            "experts": _expert_table(routing, chosen, prompts),
            "contrasts": table,
            "tuning": tuning_table(tuned),
        },
        arms=tuple(judged),
        maps={
            "Contrastive routing sensitivity (harm over topic)": "contrastive_sensitivity",
            "Attribution of the refusal log-odds (magnitude)": "attribution",
        },
        truth=tuple(map(str, planted)),
    )


def _headline(tuned: Sequence[TunedArm]) -> tuple[HalfClaim, str]:
    """The second half, by the arm that was named beforehand: causes first, truth never."""
    by_name = {arm.name: arm for arm in tuned}
    for name in ("greedy", "attribution", "contrastive"):
        if name in by_name:
            return by_name[name].apart, name
    reason = "No set of experts that a score selected was tuned."
    return HalfClaim("not tested", reason), "no arm"


def _expert_table(routing: _Routing, chosen: _Selected, prompts: PromptSet) -> pd.DataFrame:
    parts = contrast_parts(routing.record, span=routing.span)
    table = chosen.contrast.to_frame()[["layer", "expert"]]
    table["contrastive_sensitivity"] = chosen.contrast.mean.ravel()
    table["attribution"] = abs(chosen.attribution).mean.ravel()
    table["mean_difference"] = parts.mean_difference.ravel()
    table["paired_t"] = np.where(np.isfinite(parts.paired_t), parts.paired_t, np.nan).ravel()
    table["topic_change"] = parts.topic_change.ravel()
    values = chosen.use.array.values
    table["frequency_harmful"] = values[prompts.harm].mean(axis=0).ravel()
    table["frequency_harmless"] = values[~prompts.harm].mean(axis=0).ravel()
    places = [f"L{layer}E{e}" for layer, e in zip(table["layer"], table["expert"], strict=True)]
    for name, experts in chosen.sets.items():
        named = set(map(str, experts))
        table[f"in_{name}"] = [place in named for place in places]
    return table


def _said_of_contrasts(
    contrasts: dict[tuple[str, str], RoutingContrast],
    shared: Float[ndarray, "pair layer"] | None,
    top_k: int,
) -> list[str]:
    said = [one.summary() for (_, kind), one in contrasts.items() if kind == "weights"]
    by_name = {name: one for (name, kind), one in contrasts.items() if kind == "weights"}
    if {"topic", "pair"} <= set(by_name):
        ratio, low, high = by_name["pair"].ratio(by_name["topic"])
        said.append(
            f"Matched pairs lie {ratio:.2f} [{low:.2f}, {high:.2f}] times as far apart as topics "
            "do (RASET: 0.43)."
        )
    if "paraphrase" not in by_name:
        said.append(
            "There is no floor: no paraphrases are known, so that a distance has no zero to be "
            "measured from. Pass `paraphrases`."
        )
    if shared is not None:
        said.append(
            f"Tokens that both members of a pair have alike share {top_k * shared.mean():.2f} of "
            f"their {top_k} experts."
        )
    return said


def _said_of_place(model: MoEModel) -> list[str]:
    if model.connection is None:
        return []
    host = model.connection.server.host
    return [f"Nothing was trained: that needs the weights, which are on {host}."]


STUDY = Study(
    name=NAME,
    paper=PAPER,
    arxiv="2605.29708",
    claim="Routing in aligned models is largely topic-driven, and safety behaviour can be changed "
    "by tuning a few experts with little change of routing.",
    status=STATUS,
    adds="a floor of paraphrases and the level of chance, both units of divergence, experts chosen "
    "by cause beside those chosen by contrast, random experts of like use, held-out prompts, both "
    "halves of the claim judged apart",
    run=raset2026,
)
