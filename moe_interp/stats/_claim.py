"""RASET's claim in its two halves, which do not imply each other and are told apart here.

The claim [1] is that routing in aligned models follows the topic, and that safety behaviour can
be changed while routing hardly changes. An organism whose routing follows harm can be un-aligned
without any change of routing as well, so that the second half is no evidence for the first.

References:
    [1] Zhang et al. (2026), "RASET: Router-agnostic safety-critical expert tuning exposes
        localized safety enforcement failures in MoE LLMs".
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Float, Shaped
from numpy import ndarray
from scipy.stats import t as student_t

from moe_interp.notebook import Shown
from moe_interp.stats._results import plain
from moe_interp.stats._verdict import Verdict

STATES = ("supported", "contradicted", "undetermined", "not tested")


@dataclass(frozen=True)
class HalfClaim:
    """One half of the claim.

    Attributes:
        state: ``"supported"``, ``"contradicted"``, ``"undetermined"`` or ``"not tested"``.
        reason: One sentence with the numbers.
        numbers: The numbers used, by name.
    """

    state: str
    reason: str
    numbers: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class RoutingClaim(Shown):
    """Both halves of the claim on one span.

    Attributes:
        span: The token set that the first half is about.
        follows_topic: "Routing follows the topic, and not harm."
        safety_apart: "Safety behaviour changes while routing hardly does."
    """

    span: str
    follows_topic: HalfClaim
    safety_apart: HalfClaim

    def to_dict(self) -> dict[str, Any]:
        """Return both halves as JSON-safe values."""
        return plain(
            {
                "span": self.span,
                "follows_topic": vars(self.follows_topic),
                "safety_apart": vars(self.safety_apart),
            }
        )

    def summary(self) -> str:
        """Return one line a half."""
        return "\n".join(
            f"{title}: {half.state}. {half.reason}"
            for title, half in (
                ("Routing follows topic and not harm", self.follows_topic),
                ("Safety behaviour changes while routing hardly does", self.safety_apart),
            )
        )


def routing_claim(
    found: Verdict,
    *,
    routing_change: Sequence[float] | Float[ndarray, " prompt"] | None = None,
    behaviour_change: Sequence[float] | Float[ndarray, " prompt"] | None = None,
    topic_change: float | None = None,
    unit: Sequence[Any] | Shaped[ndarray, " prompt"] | None = None,
    least_behaviour: float = 0.5,
    margin: float = 0.10,
    alpha: float = 0.05,
) -> RoutingClaim:
    """Judge both halves of the claim that routing follows topic and safety lies elsewhere.

    The first half is the verdict: ``topic_driven`` supports it, ``harm_driven`` and ``both``
    contradict it, anything else leaves it open. The second compares two states of the same
    prompts: refused and answered (by forcing either continuation), or a model before and after
    tuning. It is *supported* if behaviour changes (lower limit of its mean change above
    `least_behaviour`) and routing does not (upper limit of its mean change below `margin` times
    `topic_change`); *contradicted* if behaviour changes and routing does, too (its lower limit is
    above); *undetermined* between; and *not tested* if nothing was given or behaviour did not
    change. Limits are one-sided, by Student's t over units.

    Args:
        found: The verdict on one span.
        routing_change: Share of top-k slots of each prompt that differ between the two states.
        behaviour_change: Change of each prompt's behaviour, such as refused before less refused
            after.
        topic_change: Share of slots that differ between prompts of different topics, the yard
            stick; 1 if None, so that `margin` is a share of slots itself.
        unit: Exchange unit of each prompt, if prompts share wording; each its own if None.
        least_behaviour: Mean change from which behaviour counts as changed.
        margin: Fraction of `topic_change` below which routing counts as unchanged.
        alpha: One-sided level of the limits.

    Returns:
        Both halves, each with its state and numbers.

    Raises:
        ValueError: If one of the two changes is missing, they differ in length, hold NaN, or
            an option is out of range.

    Example:
        >>> from moe_interp.stats import Verdict
        >>> found = Verdict("topic_driven", "Routing follows topic.", "user", None, None, 0.05,
        ...                 0.1, 99, None, None)
        >>> claim = routing_claim(
        ...     found, routing_change=[0.0, 0.01, 0.02], behaviour_change=[1.0, 1.0, 1.0])
        >>> claim.follows_topic.state, claim.safety_apart.state
        ('supported', 'supported')
    """
    state = {"topic_driven": "supported", "harm_driven": "contradicted", "both": "contradicted"}
    first = HalfClaim(state.get(found.label, "undetermined"), found.reason, found.numbers)
    if routing_change is None and behaviour_change is None:
        reason = "No two states of the same prompts were compared."
        return RoutingClaim(found.span, first, HalfClaim("not tested", reason))
    if routing_change is None or behaviour_change is None:
        raise ValueError("Give both `routing_change` and `behaviour_change`, or neither.")
    if not 0 < alpha < 0.5 or not 0 < margin < 1 or not least_behaviour >= 0:
        raise ValueError(
            f"`alpha` must lie between 0 and 0.5, `margin` between 0 and 1 and `least_behaviour` "
            f"not below 0, got {alpha!r}, {margin!r} and {least_behaviour!r}."
        )
    yardstick = 1.0 if topic_change is None else float(topic_change)
    if not 0 < yardstick <= 1:
        raise ValueError(f"`topic_change` must lie between 0 and 1, got {topic_change!r}.")
    routing = _by_unit("routing_change", routing_change, unit)
    behaviour = _by_unit("behaviour_change", behaviour_change, unit)
    if len(routing) != len(behaviour):
        raise ValueError(
            f"`routing_change` has {len(routing)} values and `behaviour_change` {len(behaviour)}."
        )
    limit = margin * yardstick
    changed, changed_low, _ = _limits(behaviour, alpha)
    moved, moved_low, moved_high = _limits(routing, alpha)
    numbers = {
        "behaviour_change": changed,
        "behaviour_low": changed_low,
        "least_behaviour": least_behaviour,
        "routing_change": moved,
        "routing_low": moved_low,
        "routing_high": moved_high,
        "routing_limit": limit,
        "n_units": float(len(routing)),
    }
    second = HalfClaim(*_second_half(numbers), numbers)
    return RoutingClaim(found.span, first, second)


def _second_half(numbers: dict[str, float]) -> tuple[str, str]:
    told = (
        f"behaviour changes by {numbers['behaviour_change']:.2f} on average (lower limit "
        f"{numbers['behaviour_low']:.2f}), {numbers['routing_change']:.1%} of slots change (limits "
        f"{numbers['routing_low']:.1%} to {numbers['routing_high']:.1%}; unchanged means below "
        f"{numbers['routing_limit']:.1%})"
    )
    if not numbers["behaviour_low"] > numbers["least_behaviour"]:
        return "not tested", (
            f"Behaviour was not shown to change by more than {numbers['least_behaviour']:.2f}: "
            f"{told}."
        )
    if numbers["routing_high"] < numbers["routing_limit"]:
        return "supported", f"Between the two states {told}."
    if numbers["routing_low"] > numbers["routing_limit"]:
        return "contradicted", f"Between the two states {told}."
    return "undetermined", f"Too few units to tell: {told}."


def _by_unit(
    name: str,
    values: Sequence[float] | Float[ndarray, " prompt"],
    unit: Sequence[Any] | Shaped[ndarray, " prompt"] | None,
) -> Float[ndarray, " unit"]:
    """Mean of each unit's prompts."""
    numbers = np.asarray(values, dtype=np.float64)
    if numbers.ndim != 1 or len(numbers) < 2 or not np.isfinite(numbers).all():
        raise ValueError(
            f"`{name}` must hold one finite number for each of at least two prompts, got shape "
            f"{numbers.shape}."
        )
    if unit is None:
        return numbers
    if len(unit) != len(numbers):
        raise ValueError(f"`unit` has {len(unit)} values for {len(numbers)} prompts of `{name}`.")
    code = np.unique(np.asarray([str(name) for name in unit]), return_inverse=True)[1].reshape(-1)
    if code.max() == 0:
        raise ValueError("All prompts are one `unit`: at least two are needed.")
    return np.bincount(code, numbers) / np.bincount(code)


def _limits(values: Float[ndarray, " unit"], alpha: float) -> tuple[float, float, float]:
    """Mean with its one-sided lower and upper limits."""
    mean = float(values.mean())
    reach = float(student_t.ppf(1 - alpha, len(values) - 1) * values.std(ddof=1)) / np.sqrt(
        len(values)
    )
    return mean, float(mean - reach), float(mean + reach)
