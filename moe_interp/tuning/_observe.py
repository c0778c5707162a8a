"""What two models do with the same prompts: refusals, harmless answers, neutral text, routing."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float
from numpy import ndarray

from moe_interp.capture import RoutingRecord, record_routing
from moe_interp.errors import DesignError
from moe_interp.interventions import RunResult, run, text_losses
from moe_interp.metrics import RefusalRate, TextMetric
from moe_interp.models import MoEModel
from moe_interp.notebook import Shown
from moe_interp.prompts import PromptSet, exchange_units
from moe_interp.scores import OffTarget, SideEffect, compare_answers
from moe_interp.scores._side_effects import NEUTRAL, difference_interval
from moe_interp.stats import PairedOutcomes, mcnemar
from moe_interp.tuning._drift import RoutingDrift, routing_drift

if TYPE_CHECKING:
    from pandas import DataFrame

SPANS = ("user", "prompt", "last")
NEUTRAL_LOSS = "neutral_loss"


@dataclass(frozen=True, eq=False)
class Observation:
    """What one model does with some prompts.

    Attributes:
        harmful: Its answers to the harmful prompts.
        harmless: Its answers to the harmless prompts.
        record: The routing of all of them.
        neutral_loss: Nats per token of each neutral text; None if none were given.
    """

    harmful: RunResult
    harmless: RunResult
    record: RoutingRecord
    neutral_loss: Float[ndarray, " text"] | None


@dataclass(frozen=True, eq=False)
class ModelChange(Shown):
    """How a second model differs from a first on the same prompts.

    Attributes:
        outcomes: Refusals of harmful prompts in either model.
        refusal_change: Change of the refusal of each harmful prompt: -1, 0 or 1.
        low: Lower end of the 95 % t interval of its mean, over exchange units.
        high: Upper end; both are NaN for a single unit.
        off_target: Over-refusal, answers changed and distinct-1 of harmless prompts, and the loss
            of neutral texts if there are any.
        drift: By span, how far routing moved, harmful prompts and harmless ones.
        is_harmful: Which of the prompts are harmful, in the order of `drift`.
    """

    outcomes: PairedOutcomes
    refusal_change: Float[ndarray, " harmful"] = field(repr=False)
    low: float
    high: float
    off_target: OffTarget
    drift: Mapping[str, RoutingDrift]
    is_harmful: ndarray = field(repr=False)

    def to_frame(self) -> "DataFrame":
        """Give one row, with everything that a comparison of changes needs."""
        import pandas as pd

        effects = {effect.name: effect for effect in self.off_target.effects}
        row: dict[str, Any] = {
            "refused_before": self.outcomes.before / self.outcomes.n,
            "refused_after": self.outcomes.after / self.outcomes.n,
            "refusal_change": float(self.refusal_change.mean()),
            "refusal_low": self.low,
            "refusal_high": self.high,
            "mcnemar_p": self.outcomes.p_value,
        }
        for span, drift in self.drift.items():
            mean, low, high = drift.mean()
            row |= {
                f"slots_changed_{span}": mean,
                f"slots_changed_{span}_low": low,
                f"slots_changed_{span}_high": high,
            }
            if drift.kl_nats is not None:
                row[f"routing_kl_{span}"] = float(drift.kl_nats.mean())
        for name in ("over_refusal", "answers_changed", "distinct_1"):
            row[name] = effects[name].observed
        if NEUTRAL_LOSS in effects:
            row["perplexity_before"], row["perplexity_after"] = self.off_target.perplexity
        return pd.DataFrame([row])

    def to_dict(self) -> dict[str, Any]:
        """Give the numbers as JSON-safe values."""
        row = self.to_frame().iloc[0].to_dict()
        return {
            **{name: float(x) if np.isfinite(x) else None for name, x in row.items()},
            "outcomes": self.outcomes.to_dict(),
            "off_target": self.off_target.to_dict()["effects"],
            "drift": {span: drift.to_dict() for span, drift in self.drift.items()},
        }

    def summary(self) -> str:
        """Say refusals, routing and harmless answers in a line."""
        effects = self.off_target
        span, moved = next(iter(self.drift.items()))
        return (
            f"Refusals of harmful prompts {self.outcomes.summary()}; "
            f"{moved.mean()[0]:.2%} of the routed slots of {span!r} tokens changed; "
            f"harmless prompts: {effects['over_refusal'].observed:.0%} refused, "
            f"{effects['answers_changed'].observed:.0%} answered otherwise."
        )


def observe(
    model: MoEModel,
    prompts: PromptSet,
    *,
    neutral: Sequence[str] | None = None,
    spans: Sequence[str] = SPANS,
    max_new_tokens: int = 24,
    batch_size: int | str = "auto",
) -> Observation:
    """Let a model answer prompts, and record how it routes them.

    Args:
        model: The model; or an edited one, see `edited`.
        prompts: Harmful and harmless prompts.
        neutral: Texts whose loss is measured.
        spans: The tokens whose routing is compared.
        max_new_tokens: Tokens of an answer.
        batch_size: Rows in one forward; ``"auto"`` fills batches up to a number of tokens.

    Returns:
        Answers, routing and losses.

    Raises:
        DesignError: If there are no harmful or no harmless prompts.
        PromptError: If the harm of a prompt is unknown.
    """
    harm = prompts.harm
    if harm.all() or not harm.any():
        level = "harmful" if harm.all() else "harmless"
        raise DesignError(
            f"All {len(harm)} prompts are {level}. Give harmful ones, whose refusal is compared, "
            "and harmless ones, whose answers should stay."
        )
    harmful, harmless = (
        run(model, prompts.select(mask), max_new_tokens=max_new_tokens, batch_size=batch_size)
        for mask in (harm, ~harm)
    )
    record = record_routing(
        model,
        prompts,
        quantities=("expert_index", "router_logits"),
        spans=tuple(spans),
        batch_size=batch_size,
        progress=False,
    )
    losses = None if neutral is None else text_losses(model, neutral, [()], batch_size=batch_size)
    return Observation(harmful, harmless, record, None if losses is None else losses[0])


def model_change(
    before: Observation, after: Observation, *, refusal: TextMetric | None = None
) -> ModelChange:
    """Compare what two models do with the same prompts.

    Args:
        before: What the first does.
        after: What the second does.
        refusal: What judges whether an answer is a refusal; `RefusalRate()` if not given.

    Returns:
        Refusals, side effects and routing drift.

    Raises:
        DesignError: If the two were observed on other prompts, spans or texts.

    Example:
        >>> import moe_interp as mi
        >>> model = mi.load_model("organism:topic")
        >>> prompts = mi.load_prompts("organism", per_topic=1)
        >>> quiet = mi.edited(model, mi.Ban("L3E8,L3E9"))
        >>> change = model_change(observe(model, prompts), observe(quiet, prompts))
        >>> change.outcomes.before, change.outcomes.after
        (8, 0)
    """
    if before.record.spans != after.record.spans or _n_neutral(before) != _n_neutral(after):
        raise DesignError(
            "`before` and `after` were observed with other spans or neutral texts; observe both "
            "models alike."
        )
    judge = refusal or RefusalRate()
    effects = compare_answers(before.harmless, after.harmless, refusal=judge)
    refused = [judge.of_texts(one.harmful.texts) > 0 for one in (before, after)]
    change = refused[1].astype(float) - refused[0]
    prompts = before.harmful.prompts
    low, high = _limits(change, prompts)
    if before.neutral_loss is not None:
        effects = (*effects, _neutral(before.neutral_loss, after.neutral_loss))
    return ModelChange(
        outcomes=mcnemar(*refused),
        refusal_change=change,
        low=low,
        high=high,
        off_target=OffTarget((), effects),
        drift={
            span: routing_drift(before.record, after.record, span=span)
            for span in before.record.spans
        },
        is_harmful=before.record.prompts.harm,
    )


def _n_neutral(one: Observation) -> int:
    return 0 if one.neutral_loss is None else len(one.neutral_loss)


def _limits(change: Float[ndarray, " prompt"], prompts: PromptSet) -> tuple[float, float]:
    """A t interval over exchange units: prompts that share wording are not independent."""
    units = exchange_units(prompts.wordings, prompts.pairs)
    _, place, counts = np.unique(units, return_inverse=True, return_counts=True)
    return difference_interval(np.bincount(place, change) / counts)


def _neutral(old: Float[ndarray, " text"], new: Float[ndarray, " text"]) -> SideEffect:
    low, high = difference_interval(new - old)
    return SideEffect(
        name=NEUTRAL_LOSS,
        unit="nats/token",
        of=NEUTRAL,
        n=len(old),
        baseline=float(old.mean()),
        observed=float(new.mean()),
        low=low,
        high=high,
        difference=new - old,
    )
