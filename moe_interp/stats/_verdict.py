"""Topic-driven or harm-driven? The rule that turns shares, tests and random routers into a word."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Float
from numpy import ndarray
from numpy.random import Generator

from moe_interp.errors import DesignError
from moe_interp.notebook import Shown
from moe_interp.stats._harm import HarmTest, harm_test
from moe_interp.stats._limits import FactorLimits, factor_limits, limits_sentence
from moe_interp.stats._negligible import NegligibilityTest, negligible
from moe_interp.stats._profile import RoutingProfile
from moe_interp.stats._relabel import TIE_TOLERANCE
from moe_interp.stats._results import format_p, plain
from moe_interp.stats._shares import (
    RoutingShares,
    check_random_profiles,
    routing_shares,
)

LABELS = ("topic_driven", "harm_driven", "both", "neither", "undetermined")


@dataclass(frozen=True)
class FactorEvidence:
    """What the verdict knows of one factor, over all layers.

    Attributes:
        name: ``"topic"`` or ``"harm"``; harm means any effect of harm within topics.
        share: Its share of the routing.
        low: Lower end of the 95 % interval.
        high: Upper end.
        p_value: Permutation p-value; for harm that of its main and its nested test together.
        random_mean: Mean share over random routers on the same hidden states.
        random_low: 2.5 % quantile over random routers.
        random_high: 97.5 % quantile.
        n_reached: Random routers whose share is at least as large.
        p_random: One-sided p-value against the random routers.
        excess: Share less the random routers' mean.
        excess_low: Lower one-sided 95 % limit of the excess over other prompts of these topics.
        negligible: Whether the share was shown negligible beside the other factor's.
        status: ``"beyond"``, ``"not beyond"``, ``"negligible"`` or ``"undecided"``.
    """

    name: str
    share: float
    low: float
    high: float
    p_value: float
    random_mean: float
    random_low: float
    random_high: float
    n_reached: int
    p_random: float
    excess: float
    excess_low: float
    negligible: bool
    status: str


@dataclass(frozen=True, eq=False)
class Verdict(Shown):
    """The verdict on one span and everything it was drawn from.

    Attributes:
        label: One of ``"topic_driven", "harm_driven", "both", "neither", "undetermined"``.
        reason: One or two sentences with the numbers, fit to be quoted.
        span: The token set.
        topic: Evidence on topic; None if the design could not be tested.
        harm: Evidence on harm; None if the design could not be tested.
        alpha: Level of the tests.
        margin: Fraction of the other share below which a share is negligible.
        n_random: Number of random routers.
        shares: The shares behind the verdict; None if the design could not be tested.
        test: The permutation tests behind it; None if the design could not be tested.
    """

    label: str
    reason: str
    span: str
    topic: FactorEvidence | None
    harm: FactorEvidence | None
    alpha: float
    margin: float
    n_random: int
    shares: RoutingShares | None = field(repr=False)
    test: HarmTest | None = field(repr=False)

    @property
    def numbers(self) -> dict[str, float]:
        """All numbers used, under flat names such as ``"harm_p_random"``."""
        numbers: dict[str, float] = {
            "alpha": self.alpha,
            "margin": self.margin,
            "n_random": self.n_random,
        }
        for evidence in (self.topic, self.harm):
            if evidence is not None:
                own = {k: v for k, v in vars(evidence).items() if k not in ("name", "status")}
                numbers |= {f"{evidence.name}_{key}": value for key, value in own.items()}
        return numbers

    @property
    def limits(self) -> tuple[FactorLimits, ...]:
        """How far topic and harm are from another status; empty if nothing could be tested."""
        if self.shares is None or self.topic is None or self.harm is None:
            return ()
        return tuple(
            factor_limits(evidence, self.shares, alpha=self.alpha, n_random=self.n_random)
            for evidence in (self.topic, self.harm)
        )

    @property
    def what_would_change(self) -> str:
        """What would give topic and harm another status, in two sentences."""
        if not self.limits or np.isnan(self.topic.share):
            return "Only other prompts would: this design could not be tested on this routing."
        return " ".join(
            limits_sentence(
                limits, evidence.status, margin=self.margin, n_units=self.shares.n_units
            )
            for limits, evidence in zip(self.limits, (self.topic, self.harm), strict=True)
        )

    def to_dict(self) -> dict[str, Any]:
        """Return label, reason, numbers and what would change it as JSON-safe values."""
        status = {e.name: e.status for e in (self.topic, self.harm) if e is not None}
        return plain(
            {
                "label": self.label,
                "reason": self.reason,
                "span": self.span,
                "status": status,
                "numbers": self.numbers,
                "limits": {limits.name: limits.to_dict() for limits in self.limits},
                "what_would_change": self.what_would_change,
            }
        )

    def summary(self) -> str:
        """Return the label and the reason."""
        return f"{self.label} ({self.span!r} tokens): {self.reason}"


def verdict(
    profile: RoutingProfile,
    random_profiles: Float[ndarray, "draw prompt layer expert"],
    *,
    n_resamples: int = 9999,
    rng: Generator,
    alpha: float = 0.05,
    margin: float = 0.10,
    scheme: str = "auto",
) -> Verdict:
    r"""Say whether routing follows topic, harm, both or neither beyond what any router shows.

    A factor is *negligible* if its share is, by `negligible`, below `margin` of the other's.
    It is *beyond* random routers if it is not negligible and

    1. its permutation p-value is at most `alpha`,
    2. its share exceeds those of random routers on the same hidden states,
       :math:`(1 + \#\{\text{random} \ge \text{observed}\}) / (1 + n) \le \alpha / 2`
       (half of `alpha`, since two factors are tried), and
    3. its excess over their mean stays positive, at the 95 % level, under other prompts.

    If 2 holds without 1 or 3, the factor is *undecided*; otherwise it is *not beyond*. Then:
    only topic beyond, ``topic_driven``; only harm, ``harm_driven``; each, ``both``; none,
    ``neither``; any factor undecided, or too few exchange units, ``undetermined``.

    A router drawn like the random ones is called ``neither`` with probability at least
    1 - `alpha`, whatever its inputs, for its rank among them is uniform. ``neither`` is therefore
    a statement about the router and not about the hidden states, which may be full of harm; and
    it is the answer when nothing was found, not proof of absence. Harm is any effect within
    topics, also one that differs by topic. Topics are fixed: the verdict is about these topics.

    Args:
        profile: Profile of one span.
        random_profiles: Profiles of Gaussian routers on the same router inputs.
        n_resamples: Number of relabellings of the permutation tests.
        rng: Source of randomness.
        alpha: Level.
        margin: Fraction of the other factor's share that counts as negligible.
        scheme: Exchange scheme, see `routing_shares`.

    Returns:
        The verdict with its reason and numbers.

    Raises:
        ValueError: If an option is out of range, `random_profiles` does not fit, or there are too
            few random routers to reach `alpha`.
        DesignError: If topics or harm levels are missing.
    """
    check_random_profiles(profile, random_profiles)
    n_random = len(random_profiles)
    if 1 / (1 + n_random) > alpha / 2:
        raise ValueError(
            f"{n_random} random routers allow no p-value up to alpha / 2 = {alpha / 2:g}; at "
            f"least {int(np.ceil(2 / alpha)) - 1} are needed, and 99 are usual."
        )
    shares = routing_shares(profile, scheme=scheme, random_profiles=random_profiles)
    try:
        test = harm_test(profile, n_resamples=n_resamples, rng=rng, scheme=scheme, alpha=alpha)
    except DesignError as error:
        return Verdict(
            "undetermined",
            str(error),
            profile.span,
            topic=None,
            harm=None,
            alpha=alpha,
            margin=margin,
            n_random=n_random,
            shares=shares,
            test=None,
        )
    return decide(shares, test, alpha=alpha, margin=margin)


def decide(
    shares: RoutingShares, test: HarmTest, *, alpha: float = 0.05, margin: float = 0.10
) -> Verdict:
    """Apply the rule of `verdict` to shares and tests already computed.

    Args:
        shares: Shares with random-router shares.
        test: Permutation tests of the same profile.
        alpha: Level.
        margin: Fraction of the other factor's share that counts as negligible.

    Returns:
        The verdict.

    Raises:
        ValueError: If the shares were computed without random routers.
    """
    if shares.random is None:
        raise ValueError(
            "The shares hold no random routers: give `random_profiles` to routing_shares."
        )
    # Bonferroni over the two tests of harm, which look for different patterns.
    p_harm = min(1.0, 2 * min(test.p_harm, test.p_harm_nested))
    found = {
        "topic": _evidence("topic", test.p_topic, shares, alpha, margin),
        "harm": _evidence("harm", p_harm, shares, alpha, margin),
    }
    label = _label(found["topic"].status, found["harm"].status)
    return Verdict(
        label=label,
        reason=_reason(label, found["topic"], found["harm"], shares, margin),
        span=shares.span,
        topic=found["topic"],
        harm=found["harm"],
        alpha=alpha,
        margin=margin,
        n_random=len(shares.random["topic"]),
        shares=shares,
        test=test,
    )


def _evidence(
    name: str, p_value: float, shares: RoutingShares, alpha: float, margin: float
) -> FactorEvidence:
    column = {"topic": "topic", "harm": "harm_total"}[name]
    share, low, high = shares.pooled(column)
    random = shares.random[column][:, -1]
    small: NegligibilityTest = negligible(
        shares,
        margin=margin,
        alpha=alpha,
        factor=name,
        beside="harm" if name == "topic" else "topic",
    )
    n_reached = int((random >= share - TIE_TOLERANCE).sum())
    excess = share - float(random.mean())
    error = shares.jackknife.error(
        np.asarray(excess), shares.replicates[column][:, -1] - shares.random_replicates[column]
    )
    reach = shares.jackknife.reach(1 - alpha) * float(error)
    p_random = (1 + n_reached) / (1 + len(random))
    excess_low = excess - reach
    exceeds = p_random <= alpha / 2
    if small.negligible:
        status = "negligible"
    elif np.isnan(share) or not exceeds:
        status = "not beyond"
    elif p_value <= alpha and excess_low > 0:
        status = "beyond"
    else:
        status = "undecided"
    return FactorEvidence(
        name=name,
        share=share,
        low=low,
        high=high,
        p_value=p_value,
        random_mean=float(random.mean()),
        random_low=float(np.quantile(random, 0.025)),
        random_high=float(np.quantile(random, 0.975)),
        n_reached=n_reached,
        p_random=p_random,
        excess=excess,
        excess_low=excess_low,
        negligible=small.negligible,
        status=status,
    )


def _label(topic: str, harm: str) -> str:
    if "undecided" in (topic, harm):
        return "undetermined"
    return {
        (True, False): "topic_driven",
        (False, True): "harm_driven",
        (True, True): "both",
        (False, False): "neither",
    }[topic == "beyond", harm == "beyond"]


def _reason(
    label: str,
    topic: FactorEvidence,
    harm: FactorEvidence,
    shares: RoutingShares,
    margin: float,
) -> str:
    if np.isnan(topic.share):
        return f"Routing on {shares.span!r} tokens is the same for every prompt."
    n_random = len(shares.random["topic"])
    order = (harm, topic) if label == "harm_driven" else (topic, harm)
    parts = [_sentence(e, n_random, margin) for e in order]
    opening = {
        "topic_driven": "follows topic and not harm beyond random routers",
        "harm_driven": "follows harm and not topic beyond random routers",
        "both": "follows both topic and harm beyond random routers",
        "neither": "follows neither topic nor harm beyond random routers",
        "undetermined": "could not be decided on",
    }[label]
    return (
        f"Routing on {shares.span!r} tokens {opening}: {parts[0]}; {parts[1]} "
        f"({shares.n_prompts} prompts)."
    )


def _sentence(evidence: FactorEvidence, n_random: int, margin: float) -> str:
    other = "harm" if evidence.name == "topic" else "topic"
    numbers = (
        f"{evidence.name} accounts for {evidence.share:.1%} of it (95 % interval "
        f"{evidence.low:.1%} to {evidence.high:.1%}, permutation {format_p(evidence.p_value)}) "
        f"where random routers on the same hidden states show {evidence.random_low:.1%} to "
        f"{evidence.random_high:.1%}"
    )
    if evidence.status == "negligible":
        return f"{numbers}, negligible beside {other} at a margin of {margin:.0%}"
    reached = f"{evidence.n_reached} of {n_random} random routers reach it"
    if evidence.status == "undecided":
        return f"{numbers}; {reached}, but the excess may be due to the choice of prompts"
    return f"{numbers}; {reached}"
