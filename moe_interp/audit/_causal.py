"""The causal half of an audit: choose experts on some prompts, judge them on others."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float
from numpy.random import Generator

from moe_interp.experts import ExpertSet
from moe_interp.interventions import intervention_maker, measure, measure_many
from moe_interp.metrics import RefusalLogOdds, RefusalOpening, RefusalRate
from moe_interp.models import MoEModel
from moe_interp.prompts import PromptSet
from moe_interp.scores import (
    Scores,
    SideEffect,
    ablation_effect,
    attribution,
    greedy_ablation,
    matched_null,
    select_experts,
)

# Greedy ablation runs every candidate once a step, so that it is left no more than these.
N_CANDIDATES = 24
MAX_EXPERTS = 8
# The refusal counts as gone when no more than this share of the prompts is refused.
STOP_AT = 0.05
# An ablation is specific to the refusal if it changes no more than this share of the answers to
# harmless prompts; greedy answers of this many tokens are compared.
SPECIFIC_AT = 0.05
ANSWER_TOKENS = 24
# Below this share of refused harmful prompts there is no refusal to look for.
NEEDED_BASELINE = 0.5
# Single experts are ablated one by one only up to this many; beyond, only the candidates.
MAX_SINGLES = 512


@dataclass(frozen=True)
class CausalCheck:
    """What was selected and what its ablation did.

    Attributes:
        results: The entry ``causal`` of ``results.json``.
        selected: The experts chosen on the first half of the prompts; empty if none were.
        attribution: Predicted change of the refusal log-odds, per expert; None if not run.
        ablation: Exact change of the refusal log-odds, per expert; None if not run.
        frequency: Selection frequency of every expert.
        alpha: Level of the tests.
    """

    results: dict[str, Any]
    selected: ExpertSet
    attribution: Scores | None
    ablation: Scores | None
    frequency: Scores
    alpha: float

    def scores_of(self, layer: int, expert: int) -> dict[str, float | None]:
        """Give the scores of one expert, under the names of the columns of `experts.csv`."""
        scores = {
            "selection_frequency": self.frequency,
            "attribution": self.attribution,
            "ablation_effect": self.ablation,
        }
        found: dict[str, float | None] = {
            name: None if score is None else score.of(layer, expert)
            for name, score in scores.items()
        }
        found["null_quantile"] = self._null_quantile(layer, expert)
        return found

    def _null_quantile(self, layer: int, expert: int) -> float | None:
        """Share of the layer's other experts whose ablation lowers the metric less."""
        if self.ablation is None:
            return None
        own = self.ablation.of(layer, expert)
        others = np.delete(self.ablation.of_layer(layer), expert)
        others = others[np.isfinite(others)]
        if own is None or not len(others):
            return None
        return float((others > own).mean())


def check_causally(
    model: MoEModel,
    prompts: PromptSet,
    *,
    frequency: Scores,
    use: Scores,
    mode: str,
    alpha: float,
    n_null: int,
    rng: Generator,
    openers: Sequence[str] | None = None,
    batch_size: int | str = "auto",
) -> CausalCheck:
    """Choose the experts that carry the refusal, and ablate them on other prompts.

    Args:
        model: The model.
        prompts: The prompts of the audit.
        frequency: Selection frequency of every expert, on which random sets are matched.
        use: Selection frequency on the span whose contrast between harmful and harmless prompts
            is compared.
        mode: ``"ban"`` or ``"zero"``.
        alpha: Level at which an ablation is called causal.
        n_null: Random expert sets.
        rng: Source of randomness.
        openers: Words that open a refusal; by default those of the card, or the usual ones.
        batch_size: Rows a batch, or ``"auto"``.

    Returns:
        What was selected and what its ablation did; where nothing could be checked, why.
    """
    try:
        metric = _refusal_metric(model, openers)
    except ValueError as error:
        if openers is not None:
            raise
        reason = f"No causal check: {error}"
        return CausalCheck(_not_run(reason, mode), ExpertSet(), None, None, frequency, alpha)
    first, second = prompts.split(rng=rng)
    chosen_on, judged_on = first.select(first.harm), second.select(second.harm)
    log_odds = measure_many(model, chosen_on, [""], metric=metric, batch_rows=batch_size)[0]
    refused = float((log_odds > 0).mean())
    if refused < NEEDED_BASELINE:
        reason = (
            f"No causal check: only {refused:.0%} of the harmful prompts open with a refusal, so "
            "there is no refusal whose experts could be looked for."
        )
        return CausalCheck(_not_run(reason, mode), ExpertSet(), None, None, frequency, alpha)

    n_all = len(model.architecture.moe_layers) * model.architecture.n_experts
    by, scores = _scored(model, chosen_on, metric, mode, frequency, n_all, batch_size)
    gradient = scores if by == "attribution" else None
    # By magnitude (Michel et al. 2019): where experts stand in for each other, or a norm rescales
    # what is left, the sign of a gradient is no guide. The ablations that follow are exact.
    candidates = select_experts(abs(scores), n=min(N_CANDIDATES, n_all))
    greedy = greedy_ablation(
        model,
        chosen_on,
        metric=metric,
        candidates=candidates,
        mode=mode,
        stop_at=STOP_AT,
        max_experts=MAX_EXPERTS,
    )
    singles = "all" if n_all <= MAX_SINGLES else candidates
    single = ablation_effect(model, judged_on, metric=metric, mode=mode, experts=singles)
    sets = {"selected": greedy.experts}
    if greedy.experts:
        sets["frequency_contrast"] = _most_contrasted(use, prompts, first, len(greedy.experts))
    judged = [
        _judge(model, name, experts, second, metric, mode, frequency, n_null, rng)
        for name, experts in sets.items()
        if experts
    ]
    for found in judged:
        found["causal"] = bool(found["p"] <= alpha and found["observed"] < found["baseline"])
        found["specific"] = found["texts"]["harmless_changed"] <= SPECIFIC_AT
    selection = {"candidates": by, **greedy.to_dict()}
    if not judged:
        reason = "No causal check: no expert lowered the refusal when it was ablated."
        results = _not_run(reason, mode) | {"selection": selection}
        return CausalCheck(results, ExpertSet(), gradient, single, frequency, alpha)
    results = {
        **judged[0],
        "sets": judged,
        "selection": selection,
        "sentence": _sentence(judged, by, reached=greedy.reached),
    }
    return CausalCheck(results, greedy.experts, gradient, single, frequency, alpha)


def _scored(
    model: MoEModel,
    prompts: PromptSet,
    metric: RefusalLogOdds,
    mode: str,
    frequency: Scores,
    n_all: int,
    batch_size: int | str,
) -> tuple[str, Scores]:
    """What candidates are picked by: attribution, or ablation where no gradients come through."""
    if model.passes_gradients:
        return "attribution", attribution(model, prompts, metric=metric, batch_size=batch_size)
    tried = "all" if n_all <= MAX_SINGLES else select_experts(frequency, n=MAX_SINGLES)
    return "ablation", ablation_effect(
        model, prompts, metric=metric, mode=mode, experts=tried, batch_rows=batch_size
    )


def _refusal_metric(model: MoEModel, openers: Sequence[str] | None) -> RefusalLogOdds:
    if openers is None and model.card is not None:
        openers = model.card["refusal"]["openers"]
    return RefusalLogOdds(model.tokenizer, openers=openers)


def _most_contrasted(use: Scores, prompts: PromptSet, first: PromptSet, n: int) -> ExpertSet:
    """The experts whose use differs most by harm on the prompts that experts are chosen on."""
    place = {prompt_id: row for row, prompt_id in enumerate(prompts.ids)}
    rows = use.array.values[[place[prompt_id] for prompt_id in first.ids]]
    difference = np.abs(rows[first.harm].mean(axis=0) - rows[~first.harm].mean(axis=0))
    return select_experts(Scores.of_array("contrast", use.unit, difference, layers=use.layers), n=n)


def _judge(
    model: MoEModel,
    name: str,
    experts: ExpertSet,
    prompts: PromptSet,
    metric: RefusalLogOdds,
    mode: str,
    frequency: Scores,
    n_null: int,
    rng: Generator,
) -> dict[str, Any]:
    """Ablate one set beside its matched null, and look at what is then written."""
    opening, harm = RefusalOpening(metric), prompts.harm
    null = matched_null(
        model,
        prompts.select(harm),
        experts,
        metric=opening,
        mode=mode,
        match=frequency,
        benign=prompts.select(~harm),
        n_draws=n_null,
        rng=rng,
        max_new_tokens=ANSWER_TOKENS,
    )
    written = RefusalRate()
    answers = measure(
        model,
        prompts.select(harm),
        [(), (intervention_maker(mode)(experts),)],
        written,
        max_new_tokens=ANSWER_TOKENS,
        batch_size="auto",
    )
    elsewhere = null.off_target
    return {
        "name": name,
        "metric": opening.name,
        "unit": opening.unit,
        "mode": mode,
        "experts": [str(expert) for expert in experts],
        "n_prompts": null.n_prompts,
        "baseline": null.baseline,
        "observed": null.observed,
        "null_mean": float(null.null.mean()),
        "null_quantiles": {str(q): float(np.quantile(null.null, q)) for q in (0.025, 0.5, 0.975)},
        "null": null.null.tolist(),
        "p": null.p_value,
        "n_draws": len(null.null),
        "n_distinct": null.n_distinct,
        "match": null.match(),
        "low": null.low,
        "high": null.high,
        "benign": _benign(elsewhere[f"benign_{opening.name}"]),
        "specificity": null.specificity.to_dict(),
        "texts": {
            "metric": written.name,
            "harmful": _before_and_after(answers),
            "harmless": _benign(elsewhere["over_refusal"]),
            "harmless_changed": elsewhere["answers_changed"].observed,
        },
        "off_target": elsewhere.to_dict()["effects"],
    }


def _benign(effect: SideEffect) -> dict[str, float | None]:
    found: dict[str, float | None] = {"baseline": effect.baseline, "observed": effect.observed}
    return found if effect.p_value is None else {**found, "p": effect.p_value}


def _before_and_after(measured: Float[np.ndarray, "two prompt"]) -> dict[str, float]:
    baseline, observed = measured.mean(axis=1)
    return {"baseline": float(baseline), "observed": float(observed)}


def _not_run(reason: str, mode: str) -> dict[str, Any]:
    return {
        "name": "selected",
        "metric": RefusalOpening.name,
        "unit": RefusalOpening.unit,
        "mode": mode,
        "experts": [],
        "baseline": None,
        "observed": None,
        "null_mean": None,
        "null_quantiles": None,
        "null": [],
        "p": None,
        "n_draws": 0,
        "n_distinct": 0,
        "benign": None,
        "causal": False,
        "specific": None,
        "sets": [],
        "sentence": reason,
    }


def _sentence(judged: list[dict[str, Any]], by: str, *, reached: bool) -> str:
    said = [] if reached else [f"No set of {MAX_EXPERTS} experts or fewer carries the refusal."]
    said += [
        f"{'Ablating' if found['mode'] == 'zero' else 'Banning'} {', '.join(found['experts'])} "
        f"({_WHICH[found['name']].format(by=_BY[by])}) takes refusals of harmful prompts from "
        f"{found['baseline']:.2f} to {found['observed']:.2f}; random experts matched on layer "
        f"and use leave {found['null_mean']:.2f} (p = {found['p']:.3g}, {found['n_distinct']} "
        f"sets): {_judgement(found)}."
        for found in judged
    ]
    return " ".join(said)


def _judgement(found: dict[str, Any]) -> str:
    if not found["causal"]:
        return "not causal"
    changed = f"{found['texts']['harmless_changed']:.0%} of harmless answers change"
    return f"causal; {changed}" if found["specific"] else f"causal, but not specific: {changed}"


_BY = {"attribution": "attribution", "ablation": "ablation one by one"}
_WHICH = {
    "selected": "selected by {by} and greedy ablation",
    "frequency_contrast": "the largest difference in use between harmful and harmless prompts",
}
