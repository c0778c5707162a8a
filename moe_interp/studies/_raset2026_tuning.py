"""RASET's comparison: tune some experts with the routers frozen, and see what moves."""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from moe_interp.errors import DesignError
from moe_interp.experts import Expert, ExpertSet
from moe_interp.interventions import Ban, Steer, edited
from moe_interp.models import MoEModel
from moe_interp.prompts import PromptSet
from moe_interp.scores import Scores
from moe_interp.scores._matching import draw_counterparts
from moe_interp.stats import HalfClaim, Verdict, routing_claim
from moe_interp.studies._causal import ANSWER_TOKENS, units_of
from moe_interp.tuning import (
    ModelChange,
    Observation,
    model_change,
    observe,
    tune_experts,
)

BATCH_SIZE = 8
SETS = ("planted", "contrastive", "attribution", "frequency", "greedy")
UNTRAINED = ("router_steering",)
OTHERS = ("routers_only", "all_experts", "full", *UNTRAINED)


@dataclass(frozen=True, eq=False)
class TunedArm:
    """One way to change the model, and what it changed on prompts it was not made on.

    Attributes:
        name: What was changed.
        experts: The experts it names; empty where it names none.
        n_parameters: Numbers that were trained.
        change: Refusals, harmless answers and routing, before and after.
        apart: Whether behaviour changed while routing hardly did.
    """

    name: str
    experts: ExpertSet
    n_parameters: int
    change: ModelChange
    apart: HalfClaim

    def to_frame(self) -> pd.DataFrame:
        """Give one row."""
        frame = self.change.to_frame()
        frame.insert(0, "arm", self.name)
        frame.insert(1, "experts", str(self.experts))
        frame.insert(2, "n_parameters", self.n_parameters)
        drift = self.change.drift["prompt"]
        frame["slots_changed_harmful"] = float(drift.slots_changed[self.change.is_harmful].mean())
        frame["slots_changed_most"] = float(drift.slots_changed.mean(axis=0).max())
        frame["safety_apart"] = self.apart.state
        return frame

    def sentence(self) -> str:
        """Say what it did, in one sentence."""
        outcomes, effects = self.change.outcomes, self.change.off_target
        named = f" ({self.experts})" if len(self.experts) else ""
        return (
            f"{self.name.replace('_', ' ')}{named}: written refusals {outcomes.before} -> "
            f"{outcomes.after} of {outcomes.n}; {self.change.drift['prompt'].mean()[0]:.2%} of the "
            f"routed slots of prompts changed; of harmless prompts "
            f"{effects['answers_changed'].observed:.0%} are answered otherwise and "
            f"{effects['over_refusal'].observed:.0%} refused."
        )


def is_organism(model: MoEModel) -> bool:
    """Whether the model is one of the packaged organisms."""
    return (model.card or {}).get("kind") == "model organism"


def lessons_of(
    model: MoEModel, prompts: PromptSet, answers: Sequence[str], refusal: str
) -> PromptSet:
    """What is taught: on organisms to answer, which audits localisation; elsewhere to refuse.

    Args:
        model: The model.
        prompts: Prompts to train on.
        answers: The model's own answers to the harmless ones, in their order.
        refusal: What a refusal says.

    Returns:
        Prompts with responses. On organisms each harmful prompt has the answer to its harmless
        twin; on any other model it has the refusal, and harmless prompts keep their own answers.

    Raises:
        DesignError: If nothing can be taught.
    """
    harmless = np.flatnonzero(~prompts.harm).tolist()
    own = {row: answer for row, answer in zip(harmless, answers, strict=True) if answer.strip()}
    if is_organism(model):
        said = {bad: own[good] for good, bad in prompts.pair_positions if good in own}
    else:
        said = own | dict.fromkeys(np.flatnonzero(prompts.harm).tolist(), refusal)
    if not said:
        raise DesignError(
            "There is nothing to teach: no harmful prompt has a harmless twin that is answered. "
            "Name the pairs: see pair_prompts."
        )
    rows = sorted(said)
    return PromptSet((replace(prompts[row], response=said[row]) for row in rows), source="lessons")


def arms_to_run(model: MoEModel, arms: Sequence[str] | None, n_random: int) -> Sequence[str] | None:
    """Settle which arms are run, before any time is spent.

    Args:
        model: The model.
        arms: What was asked for; None for all that the model allows.
        n_random: How many random sets there are.

    Returns:
        Names of arms, or None for all.

    Raises:
        ValueError: If one of them does not exist.
        UnsupportedOnServerError: If one of them trains weights that are on a server.
    """
    known = (*SETS, *(f"random_{n + 1}" for n in range(n_random)), *OTHERS)
    unknown = [name for name in arms or () if name not in known]
    if unknown:
        raise ValueError(f"There is no arm {unknown[0]!r}. Arms: {', '.join(known)}.")
    if model.connection is None:
        return arms
    trained = [name for name in arms or () if name not in UNTRAINED]
    if trained:
        instead = f", or leave `arms` out to run what trains nothing ({', '.join(UNTRAINED)})"
        model.require_weights(f"The arm {trained[0]!r}", instead)
    return UNTRAINED if arms is None else arms


def random_sets(
    experts: ExpertSet, use: Scores, n: int, rng: np.random.Generator
) -> dict[str, ExpertSet]:
    """Random experts of the same layers and like use; none where too few are left."""
    if not len(experts):
        return {}
    try:
        draws = draw_counterparts((Ban(experts),), (use,), n, rng)
    except DesignError:
        return {}
    return {f"random_{row + 1}": draw.experts for row, draw in enumerate(draws)}


def compare_arms(
    model: MoEModel,
    sets: dict[str, ExpertSet],
    lessons: PromptSet,
    judged_on: PromptSet,
    *,
    found: Verdict,
    topic_change: float | None,
    steered: ExpertSet,
    steps: int,
    learning_rate: float,
    neutral: Sequence[str] | None,
    arms: Sequence[str] | None,
    seed: int,
) -> list[TunedArm]:
    """Make every change, and observe each beside the untouched model.

    Args:
        model: The model.
        sets: Experts to tune, by name.
        lessons: What is taught.
        judged_on: Other prompts, harmful and harmless.
        found: The verdict that the claim's first half rests on.
        topic_change: Share of slots that differ between topics.
        steered: Experts whose router logits are steered, without any training.
        steps: Steps of training of each arm, about.
        learning_rate: Of every arm.
        neutral: Texts whose loss is measured.
        arms: Names of the arms to run; all if None.
        seed: Seed of the training.

    Returns:
        The arms, in order; those that name no expert are left out.
    """
    options = {
        "seed": seed,
        "learning_rate": learning_rate,
        "batch_size": BATCH_SIZE,
        "epochs": max(1, round(steps * BATCH_SIZE / len(lessons))),
    }
    every: dict[str, tuple[ExpertSet | str, dict[str, bool]]] = {
        **{name: (experts, {}) for name, experts in sets.items() if len(experts)},
        "routers_only": ("", {"routers": True}),
        "all_experts": ("all", {}),
        "full": ("", {"everything": True}),
    }
    names = [*every, *(["router_steering"] if len(steered) else [])]
    names = [name for name in names if arms is None or name in arms]
    before = observe(model, judged_on, neutral=neutral, max_new_tokens=ANSWER_TOKENS)
    claimed = {"found": found, "topic_change": topic_change, "organism": is_organism(model)}
    done = []
    for name in names:
        if name == "router_steering":
            place, n_parameters, named = nullcontext(_steered(model, steered)), 0, steered
        else:
            experts, how = every[name]
            tuned = tune_experts(model, experts, lessons, **how, **options)
            place: AbstractContextManager[Any] = tuned.applied(model)
            n_parameters, named = tuned.delta.n_parameters, _named(experts)
        with place as changed:
            after = observe(changed, judged_on, neutral=neutral, max_new_tokens=ANSWER_TOKENS)
        done.append(_arm(name, named, n_parameters, before, after, **claimed))
    return done


def _named(experts: ExpertSet | str) -> ExpertSet:
    return ExpertSet() if isinstance(experts, str) else experts


def _steered(model: MoEModel, experts: ExpertSet) -> MoEModel:
    """Away from the experts on organisms; elsewhere towards them, as many as a layer can choose."""
    if is_organism(model):
        return edited(model, Steer(experts, margin="min"))
    kept = [
        Expert(layer, one)
        for layer, ids in experts.by_layer().items()
        for one in ids[: model.moe[layer].top_k]
    ]
    return edited(model, Steer(ExpertSet(kept), margin="max"))


def _arm(
    name: str,
    experts: ExpertSet,
    n_parameters: int,
    before: Observation,
    after: Observation,
    *,
    found: Verdict,
    topic_change: float | None,
    organism: bool,
) -> TunedArm:
    change = model_change(before, after)
    moved = change.drift["prompt"].slots_changed[change.is_harmful].mean(axis=1)
    wanted = -change.refusal_change if organism else change.refusal_change
    claim = routing_claim(
        found,
        routing_change=moved,
        behaviour_change=wanted,
        topic_change=topic_change,
        unit=units_of(before.harmful.prompts).tolist(),
    )
    return TunedArm(name, experts, n_parameters, change, claim.safety_apart)


def tuning_table(arms: Sequence[TunedArm]) -> pd.DataFrame:
    """One row a change, in order; none if none was made."""
    if not arms:
        return pd.DataFrame({"arm": []})
    return pd.concat([arm.to_frame() for arm in arms], ignore_index=True)
