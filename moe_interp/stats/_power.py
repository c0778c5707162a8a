r"""How many prompts does it take? Power of `harm_test` from the user's own prompts.

The record stands for the population: effects of harm that it shows are taken out, its exchange
units are drawn anew with replacement, and a shift between harmful and harmless prompts of a
stated share of the routing is planted. The shift points where single prompts differ anyway, a
new direction each time. A shift of size s changes every contrast linearly, so that

.. math:: \lVert c_b + s k_b u\rVert^2 = \lVert c_b\rVert^2 + 2 s k_b c_b^\top u + s^2 k_b^2

for relabelling b and direction u, and one pass over the relabellings serves all sizes.
"""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from einops import rearrange
from jaxtyping import Bool, Float, Int
from numpy import ndarray
from numpy.random import Generator
from scipy.stats import binomtest

from moe_interp.notebook import Shown
from moe_interp.stats._contrast import Weights, centred_unit_sums
from moe_interp.stats._design import Design, make_design
from moe_interp.stats._forms import SumsOfSquares, harm_rows
from moe_interp.stats._profile import RoutingProfile
from moe_interp.stats._relabel import Tally, check_resamples, draw_labels, is_exhaustive
from moe_interp.stats._results import plain
from moe_interp.stats._schemes import Exchange

if TYPE_CHECKING:
    import pandas as pd

_FACTORS = (0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 4.0)
# Where units that have the same topics are fewer than this on average, all are drawn together.
_LEAST_ALIKE = 3
# Sizes tried around the effect asked for, to find the smallest that the present prompts show.
_SPREAD = np.geomspace(1 / 64, 64, 49)


@dataclass(frozen=True, eq=False)
class Power(Shown):
    """Power of the test of harm for prompts like those recorded.

    Attributes:
        span: The token set.
        effect: Share of routing that harm was given.
        alpha: Level of the test.
        target: Power wanted.
        n_units: Numbers of exchange units tried, in increasing order.
        n_prompts: Prompts that so many units have on average.
        power: Part of the simulations that found the effect.
        low: Lower ends of the 95 % intervals of `power`, over simulations.
        high: Upper ends.
        recorded_units: Exchange units in the record.
        needed_units: Units at which `power` reaches `target`, between those tried: the smallest
            if it reaches it already, None if none does.
        needed_prompts: The same in prompts.
        detectable: Smallest share that as many units as recorded show with power `target`; None
            if no share that was tried is.
        scheme: Name of the exchange scheme.
        words: What was exchanged, in words.
        n_simulations: Simulations behind every number of units.
    """

    span: str
    effect: float
    alpha: float
    target: float
    n_units: Int[ndarray, " size"]
    n_prompts: Int[ndarray, " size"]
    power: Float[ndarray, " size"]
    low: Float[ndarray, " size"]
    high: Float[ndarray, " size"]
    recorded_units: int
    needed_units: int | None
    needed_prompts: int | None
    detectable: float | None
    scheme: str
    words: str
    n_simulations: int

    @property
    def extrapolated(self) -> Bool[ndarray, " size"]:
        """Which numbers of units exceed the record's, and rest on its units drawn repeatedly."""
        return self.n_units > self.recorded_units

    def to_frame(self) -> "pd.DataFrame":
        """Return one row for each number of units."""
        import pandas as pd

        return pd.DataFrame(
            {
                "n_units": self.n_units,
                "n_prompts": self.n_prompts,
                "power": self.power,
                "low": self.low,
                "high": self.high,
                "extrapolated": self.extrapolated,
            }
        )

    def to_dict(self) -> dict[str, Any]:
        """Return every field as JSON-safe values."""
        return plain({**vars(self), "extrapolated": self.extrapolated})

    def summary(self) -> str:
        """Return the number of prompts needed and what the present ones can show."""
        lines = [
            f"Power to find a share of harm of {self.effect:.2%} on {self.span!r} tokens at the "
            f"level {self.alpha:g}, exchanging {self.words}:"
        ]
        if self.needed_units is None:
            lines.append(
                f"  none of the sizes tried, up to {self.n_units[-1]} units, reaches "
                f"{self.target:.0%} (power there {self.power[-1]:.0%})"
            )
        else:
            beyond = self.needed_units > self.recorded_units
            least = "at most" if self.needed_units <= self.n_units[0] else "about"
            lines.append(
                f"  {least} {self.needed_prompts} prompts ({self.needed_units} units) for a power "
                f"of {self.target:.0%}"
                + (", an extrapolation: prompts like those recorded" if beyond else "")
            )
        shown = "nothing that was tried" if self.detectable is None else f"{self.detectable:.2%}"
        lines.append(
            f"  the {self.recorded_units} units recorded show {shown} with that power "
            f"({self.n_simulations} simulations)"
        )
        return "\n".join(lines)


def power(
    profile: RoutingProfile,
    *,
    effect: float,
    rng: Generator,
    sizes: tuple[int, ...] | None = None,
    target: float = 0.8,
    alpha: float = 0.05,
    n_simulations: int = 200,
    n_resamples: int = 199,
    scheme: str = "auto",
) -> Power:
    """Estimate how many prompts `harm_test` needs to find an effect of harm of a given size.

    What can be wrong: prompts yet to be written may differ more than those recorded, few units
    stand badly for a population (with fewer than some 20 the power is a guess), and a real
    effect may lie where prompts vary less, or more, than the planted ones do on average.

    Args:
        profile: Profile of one span, best of the prompts of a small first study.
        effect: Share of routing that harm is to have, as `routing_shares` reports ``"harm"``;
            between 0 and 1, 0 not included.
        rng: Source of randomness.
        sizes: Numbers of exchange units to try; a quarter to four times those recorded if None.
        target: Power wanted, between `alpha` and 1.
        alpha: Level of the test.
        n_simulations: Simulations for each size; 200 give the power to within 7 points.
        n_resamples: Relabellings in each simulated test.
        scheme: Exchange scheme, see `harm_test`.

    Returns:
        The power for each size, the size needed, and the effect that is detectable now.

    Raises:
        ValueError: If an option is out of range.
        DesignError: If the labels do not allow the question.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> profile = RoutingProfile(
        ...     shares=rng.dirichlet(np.ones(4), size=(48, 1)), layers=(0,), span="user",
        ...     topic=["food", "locks"] * 24, harm=np.arange(48) % 4 < 2)
        >>> found = power(profile, effect=0.1, rng=rng, n_simulations=50)
        >>> print(found.power[0] < found.power[-1], found.needed_prompts is not None)
        True True
    """
    check_resamples(n_resamples, alpha)
    _check(effect, target, alpha, n_simulations, sizes)
    design = make_design(profile, scheme, need_topics=False)
    points = design.embed(profile)
    population = _Population(design, points)
    recorded = design.exchange.n_units
    if sizes is None:
        sizes = tuple(max(2, round(recorded * factor)) for factor in _FACTORS)
    tried = sorted(set(sizes))
    effects = np.minimum(effect * _SPREAD, 0.95)
    middle = len(_SPREAD) // 2
    found, n_prompts = {}, {}
    for size in sorted({*tried, recorded}):
        outcomes = [
            population.simulate(size, effects, alpha, n_resamples, rng)
            for _ in range(n_simulations)
        ]
        found[size] = np.mean([reject for reject, _ in outcomes], axis=0)
        n_prompts[size] = round(np.mean([n for _, n in outcomes]))
    curve = np.array([found[size][middle] for size in tried])
    ends = [
        binomtest(round(value * n_simulations), n_simulations).proportion_ci(method="wilson")
        for value in curve
    ]
    needed = _crossing(np.log(tried), curve, target)
    prompts = np.array([n_prompts[size] for size in tried])
    detectable = _crossing(np.log(effects), found[recorded], target)
    return Power(
        span=profile.span,
        effect=effect,
        alpha=alpha,
        target=target,
        n_units=np.array(tried),
        n_prompts=prompts,
        power=curve,
        low=np.array([float(end.low) for end in ends]),
        high=np.array([float(end.high) for end in ends]),
        recorded_units=recorded,
        needed_units=None if needed is None else int(np.ceil(np.exp(needed) - 1e-9)),
        needed_prompts=None
        if needed is None
        else int(np.ceil(np.interp(np.exp(needed), tried, prompts) - 1e-9)),
        detectable=None if detectable is None else float(np.exp(detectable)),
        scheme=design.scheme,
        words=design.exchange.words,
        n_simulations=n_simulations,
    )


def _check(
    effect: float, target: float, alpha: float, n_simulations: int, sizes: tuple[int, ...] | None
) -> None:
    if not 0 < effect < 1:
        raise ValueError(f"`effect` is a share of routing between 0 and 1, got {effect!r}.")
    if not alpha < target < 1:
        raise ValueError(f"`target` must lie between `alpha` = {alpha:g} and 1, got {target!r}.")
    if n_simulations < 20:
        raise ValueError(f"`n_simulations` must be at least 20, got {n_simulations!r}.")
    if sizes is not None and (not sizes or min(sizes) < 2):
        raise ValueError(f"`sizes` must be numbers of units, 2 or more, got {sizes!r}.")


def _crossing(
    places: Float[ndarray, " place"], curve: Float[ndarray, " place"], target: float
) -> float | None:
    """Where a rising curve first reaches the target, after making noise rise as well."""
    rising = np.maximum.accumulate(curve)
    reached = np.flatnonzero(rising >= target)
    if not len(reached):
        return None
    after = int(reached[0])
    if after == 0:
        return float(places[0])
    low, high = rising[after - 1], rising[after]
    part = (target - low) / (high - low)
    return float(places[after - 1] + part * (places[after] - places[after - 1]))


class _Population:
    """The recorded prompts without their effects of harm, to draw units from."""

    def __init__(self, design: Design, points: Float[ndarray, "prompt layer expert"]) -> None:
        self._design = design
        sums = SumsOfSquares(design, points)()
        features = rearrange(points, "prompt layer expert -> prompt (layer expert)").copy()
        # Only what is common to all topics: taking out every topic's own difference would take
        # out part of the noise, much of it where a topic has few units.
        row = harm_rows(design, np.ones(design.n_prompts, dtype=bool)).sum(axis=0)
        features -= np.outer(row, row @ features) / (row**2).sum()
        self._features = features
        # Prompts of one topic and harm level differ by these.
        cell = design.topic * 2 + (design.harm > 0)
        cells = np.eye(int(cell.max()) + 1)[cell]
        self._apart = features - cells @ (
            (cells.T @ features) / np.maximum(cells.sum(axis=0), 1)[:, None]
        )
        room = float((sums["total"] - sums["signal_nested"]).sum())
        self._room = max(room, 0.0) / design.n_prompts
        exchange = design.exchange
        # Units are drawn among those that have the same topics and, if permuted, the same label.
        parts = np.zeros((exchange.n_units, len(design.topics)), dtype=int)
        np.add.at(parts, (exchange.unit, design.topic), 1)
        key = np.column_stack([parts, exchange.stratum, exchange.label])
        if len(np.unique(key, axis=0)) * _LEAST_ALIKE > exchange.n_units:
            key = key[:, -2:]
        self._kind = np.unique(key, axis=0, return_inverse=True)[1].reshape(-1)
        self._members = [np.flatnonzero(exchange.unit == u) for u in range(exchange.n_units)]

    def simulate(
        self,
        size: int,
        effects: Float[ndarray, " effect"],
        alpha: float,
        n_resamples: int,
        rng: Generator,
    ) -> tuple[Bool[ndarray, " effect"], int]:
        """Draw `size` units and tell at which effects the test rejects, and how many prompts."""
        units = self._draw_units(size, rng)
        rows = np.concatenate([self._members[unit] for unit in units])
        design = self._with_units(units, rows)
        direction = rng.normal(size=len(self._apart)) @ self._apart
        length = np.linalg.norm(direction)
        harm = harm_rows(design, np.ones(len(rows), dtype=bool)).sum(axis=0)
        if length == 0 or not harm.any():
            return np.zeros(len(effects), dtype=bool), len(rows)
        shift = np.sqrt(effects / (1 - effects) * self._room * len(rows) / (harm**2).sum())
        p_value = _p_values(
            design, self._features[rows], direction / length, shift, n_resamples, rng
        )
        return p_value <= alpha, len(rows)

    def _draw_units(self, size: int, rng: Generator) -> Int[ndarray, " unit"]:
        """Draw units so that each kind keeps its part, to the nearest whole number."""
        kinds, counts = np.unique(self._kind, return_counts=True)
        exact = counts / counts.sum() * size
        wanted = np.floor(exact).astype(int)
        left = size - int(wanted.sum())
        # Kinds cut short by rounding take turns, the most cut first; ties by lot.
        order = np.lexsort((rng.random(len(kinds)), wanted - exact))
        wanted[order[:left]] += 1
        return np.concatenate(
            [
                rng.choice(np.flatnonzero(self._kind == kind), number)
                for kind, number in zip(kinds, wanted, strict=True)
            ]
        )

    def _with_units(self, units: Int[ndarray, " unit"], rows: Int[ndarray, " prompt"]) -> Design:
        whole = self._design.exchange
        sizes = [len(self._members[unit]) for unit in units]
        topics, topic = np.unique(self._design.topic[rows], return_inverse=True)
        strata = np.unique(whole.stratum[units], return_inverse=True)[1].reshape(-1)
        exchange = Exchange(
            whole.kind,
            np.repeat(np.arange(len(units)), sizes),
            strata,
            whole.label[units],
            whole.words,
        )
        return replace(
            self._design,
            rows=rows,
            topics=tuple(self._design.topics[code] for code in topics),
            topic=topic.reshape(-1),
            harm=self._design.harm[rows],
            exchange=exchange,
            group=exchange.unit,
        )


def _p_values(
    design: Design,
    features: Float[ndarray, "prompt feature"],
    direction: Float[ndarray, " feature"],
    shift: Float[ndarray, " effect"],
    n_resamples: int,
    rng: Generator,
) -> Float[ndarray, " effect"]:
    """p-values of the pooled test of harm with a shift of each size along the direction."""
    exchange, weights = design.exchange, Weights(design.exchange)
    harm = harm_rows(design, np.ones(design.n_prompts, dtype=bool)).sum(axis=0)
    sums = centred_unit_sums(design, features)
    along = sums @ direction
    planted = centred_unit_sums(design, harm[:, None])[:, 0]
    own = np.stack([(sums**2).sum(axis=1), 2 * along * planted, planted**2], axis=1)
    powers = np.stack([np.ones_like(shift), shift, shift**2])

    def squares(labels: Int[ndarray, "draw unit"]) -> tuple[ndarray, ndarray]:
        signs = weights.signs(labels).astype(np.float64)
        contrast, reach = signs @ sums, signs @ planted
        square = np.stack(
            [(contrast**2).sum(axis=1), 2 * (contrast @ direction) * reach, reach**2], axis=1
        )
        used = np.ones_like(signs) if weights.flips else weights.of_squares(labels)
        return square @ powers, used @ own @ powers

    flips = weights.flips
    label = np.ones_like(exchange.label) if flips else exchange.label
    square, variance = squares(label[None])
    tally = Tally(square[0], variance[0], exhaustive=is_exhaustive(exchange, n_resamples))
    for labels in draw_labels(exchange, n_resamples, rng, width=sums.shape[1]):
        tally.add(*squares(labels))
    return tally.p_value
