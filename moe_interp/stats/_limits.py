"""What would change a verdict: how far each number is from its threshold."""

from dataclasses import dataclass
from math import ceil, floor
from typing import TYPE_CHECKING, Any

import numpy as np

from moe_interp.stats._negligible import negligible
from moe_interp.stats._results import plain
from moe_interp.stats._shares import RoutingShares

if TYPE_CHECKING:
    from moe_interp.stats._verdict import FactorEvidence

# A verdict is never refined by asking for more than this many times the units there are.
_MOST_UNITS = 1000


@dataclass(frozen=True)
class FactorLimits:
    """How far one factor is from another status.

    Attributes:
        name: ``"topic"`` or ``"harm"``.
        p_room: `alpha` less the permutation p-value; below 0 the test does not find the factor.
        random_room: How many more random routers could reach the share before it no longer
            exceeds them; below 0, how many too many do.
        excess_low: Lower limit of the excess over random routers; has to be above 0.
        units_needed: Exchange units with which that limit would be 0 if the excess stayed as it
            is; None if the excess is not positive, or no number below a thousand times the present
            one would do.
        margin_flip: Margin at which "negligible" starts or stops to hold; None if it never does
            for margins below 1.
    """

    name: str
    p_room: float
    random_room: int
    excess_low: float
    units_needed: int | None
    margin_flip: float | None

    def to_dict(self) -> dict[str, Any]:
        """Return every field as JSON-safe values."""
        return plain(vars(self))


def factor_limits(
    evidence: "FactorEvidence", shares: RoutingShares, *, alpha: float, n_random: int
) -> FactorLimits:
    """Measure how far a factor's evidence is from each threshold of the rule.

    Args:
        evidence: What the verdict knows of the factor.
        shares: The shares behind it.
        alpha: Level of the verdict.
        n_random: Number of random routers.

    Returns:
        The distances.
    """
    # The largest count of random routers that still is within alpha / 2.
    allowed = floor(alpha / 2 * (1 + n_random) + 1e-9) - 1
    return FactorLimits(
        name=evidence.name,
        p_room=alpha - evidence.p_value,
        random_room=allowed - evidence.n_reached,
        excess_low=evidence.excess_low,
        units_needed=_units_needed(evidence, shares.n_units),
        margin_flip=_margin_flip(evidence.name, shares, alpha),
    )


def _units_needed(evidence: "FactorEvidence", n_units: int) -> int | None:
    """The error falls with the root of the units; Student's t is taken as it is."""
    if not evidence.excess > 0 or not np.isfinite(evidence.excess_low):
        return None
    reach = evidence.excess - evidence.excess_low
    needed = n_units * (reach / evidence.excess) ** 2
    return max(2, ceil(needed)) if needed <= _MOST_UNITS * n_units else None


def _margin_flip(name: str, shares: RoutingShares, alpha: float) -> float | None:
    """The smallest margin at which the factor is negligible, by halving."""
    other = "harm" if name == "topic" else "topic"

    def holds(margin: float) -> bool:
        found = negligible(shares, margin=margin, alpha=alpha, factor=name, beside=other)
        return found.negligible

    low, high = 1e-6, 1 - 1e-6
    if np.isnan(shares.shares["topic"][-1]) or not holds(high):
        return None
    while high - low > 1e-4:
        middle = (low + high) / 2
        low, high = (low, middle) if holds(middle) else (middle, high)
    return high


def limits_sentence(limits: FactorLimits, status: str, *, margin: float, n_units: int) -> str:
    """Say what would give a factor another status.

    Args:
        limits: The distances.
        status: The factor's status.
        margin: Margin of the verdict.
        n_units: Exchange units there are.

    Returns:
        One sentence.
    """
    name = limits.name
    if limits.margin_flip is None:
        flip = "no margin below 100 % would make it negligible"
    else:
        flip = (
            f"it counts as negligible from a margin of {limits.margin_flip:.1%} (now {margin:.0%})"
        )
    if status == "negligible":
        return f"{name.capitalize()} is negligible; {flip}."
    if status == "beyond":
        routers = limits.random_room + 1
        return (
            f"{name.capitalize()} would no longer be beyond random routers if {routers} more of "
            f"them reached its share, if its p-value rose by {limits.p_room:.3g}, or if its excess "
            f"were smaller by {limits.excess_low:.3f}; {flip}."
        )
    needs = []
    if limits.random_room < 0:
        needs.append(f"{-limits.random_room} fewer random routers reached its share")
    if limits.p_room < 0:
        needs.append(f"its p-value fell by {-limits.p_room:.3g}")
    if not limits.excess_low > 0:
        if limits.units_needed is None:
            needs.append("its excess over random routers were larger")
        else:
            needs.append(
                f"there were about {limits.units_needed} exchange units (now {n_units}) with the "
                f"same excess"
            )
    return f"{name.capitalize()} would be beyond random routers if {' and '.join(needs)}; {flip}."
