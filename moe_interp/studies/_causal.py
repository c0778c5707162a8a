"""What several studies do alike: halves, refusal metrics, and a change beside its matched null."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float, Int
from numpy import ndarray
from numpy.random import Generator

from moe_interp.errors import DesignError
from moe_interp.experts import ExpertSet
from moe_interp.interventions import Ban, Intervention, run
from moe_interp.metrics import RefusalLogOdds, RefusalOpening, RefusalRate
from moe_interp.models import MoEModel
from moe_interp.prompts import PromptSet, exchange_units
from moe_interp.scores import MatchedNull, MatchedRanks, Scores, matched_null, matched_ranks
from moe_interp.stats import PairedOutcomes, PairedTest, holm, mcnemar

ANSWER_TOKENS = 24


@dataclass(frozen=True)
class Arm:
    """One change, judged on prompts it was not chosen on.

    Attributes:
        name: What was changed and why.
        null: The effect on the refusal of harmful prompts, beside random experts of like use.
        outcomes: Which written answers to harmful prompts were refusals, before and after.
        p_holm: The null's p-value, corrected for the number of changes in the study.
        raises: Whether the change is meant to raise refusals; else it is meant to lower them.
    """

    name: str
    null: MatchedNull
    outcomes: PairedOutcomes
    p_holm: float
    raises: bool = False

    @property
    def reversals(self) -> int:
        """Prompts that moved against the intended direction."""
        return self.outcomes.lost if self.raises else self.outcomes.gained

    def to_dict(self) -> dict[str, Any]:
        """Give everything as JSON-safe values."""
        mine = {"name": self.name, "p_holm": self.p_holm, "reversals": self.reversals}
        return {**self.null.to_dict(), **mine, "outcomes": self.outcomes.to_dict()}

    def sentence(self) -> str:
        """Say what the change did, in one sentence."""
        low, high = np.quantile(self.null.null, [0.025, 0.975])
        changed = self.null.off_target["answers_changed"].observed
        return (
            f"{self.name.replace('_', ' ')} ({self.null.experts}): refused openings "
            f"{self.null.baseline:.2f} -> {self.null.observed:.2f}, random experts of like use "
            f"{low:.2f} to {high:.2f}, p = {self.null.p_value:.3g} ({self.p_holm:.3g} after "
            f"Holm); written refusals {self.outcomes.before} -> {self.outcomes.after} of "
            f"{self.outcomes.n}, {self.reversals} against the intended direction; "
            f"{changed:.0%} of harmless answers change."
        )


def arm_table(arms: Sequence[Arm]) -> pd.DataFrame:
    """Give one row for each change."""
    rows = []
    for arm in arms:
        null, outcomes = arm.null, arm.outcomes
        low, high = np.quantile(null.null, [0.025, 0.975])
        rows.append(
            {
                "name": arm.name,
                "experts": str(null.experts),
                "baseline": null.baseline,
                "observed": null.observed,
                "effect": null.effect,
                "low": null.low,
                "high": null.high,
                "null_mean": float(null.null.mean()),
                "null_low": float(low),
                "null_high": float(high),
                "p": null.p_value,
                "p_holm": arm.p_holm,
                "specificity_p": null.specificity.p_value,
                "refused_before": outcomes.before,
                "refused_after": outcomes.after,
                "reversals": arm.reversals,
                "mcnemar_p": outcomes.p_value,
                "over_refusal": null.off_target["over_refusal"].observed,
                "harmless_changed": null.off_target["answers_changed"].observed,
            }
        )
    return pd.DataFrame(rows)


def judge(
    model: MoEModel,
    prompts: PromptSet,
    changes: Mapping[str, ExpertSet | Intervention | Sequence[Intervention]],
    *,
    metric: RefusalLogOdds,
    match: Scores,
    n_null: int,
    rng: Generator,
    raises: Sequence[str] = (),
) -> tuple[Arm, ...]:
    """Apply each change to held-out prompts, beside the same change of random experts.

    Args:
        model: The model.
        prompts: Prompts the experts were not chosen on, harmful and harmless.
        changes: Experts to ban, or interventions, by name; empty sets are left out.
        metric: The refusal log-odds of the model.
        match: Use of every expert.
        n_null: Random counterparts of each.
        rng: Source of randomness.
        raises: Names of the changes that are meant to raise refusals.

    Returns:
        The arms, in order.
    """
    harmful, benign = prompts.select(prompts.harm), prompts.select(~prompts.harm)
    written = RefusalRate()
    untouched = run(model, harmful, max_new_tokens=ANSWER_TOKENS)
    before = written.of_texts(untouched.texts) > 0
    found = []
    for name, change in changes.items():
        if isinstance(change, ExpertSet) and not len(change):
            continue
        recipe = Ban(change) if isinstance(change, ExpertSet) else change
        null = matched_null(
            model,
            harmful,
            recipe,
            metric=RefusalOpening(metric),
            match=match,
            benign=benign,
            n_draws=n_null,
            rng=rng,
            max_new_tokens=ANSWER_TOKENS,
        )
        texts = run(model, harmful, recipe, max_new_tokens=ANSWER_TOKENS).texts
        found.append((name, null, mcnemar(before, written.of_texts(texts) > 0)))
    corrected = holm([null.p_value for _, null, _ in found])
    return tuple(
        Arm(name, null, outcomes, float(p), name in raises)
        for (name, null, outcomes), p in zip(found, corrected, strict=True)
    )


def refusal_of(model: MoEModel, openers: Sequence[str] | None) -> RefusalLogOdds:
    """The refusal log-odds of a model; an organism's card names its openers."""
    if openers is None and model.card is not None:
        openers = model.card["refusal"]["openers"]
    return RefusalLogOdds(model.tokenizer, openers=openers)


def units_of(prompts: PromptSet) -> Int[ndarray, " prompt"]:
    """The unit of each prompt that is drawn, split and exchanged whole."""
    return exchange_units(prompts.wordings, prompts.pairs)


def of_prompts(scores: Scores, prompts: PromptSet, chosen: PromptSet) -> Scores:
    """The scores of some of the prompts.

    Args:
        scores: Scores of each prompt.
        prompts: Those prompts.
        chosen: Some of them.

    Returns:
        Their scores, in the order of `chosen`.
    """
    place = {prompt_id: row for row, prompt_id in enumerate(prompts.ids)}
    rows = [place[prompt_id] for prompt_id in chosen.ids]
    values = scores.array.values[rows]
    return Scores.of_array(scores.name, scores.unit, values, layers=scores.layers)


def unit_means(
    values: Float[ndarray, "prompt expert"], prompts: PromptSet
) -> tuple[Float[ndarray, "unit expert"], Float[ndarray, "unit expert"]]:
    """Average the harmful and the harmless prompts of each exchange unit that has both.

    Args:
        values: A number for each prompt and expert.
        prompts: The prompts.

    Returns:
        The means of the harmful and of the harmless prompts.

    Raises:
        DesignError: If fewer than two units have both.
    """
    units, harm = units_of(prompts), prompts.harm
    kept = [unit for unit in np.unique(units) if len(set(harm[units == unit])) == 2]
    if len(kept) < 2:
        raise DesignError(
            f"{len(kept)} units (pairs, or prompts of one wording) have harmful and harmless "
            "prompts; a paired test needs two. Name the pairs: see pair_prompts."
        )
    harmful, harmless = (
        np.stack([values[(units == unit) & (harm == level)].mean(axis=0) for unit in kept])
        for level in (True, False)
    )
    return harmful, harmless


def smallest_p(test: PairedTest) -> float:
    """The smallest p-value that so few units or sign patterns allow."""
    return max(2.0 ** (1 - test.n_pairs), 1 / (1 + test.n_resamples))


def rank_of_truth(
    scores: Scores, planted: ExpertSet, *, use: Scores, rng: Generator
) -> MatchedRanks | None:
    """Where a ranking puts the planted experts, beside random experts of like use.

    Args:
        scores: The ranking: larger is earlier.
        planted: The planted experts.
        use: Use of every expert.
        rng: Source of randomness.

    Returns:
        Their ranks, beside those of random sets; None if nothing is planted.
    """
    return matched_ranks(scores, planted, match=use, rng=rng) if len(planted) else None


def said_of_ranks(ranked: Mapping[str, MatchedRanks | None]) -> list[str]:
    """One sentence for each ranking of planted experts."""
    return [f"Planted experts: {found.summary()}" for found in ranked.values() if found]


def planted_experts(model: MoEModel) -> ExpertSet:
    """The experts that an organism's card says carry its refusal; empty for a real model."""
    truth = (model.card or {}).get("truth") or {}
    return ExpertSet(truth.get("safety_experts") or ())
