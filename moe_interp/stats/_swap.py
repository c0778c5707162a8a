r"""How far apart are prompts that differ in one thing only: the wording, the intent, the topic?

Four kinds of pairs of prompts, one scale. With :math:`p, q` the shares of two prompts in a layer,
squared Hellinger distance is :math:`\frac12 \sum_e (\sqrt{p_e} - \sqrt{q_e})^2` and
Jensen-Shannon divergence, in bits, the mean divergence of both from their average; each lies in
[0, 1]. The ratio of the distance by intent to the distance by topic is RASET's [1], which reports
0.43 for matched prompts (divergence of routing weights; its logarithm's base is not known).

Distances are never negative, and chance alone makes them positive: two prompts of the same kind
lie apart too. A distance means something beside the *floor*, that of two harmless wordings of the
same request.

References:
    [1] Zhang et al. (2026), "RASET: Router-agnostic safety-critical expert tuning exposes
        localized safety enforcement failures in MoE LLMs". The ratio is our reconstruction.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from einops import reduce
from jaxtyping import Float, Int, Shaped
from numpy import ndarray

from moe_interp.errors import DesignError
from moe_interp.notebook import Shown
from moe_interp.stats._design import make_design
from moe_interp.stats._jackknife import interval_factor, jackknife_error
from moe_interp.stats._profile import RoutingProfile
from moe_interp.stats._results import plain

if TYPE_CHECKING:
    import pandas as pd

KINDS = ("floor", "wording", "harm", "topic")
MEASURES = ("hellinger_squared", "js_bits")
_CHUNK_NUMBERS = 2**22


@dataclass(frozen=True, eq=False)
class SwapDistances(Shown):
    """Mean distances of pairs of prompts that differ in one thing; the last row is all layers.

    Attributes:
        layers: Absolute decoder layers; the arrays have one more entry, the mean over layers.
        span: The token set.
        words: Kind to what its pairs share and what they differ in. Kinds for which the labels
            allow no pairs are missing everywhere.
        n_pairs: Kind to its number of pairs of prompts.
        distance: Kind to measure to the mean distance.
        low: Lower ends of the 95 % jackknife intervals.
        high: Upper ends.
        n_units: Exchange units that the jackknife leaves out.
        replicates: Kind to measure to the distances with one jackknife group left out.
    """

    layers: tuple[int, ...]
    span: str
    words: dict[str, str]
    n_pairs: dict[str, int]
    distance: dict[str, dict[str, Float[ndarray, " row"]]]
    low: dict[str, dict[str, Float[ndarray, " row"]]]
    high: dict[str, dict[str, Float[ndarray, " row"]]]
    n_units: int
    replicates: dict[str, dict[str, Float[ndarray, "group row"]]]

    def ratio(
        self, over: str = "harm", under: str = "topic", *, measure: str = "hellinger_squared"
    ) -> tuple[float, float, float]:
        """Divide one mean distance by another, over all layers.

        Args:
            over: The kind whose distance is divided.
            under: The kind it is divided by; harm over topic is RASET's ratio.
            measure: ``"hellinger_squared"`` or ``"js_bits"``.

        Returns:
            The ratio with the ends of its 95 % jackknife interval, taken on the log scale, or on
            the plain one if the first distance is 0 without some unit; NaN if the second is.

        Raises:
            DesignError: If the labels allow no pairs of one of the kinds.
            ValueError: If a kind or the measure is unknown.
        """
        if measure not in MEASURES:
            raise ValueError(f"`measure` must be one of {MEASURES}, got {measure!r}.")
        for kind in (over, under):
            if kind not in KINDS:
                raise ValueError(f"A kind must be one of {KINDS}, got {kind!r}.")
            if kind not in self.words:
                raise DesignError(_MISSING[kind])
        top, bottom = (
            np.append(self.replicates[kind][measure][:, -1], self.distance[kind][measure][-1])
            for kind in (over, under)
        )
        if (bottom <= 0).any():
            return (float("nan"),) * 3
        is_log = bool((top > 0).all())
        values = np.log(top) - np.log(bottom) if is_log else top / bottom
        reach = interval_factor(len(values) - 1) * float(jackknife_error(values[:-1]))
        ends = (float(values[-1] + step) for step in (0.0, -reach, reach))
        return tuple(float(np.exp(end)) if is_log else max(end, 0.0) for end in ends)

    def to_frame(self) -> "pd.DataFrame":
        """Return one row a kind, measure and layer, and one for ``"all"`` layers."""
        import pandas as pd

        parts = [
            pd.DataFrame(
                {
                    "span": self.span,
                    "differs_in": kind,
                    "measure": measure,
                    "layer": np.array([*self.layers, "all"], dtype=object),
                    "distance": self.distance[kind][measure],
                    "low": self.low[kind][measure],
                    "high": self.high[kind][measure],
                    "n_pairs": self.n_pairs[kind],
                }
            )
            for kind in self.words
            for measure in MEASURES
        ]
        return pd.concat(parts, ignore_index=True)

    def to_dict(self) -> dict[str, Any]:
        """Return the table's rows, the kinds and RASET's ratio as JSON-safe values."""
        ratio = self.ratio() if {"harm", "topic"} <= set(self.words) else None
        return plain(
            {
                "rows": self.to_frame().to_dict("records"),
                "words": self.words,
                "harm_over_topic": ratio,
                "n_units": self.n_units,
            }
        )

    def summary(self) -> str:
        """Return the distances over all layers, one line a kind, and their ratios to topic's."""
        lines = [f"Distances of prompts on {self.span!r} tokens, mean over layers:"]
        for kind, words in self.words.items():
            hellinger, low, high = (
                x[kind]["hellinger_squared"][-1] for x in (self.distance, self.low, self.high)
            )
            lines.append(
                f"  {kind}: Hellinger squared {hellinger:.4f} [{low:.4f}, {high:.4f}], "
                f"{self.distance[kind]['js_bits'][-1]:.4f} bits ({self.n_pairs[kind]} pairs: "
                f"{words})"
            )
        if "topic" in self.words:
            for kind in self.words:
                if kind != "topic":
                    ratio, low, high = self.ratio(kind)
                    lines.append(f"  {kind} / topic: {ratio:.3f} [{low:.3f}, {high:.3f}]")
        if "floor" not in self.words:
            lines.append(f"  No floor: {_MISSING['floor']}")
        return "\n".join(lines)


_MISSING = {
    "floor": "No two harmless prompts share a `request`: the distance that mere paraphrase makes "
    "is unknown. Name the `request` of each prompt, and give harmless ones two wordings.",
    "wording": "No two prompts of one topic and harm level differ in wording or pair.",
    "harm": "No two prompts of one pair differ in harm: give `pair` ids.",
    "topic": "No two prompts of one harm level differ in topic.",
}


def swap_distances(
    profile: RoutingProfile,
    *,
    request: Sequence[Any] | Shaped[ndarray, " prompt"] | None = None,
    scheme: str = "auto",
) -> SwapDistances:
    """Measure how far routing moves when only the wording, the intent or the topic changes.

    Pairs of prompts are found by their labels. *Harm*: the two members of a pair. *Wording*: one
    topic and harm level, other wording (the same request, if `request` is given). *Topic*: one
    harm level and wording, other topic; prompts of any wording where none is used in two topics.
    *Floor*: two harmless prompts of the same `request`. What labels do not tell apart differs as
    well: prompts of another pair usually have other words too. All pairs of a kind count alike,
    so that topics with many prompts count more; intervals leave out one exchange unit at a time
    with all its pairs.

    Args:
        profile: Profile of one span.
        request: What each prompt asks for, the same for all its wordings; None where unknown.
        scheme: Exchange scheme, see `routing_shares`.

    Returns:
        The mean distances with intervals; kinds without pairs are left out.

    Raises:
        ValueError: If `request` has another length, or `scheme` is unknown.
        DesignError: If the labels allow no design, or no kind has pairs.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> pair, harm = np.divmod(np.arange(48), 2)
        >>> odds = np.ones((48, 1, 6))
        >>> odds[np.arange(48), 0, pair % 3] += 20
        >>> shares = rng.multinomial(30, odds / odds.sum(axis=2, keepdims=True)) / 30
        >>> found = swap_distances(RoutingProfile(
        ...     shares=shares, layers=(0,), span="user", topic=[f"t{p % 3}" for p in pair],
        ...     harm=harm == 1, pair=pair))
        >>> found.ratio("harm", "topic")[0] < 0.2
        True
    """
    names = [None] * profile.n_prompts if request is None else list(request)
    if len(names) != profile.n_prompts:
        raise ValueError(f"`request` has {len(names)} values for {profile.n_prompts} prompts.")
    design = make_design(profile, scheme, need_topics=False)
    kept = profile.select(design.rows)
    pairs, words = _pairs(kept, [names[row] for row in design.rows])
    if not pairs:
        raise DesignError(
            "No two prompts differ in one thing only: give `pair`, `wording` or `request`."
        )
    layer_values = kept.shares.astype(np.float64)
    distance, low, high, replicates = {}, {}, {}, {}
    for kind, (first, second) in pairs.items():
        found = _distances(layer_values, first, second)
        groups = design.group[first], design.group[second]
        distance[kind], low[kind], high[kind], replicates[kind] = {}, {}, {}, {}
        for measure, values in found.items():
            mean, left_out = _leave_out(values, *groups, n_groups=design.n_groups)
            reach = interval_factor(design.n_groups) * jackknife_error(left_out)
            distance[kind][measure], replicates[kind][measure] = mean, left_out
            low[kind][measure], high[kind][measure] = np.maximum(mean - reach, 0.0), mean + reach
    return SwapDistances(
        layers=profile.layers,
        span=profile.span,
        words=words,
        n_pairs={kind: len(first) for kind, (first, _) in pairs.items()},
        distance=distance,
        low=low,
        high=high,
        n_units=design.exchange.n_units,
        replicates=replicates,
    )


_Rows = tuple[Int[ndarray, " pair"], Int[ndarray, " pair"]]


def _pairs(profile: RoutingProfile, request: list[Any]) -> tuple[dict[str, _Rows], dict[str, str]]:
    """Rows of the two prompts of every pair of each kind that has any, and its words."""
    first, second = np.triu_indices(profile.n_prompts, k=1)
    same = {
        name: _alike(values, first, second)
        for name, values in {
            "topic": profile.topic,
            "harm": profile.harm,
            "pair": profile.pair,
            "wording": profile.wording,
            "request": request,
        }.items()
    }
    has_request = any(name is not None for name in request)
    has_wording = any(name is not None for name in profile.wording)
    # Without wordings each pair is worded in its own way.
    other_wording = ~same["wording"] if has_wording else ~same["pair"]
    alike, crossed = same["topic"] & same["harm"], ~same["topic"] & same["harm"]
    harmless = ~(profile.harm[first] | profile.harm[second])
    fixed = "one wording, other topic" if (crossed & same["wording"]).any() else "other topic"
    if (crossed & same["wording"]).any():
        crossed = crossed & same["wording"]
    chosen = {
        "floor": (same["request"] & harmless, "harmless wordings of one request"),
        "wording": (
            alike & other_wording & (same["request"] if has_request else True),
            f"one topic and harm level{' and request' if has_request else ''}, other wording",
        ),
        "harm": (same["pair"] & ~same["harm"], "one pair, other harm level"),
        "topic": (crossed, f"one harm level, {fixed}"),
    }
    found = {kind: (first[mask], second[mask]) for kind, (mask, _) in chosen.items() if mask.any()}
    return found, {kind: chosen[kind][1] for kind in found}


def _alike(
    values: Sequence[Any] | Shaped[ndarray, " prompt"],
    first: Int[ndarray, " pair"],
    second: Int[ndarray, " pair"],
) -> ndarray:
    """Whether two prompts have the same label; a missing label is like no other."""
    seen: dict[Any, int] = {}
    codes = np.array([-1 if v is None else seen.setdefault(v, len(seen)) for v in values])
    return (codes[first] == codes[second]) & (codes[first] >= 0)


def _distances(
    shares: Float[ndarray, "prompt layer expert"],
    first: Int[ndarray, " pair"],
    second: Int[ndarray, " pair"],
) -> dict[str, Float[ndarray, "pair layer"]]:
    """Both distances of every pair, in chunks of bounded memory."""
    roots, own = np.sqrt(shares), _entropy(shares)
    found = {measure: np.empty((len(first), shares.shape[1])) for measure in MEASURES}
    size = max(1, _CHUNK_NUMBERS // (shares.shape[1] * shares.shape[2]))
    for start in range(0, len(first), size):
        part = slice(start, start + size)
        one, other = first[part], second[part]
        apart = np.square(roots[one] - roots[other])
        found["hellinger_squared"][part] = reduce(apart, "pair layer expert -> pair layer", "sum")
        middle = _entropy((shares[one] + shares[other]) / 2)
        # A difference of entropies rounds to either side of 0.
        found["js_bits"][part] = np.maximum(middle - (own[one] + own[other]) / 2, 0.0)
    found["hellinger_squared"] /= 2
    return found


def _entropy(shares: Float[ndarray, "*rows expert"]) -> Float[ndarray, "*rows"]:
    logs = np.log2(shares, out=np.zeros_like(shares), where=shares > 0)
    return -(shares * logs).sum(axis=-1)


def _leave_out(
    values: Float[ndarray, "pair layer"],
    first: Int[ndarray, " pair"],
    second: Int[ndarray, " pair"],
    *,
    n_groups: int,
) -> tuple[Float[ndarray, " row"], Float[ndarray, "group row"]]:
    """The mean, and the mean without the pairs that touch a group; the last entry is all layers."""
    rows = np.concatenate([values, values.mean(axis=1, keepdims=True)], axis=1)
    touched, count = np.zeros((n_groups, rows.shape[1])), np.zeros(n_groups)
    across = first != second
    for group, mask in ((first, slice(None)), (second, across)):
        np.add.at(touched, group[mask], rows[mask])
        count += np.bincount(group[mask], minlength=n_groups)
    left = len(rows) - count
    total = rows.sum(axis=0)
    # A group that is in every pair leaves nothing to estimate from.
    replicates = np.where(left[:, None] > 0, (total - touched) / np.maximum(left, 1)[:, None], 0)
    return total / len(rows), replicates
