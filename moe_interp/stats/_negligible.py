"""Is one factor's share negligible beside the other's? Never concluded from a large p-value."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.stats import t as student_t

from moe_interp.notebook import Shown
from moe_interp.stats._profile import RoutingProfile
from moe_interp.stats._results import plain
from moe_interp.stats._shares import (
    RoutingShares,
    routing_shares,
)


@dataclass(frozen=True)
class NegligibilityTest(Shown):
    """One-sided equivalence test of a share against a fraction of another share.

    Attributes:
        factor: The factor in question.
        beside: The factor it is compared with.
        margin: Fraction of the other share below which a share counts as negligible.
        alpha: One-sided level.
        difference: Share, at least 0, minus `margin` times the other share; negative is small.
        error: Jackknife standard error of the difference.
        upper: Upper one-sided confidence limit of the difference.
        p_value: p-value of "not negligible".
        negligible: Whether `upper` is below 0.
    """

    factor: str
    beside: str
    margin: float
    alpha: float
    difference: float
    error: float
    upper: float
    p_value: float
    negligible: bool

    def to_dict(self) -> dict[str, Any]:
        """Return every field as JSON-safe values."""
        return plain(vars(self))

    def summary(self) -> str:
        """Return the outcome in a sentence."""
        outcome = "is negligible" if self.negligible else "was not shown to be negligible"
        return (
            f"The share of {self.factor} {outcome} beside {self.margin:.0%} of the share of "
            f"{self.beside} (difference {self.difference:+.4f}, upper limit {self.upper:+.4f})."
        )


def negligible(
    source: RoutingProfile | RoutingShares,
    *,
    margin: float = 0.10,
    alpha: float = 0.05,
    factor: str = "harm",
    beside: str = "topic",
    scheme: str = "auto",
) -> NegligibilityTest:
    """Test whether harm's share of the routing is negligible beside topic's.

    Declares harm negligible if the upper confidence limit of ``harm - margin * topic``, pooled
    over layers, is below 0, with the jackknife's standard error and Student's t; a share
    estimated below 0 is read as 0. Harm means any
    effect of harm within topics, also one that differs by topic: routing that sends harmful
    prompts of each topic to another expert is not free of harm.

    Args:
        source: A profile, or shares already computed.
        margin: Fraction of the other share that counts as negligible, between 0 and 1.
        alpha: One-sided level.
        factor: ``"harm"`` or ``"topic"``.
        beside: The other of the two.
        scheme: Exchange scheme, if `source` is a profile.

    Returns:
        The test; its `negligible` says the outcome.

    Raises:
        ValueError: If `margin`, `alpha` or the factors are out of range.
        DesignError: If the labels do not allow the question.
    """
    if not 0 < margin < 1 or not 0 < alpha < 0.5:
        raise ValueError(
            f"`margin` must lie between 0 and 1 and `alpha` between 0 and 0.5, got {margin!r} and "
            f"{alpha!r}."
        )
    columns = {"harm": "harm_total", "topic": "topic"}
    if {factor, beside} != set(columns):
        raise ValueError(
            f"`factor` and `beside` must be 'harm' and 'topic' in either order, got {factor!r} "
            f"and {beside!r}."
        )
    shares = source
    if isinstance(source, RoutingProfile):
        shares = routing_shares(source, scheme=scheme)
    small, large = columns[factor], columns[beside]
    # No true share is negative: a negative estimate is noise and must not count as evidence.
    own = np.maximum(shares.shares[small][-1], 0.0)
    difference = float(own - margin * shares.shares[large][-1])
    whole = shares.shares[small][-1] - margin * shares.shares[large][-1]
    replicates = shares.replicates[small][:, -1] - margin * shares.replicates[large][:, -1]
    error = float(shares.jackknife.error(np.asarray(whole), replicates))
    upper = difference + shares.jackknife.reach(1 - alpha) * error
    if error > 0:
        p_value = float(student_t.cdf(difference / error, shares.jackknife.degrees))
    else:
        p_value = 0.0 if difference < 0 else 1.0
    return NegligibilityTest(
        factor=factor,
        beside=beside,
        margin=margin,
        alpha=alpha,
        difference=difference,
        error=error,
        upper=float(upper),
        p_value=p_value,
        negligible=bool(upper < 0),
    )
