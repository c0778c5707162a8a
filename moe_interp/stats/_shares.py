r"""How much of the routing follows topic, harm, and harm that differs by topic.

A raw share of variance favours the factor with more levels and depends on which prompts are
exchangeable. The share used here takes off what relabelling alone would give,

.. math:: (SS - E_\text{perm} SS) / (1 - \lambda) / SS_\text{total}

with the expectation in closed form for every exchange scheme, and makes up for the part
:math:`\lambda` of a true effect that goes with it (see `_forms`). It is 0 on average when the
factor does nothing, whatever its number of levels, and may therefore be slightly negative.
"""

import warnings
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from einops import rearrange
from jaxtyping import Float
from numpy import ndarray

from moe_interp.notebook import Shown
from moe_interp.stats._design import Design, make_design
from moe_interp.stats._distances import DistanceSums
from moe_interp.stats._forms import Contrasts, SumsOfSquares, contrasts
from moe_interp.stats._jackknife import Jackknife
from moe_interp.stats._profile import RoutingProfile
from moe_interp.stats._results import plain

if TYPE_CHECKING:
    import pandas as pd

DISTANCES = ("hellinger", "jensen_shannon")
FACTORS = ("topic", "harm", "interaction", "harm_total")
# Below this total sum of squares a layer routes every prompt alike but for rounding.
_CONSTANT = 1e-12
_CHUNK_NUMBERS = 2**24


@dataclass(frozen=True, eq=False)
class RoutingShares(Shown):
    """Shares of each layer and of all layers pooled, which come last.

    Attributes:
        layers: Absolute decoder layers; the arrays have one more entry, for all layers pooled.
        span: The token set.
        shares: Factor to its share. The factors are ``"topic"``, ``"harm"`` (the same in every
            topic), ``"interaction"`` (harm that differs by topic) and ``"harm_total"`` (both
            together: any effect of harm within topics). NaN where routing is constant.
        low: Lower ends of the 95 % jackknife intervals.
        high: Upper ends.
        random: Factor to the shares of random routers on the same hidden states, one row a
            draw; None if no random profiles were given.
        constant_layers: Layers that route every prompt alike; their shares are undefined.
        scheme: Name of the exchange scheme.
        reason: Why this scheme: what ``"auto"`` found in the labels, or that it was asked for.
        words: What was exchanged, in words.
        n_prompts: Prompts that took part.
        n_units: Exchange units of harm.
        jackknife: What was left out in turn, and the errors of estimates made of these shares.
        replicates: Factor to the shares with one jackknife group left out.
        random_replicates: Factor to the mean share of random routers, pooled over layers, with
            one jackknife group left out.
    """

    layers: tuple[int, ...]
    span: str
    shares: dict[str, Float[ndarray, " row"]]
    low: dict[str, Float[ndarray, " row"]]
    high: dict[str, Float[ndarray, " row"]]
    random: dict[str, Float[ndarray, "draw row"]] | None
    constant_layers: tuple[int, ...]
    scheme: str
    reason: str
    words: str
    n_prompts: int
    n_units: int
    jackknife: Jackknife = field(repr=False)
    replicates: dict[str, Float[ndarray, "group row"]] = field(repr=False)
    random_replicates: dict[str, Float[ndarray, " group"]] | None = field(repr=False)

    def pooled(self, factor: str) -> tuple[float, float, float]:
        """Return the share over all layers with its interval.

        Args:
            factor: One of ``"topic", "harm", "interaction", "harm_total"``.

        Returns:
            Share, lower end, upper end.
        """
        return tuple(float(x[factor][-1]) for x in (self.shares, self.low, self.high))

    def to_frame(self) -> "pd.DataFrame":
        """Return one row a layer and one for ``"all"``, with intervals and random-router bands."""
        import pandas as pd

        columns: dict[str, Any] = {
            "span": self.span,
            "layer": np.array([*self.layers, "all"], dtype=object),
        }
        for factor in FACTORS:
            columns[factor] = self.shares[factor]
            columns[f"{factor}_low"] = self.low[factor]
            columns[f"{factor}_high"] = self.high[factor]
            if self.random is not None:
                draws = self.random[factor]
                columns[f"{factor}_random_mean"] = draws.mean(axis=0)
                columns[f"{factor}_random_low"] = np.quantile(draws, 0.025, axis=0)
                columns[f"{factor}_random_high"] = np.quantile(draws, 0.975, axis=0)
        return pd.DataFrame(columns)

    def to_dict(self) -> dict[str, Any]:
        """Return the table's rows and the design as JSON-safe values."""
        return plain(
            {
                "rows": self.to_frame().to_dict("records"),
                "constant_layers": self.constant_layers,
                "scheme": self.scheme,
                "reason": self.reason,
                "exchanged": self.words,
                "n_prompts": self.n_prompts,
                "n_units": self.n_units,
            }
        )

    def summary(self) -> str:
        """Return the pooled shares in one line a factor."""
        names = {
            "topic": "topic",
            "harm": "harm (the same in every topic)",
            "interaction": "harm by topic",
        }
        lines = [
            f"Shares of routing on {self.span!r} tokens, {self.n_prompts} prompts, exchanging "
            f"{self.words}:"
        ]
        for factor, name in names.items():
            share, low, high = self.pooled(factor)
            line = f"  {name}: {share:.3f} [{low:.3f}, {high:.3f}]"
            if self.random is not None:
                band = np.quantile(self.random[factor][:, -1], [0.025, 0.975])
                line += f", random routers {band[0]:.3f} to {band[1]:.3f}"
            lines.append(line)
        if self.constant_layers:
            lines.append(
                "  Constant routing, no share defined: layers "
                + ", ".join(map(str, self.constant_layers))
            )
        return "\n".join(lines)


def routing_shares(
    profile: RoutingProfile,
    *,
    scheme: str = "auto",
    random_profiles: Float[ndarray, "draw prompt layer expert"] | None = None,
    distance: str = "hellinger",
) -> RoutingShares:
    """Split routing into the shares of topic, harm, and harm that differs by topic.

    Shares are of the total variance of Hellinger-embedded prompt profiles, less what relabelling
    alone would give. Topic and harm are each adjusted for the other. Intervals leave out one
    exchange unit at a time (some 64 bundles of units if there are more), and compare units with
    prompts in the same cells of topic and harm; they speak of other prompts of the same topics and
    of as many in each cell, not of other topics. The random-router band shows what routers without
    any training make of the same hidden states.

    Args:
        profile: Profile of one span.
        scheme: What is exchangeable: ``"wording_pair"``, ``"wording"``, ``"pair"``,
            ``"within_topic"``, or ``"auto"`` to choose from the labels.
        random_profiles: Profiles of random routers on the same prompts.
        distance: ``"hellinger"``, or ``"jensen_shannon"`` for comparison with papers: some 10
            times slower, all prompts by all prompts in memory, and not fair to prompts of
            different length, of which it warns.

    Returns:
        Shares per layer and pooled.

    Raises:
        ValueError: If `scheme` or `distance` is unknown or `random_profiles` does not fit the
            profile.
        DesignError: If the labels do not allow the question.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> topic, harm = np.divmod(np.arange(64) % 8, 2)
        >>> logits = rng.normal(size=(64, 1, 6))
        >>> logits[np.arange(64), 0, topic] += 3
        >>> shares = np.exp(logits) / np.exp(logits).sum(axis=2, keepdims=True)
        >>> found = routing_shares(RoutingProfile(
        ...     shares=shares, layers=(0,), span="user",
        ...     topic=[f"t{t}" for t in topic], harm=harm == 1))
        >>> print(found.pooled("topic")[0] > 0.5, abs(found.pooled("harm")[0]) < 0.05)
        True True
    """
    check_random_profiles(profile, random_profiles)
    _check_distance(profile, distance)
    design = make_design(profile, scheme, need_topics=True)
    sums = _sums(design, profile, distance)
    shares = _shares(sums())
    jackknife = design.jackknife
    parts = [contrasts(design, jackknife.group != own) for own in range(jackknife.n_groups)]
    replicates = _stack([_shares(sums(part)) for part in parts])
    low, high = {}, {}
    for factor in FACTORS:
        reach = jackknife.reach() * jackknife.error(shares[factor], replicates[factor])
        low[factor], high[factor] = shares[factor] - reach, shares[factor] + reach
    random, random_replicates = None, None
    if random_profiles is not None:
        random, random_replicates = _random_shares(
            profile, design, random_profiles, parts, distance
        )
    constant = np.isnan(shares["topic"][:-1])
    return RoutingShares(
        layers=profile.layers,
        span=profile.span,
        shares=shares,
        low=low,
        high=high,
        random=random,
        constant_layers=tuple(
            layer for layer, alike in zip(profile.layers, constant, strict=True) if alike
        ),
        scheme=design.scheme,
        reason=design.reason,
        words=design.exchange.words,
        n_prompts=design.n_prompts,
        n_units=design.exchange.n_units,
        jackknife=jackknife,
        replicates=replicates,
        random_replicates=random_replicates,
    )


def check_random_profiles(
    profile: RoutingProfile, random_profiles: Float[ndarray, "draw prompt layer expert"] | None
) -> None:
    """Refuse random-router profiles that are not of the same prompts and layers.

    Args:
        profile: The profile of the model's own router.
        random_profiles: Profiles of random routers, or None.

    Raises:
        ValueError: If the shapes do not fit or a value is not finite.
    """
    if random_profiles is None:
        return
    own = profile.shares.shape
    if random_profiles.ndim != 4 or random_profiles.shape[1:] != own or not len(random_profiles):
        raise ValueError(
            f"`random_profiles` must have the shape (draw, prompt, layer, expert) = (n, {own[0]}, "
            f"{own[1]}, {own[2]}), got {random_profiles.shape}."
        )
    if not np.isfinite(random_profiles).all():
        raise ValueError("`random_profiles` holds NaN or infinite values.")


def _shares(sums: dict[str, Float[ndarray, "*draws layer"]]) -> dict[str, ndarray]:
    """Shares of every layer and, appended, of all layers pooled."""
    rows = {
        name: np.concatenate([values, values.sum(axis=-1, keepdims=True)], axis=-1)
        for name, values in sums.items()
    }
    signals = {
        "topic": rows["signal_topic"],
        "harm": rows["signal_harm"],
        "interaction": rows["signal_nested"] - rows["signal_harm"],
        "harm_total": rows["signal_nested"],
    }
    return {name: _share(signal, rows["total"]) for name, signal in signals.items()}


def _share(
    signal: Float[ndarray, "*rows"], total: Float[ndarray, "*rows"]
) -> Float[ndarray, "*rows"]:
    # With few prompts relabelling may account for everything; no signal is defined then.
    return np.divide(signal, total, out=np.full_like(total, np.nan), where=total > _CONSTANT)


def _sums(
    design: Design,
    profile: RoutingProfile,
    distance: str,
    shares: Float[ndarray, "prompt row expert"] | None = None,
) -> SumsOfSquares | DistanceSums:
    if distance == "hellinger":
        return SumsOfSquares(design, design.embed(profile, shares))
    own = profile.shares[design.rows] if shares is None else shares
    return DistanceSums(design, own)


def _check_distance(profile: RoutingProfile, distance: str) -> None:
    if distance not in DISTANCES:
        raise ValueError(f"`distance` must be one of {DISTANCES}, got {distance!r}.")
    if distance == "hellinger" or profile.n_slots is None:
        return
    shortest, longest = int(profile.n_slots.min()), int(profile.n_slots.max())
    if shortest < longest:
        warnings.warn(
            f"Jensen-Shannon distances grow where prompts are short, and these have {shortest} to "
            f"{longest} slots: a difference in length counts as one in routing. "
            f"distance='hellinger' is fair to that.",
            stacklevel=3,
        )


def _stack(found: list[dict[str, ndarray]]) -> dict[str, ndarray]:
    return {factor: np.stack([shares[factor] for shares in found]) for factor in FACTORS}


def _random_shares(
    profile: RoutingProfile,
    design: Design,
    random_profiles: Float[ndarray, "draw prompt layer expert"],
    parts: list[Contrasts],
    distance: str,
) -> tuple[dict[str, ndarray], dict[str, ndarray]]:
    """Shares of every random router, and of their mean with one group left out."""
    n_draws, _, n_layers, n_experts = random_profiles.shape
    # All prompts by all prompts are held of every draw, if distances are.
    per_prompt = n_experts if distance == "hellinger" else max(n_experts, design.n_prompts)
    size = max(1, _CHUNK_NUMBERS // (design.n_prompts * n_layers * per_prompt))
    full, left_out = [], []
    for start in range(0, n_draws, size):
        chunk = random_profiles[start : start + size, design.rows]
        rows = rearrange(chunk, "draw prompt layer expert -> prompt (draw layer) expert")
        sums = _sums(design, profile, distance, rows)
        full.append(_draw_shares(sums(), n_layers))
        left_out.append(_stack([_draw_shares(sums(part), n_layers) for part in parts]))
    # A random router that routes every prompt alike shows nothing of any factor.
    random = {f: np.nan_to_num(np.concatenate([chunk[f] for chunk in full])) for f in FACTORS}
    means = {
        f: np.nan_to_num(np.concatenate([chunk[f][..., -1] for chunk in left_out], axis=1)).mean(
            axis=1
        )
        for f in FACTORS
    }
    return random, means


def _draw_shares(sums: dict[str, ndarray], n_layers: int) -> dict[str, ndarray]:
    return _shares(
        {
            name: rearrange(values, "(draw layer) -> draw layer", layer=n_layers)
            for name, values in sums.items()
        }
    )
