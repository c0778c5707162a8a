r"""How far apart are two routings: Jensen-Shannon divergence, and how many top experts they share.

The two measures RASET [1] reports, for any list of pairs of routing vectors. With :math:`p, q` the
vectors of a layer and :math:`m = (p + q) / 2`, the divergence is
:math:`\tfrac12 \mathrm{KL}(p \| m) + \tfrac12 \mathrm{KL}(q \| m)`; it lies between 0 and
:math:`\ln 2` nats, which is 1 bit. The base of the paper's logarithm is not known, so that both
units are given. The overlap is the number of experts that are among the k largest entries of both
vectors; two random sets of k of E experts share :math:`k^2 / E`.

References:
    [1] Zhang et al. (2026), "RASET: Router-agnostic safety-critical expert tuning exposes localized
        safety enforcement failures in MoE LLMs", arXiv 2605.29708.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float, Int, Shaped
from numpy import ndarray
from scipy.special import xlogy

from moe_interp.errors import DesignError
from moe_interp.notebook import Shown
from moe_interp.stats._jackknife import interval_factor, jackknife_error
from moe_interp.stats._results import plain
from moe_interp.stats._swap import _leave_out

if TYPE_CHECKING:
    import pandas as pd

MEASURES = ("js_nats", "js_bits", "overlap")
_CHUNK_NUMBERS = 2**22


@dataclass(frozen=True, eq=False)
class RoutingContrast(Shown):
    """How far apart the routings of pairs are that differ in one thing.

    Attributes:
        name: What the pairs differ in.
        words: What they share and what they differ in, in words.
        layers: Absolute decoder layers.
        top_k: How many of the largest entries of a vector are compared.
        n_experts: Experts of a layer.
        js_nats: Divergence of each pair in each layer, from 0 to ln 2.
        overlap: Top experts that both members of each pair have in each layer, from 0 to `top_k`.
        units: The exchange units of the first and of the second members.
    """

    name: str
    words: str
    layers: tuple[int, ...]
    top_k: int
    n_experts: int
    js_nats: Float[ndarray, "pair layer"] = field(repr=False)
    overlap: Float[ndarray, "pair layer"] = field(repr=False)
    units: tuple[tuple[str, ...], tuple[str, ...]] = field(repr=False)

    @property
    def n_pairs(self) -> int:
        """Number of pairs."""
        return len(self.js_nats)

    @property
    def n_units(self) -> int:
        """Number of exchange units that the pairs come from."""
        return len({*self.units[0], *self.units[1]})

    @property
    def chance_overlap(self) -> float:
        """Top experts that two random choices share on average."""
        return self.top_k**2 / self.n_experts

    def values(self, measure: str) -> Float[ndarray, "pair layer"]:
        """Look up one measure.

        Args:
            measure: ``"js_nats"``, ``"js_bits"`` or ``"overlap"``.

        Returns:
            The measure of each pair and layer.

        Raises:
            ValueError: If there is no such measure.
        """
        if measure not in MEASURES:
            raise ValueError(f"`measure` must be one of {MEASURES}, got {measure!r}.")
        if measure == "overlap":
            return self.overlap
        return self.js_nats if measure == "js_nats" else self.js_nats / np.log(2)

    def mean(self, measure: str) -> tuple[float, float, float]:
        """Average over pairs and layers.

        Args:
            measure: ``"js_nats"``, ``"js_bits"`` or ``"overlap"``.

        Returns:
            The mean with the ends of its 95 % interval, from a jackknife that leaves out one
            exchange unit with all its pairs; NaN for the ends if all pairs are of one unit.

        Raises:
            ValueError: If there is no such measure.
        """
        return tuple(float(row[-1]) for row in self._with_limits(measure))

    def ratio(
        self, other: "RoutingContrast", *, measure: str = "js_bits"
    ) -> tuple[float, float, float]:
        """Divide the mean of a measure by that of another contrast.

        Args:
            other: The contrast to divide by, such as that of topics.
            measure: ``"js_nats"``, ``"js_bits"`` or ``"overlap"``.

        Returns:
            The ratio with the ends of its 95 % jackknife interval over the units of both, taken on
            the log scale, or on the plain one if the first mean is 0 without some unit; NaN if the
            other's mean is 0.

        Raises:
            ValueError: If there is no such measure.
        """
        names = sorted({name for one in (self, other) for side in one.units for name in side})
        top, bottom = (
            np.append(replicates[:, -1], mean[-1])
            for mean, replicates in (one._left_out(measure, names) for one in (self, other))
        )
        if bottom[-1] <= 0:
            return (float("nan"),) * 3
        if len(names) < 3 or (bottom <= 0).any():
            return float(top[-1] / bottom[-1]), float("nan"), float("nan")
        # Ratios are skewed: log scale, unless the first mean may be 0.
        is_log = bool((top > 0).all())
        values = np.log(top / bottom) if is_log else top / bottom
        reach = interval_factor(len(names)) * float(jackknife_error(values[:-1]))
        ends = (float(values[-1] + step) for step in (0.0, -reach, reach))
        return tuple(float(np.exp(end)) if is_log else max(end, 0.0) for end in ends)

    def to_frame(self) -> "pd.DataFrame":
        """Give one row a layer, and one for ``"all"`` layers."""
        import pandas as pd

        frame = pd.DataFrame(
            {"contrast": self.name, "layer": np.array([*self.layers, "all"], dtype=object)}
        )
        for measure in MEASURES:
            frame[measure], frame[f"{measure}_low"], frame[f"{measure}_high"] = self._with_limits(
                measure
            )
        return frame.assign(chance_overlap=self.chance_overlap, n_pairs=self.n_pairs)

    def to_dict(self) -> dict[str, Any]:
        """Give the table's rows and what the pairs are, as JSON-safe values."""
        about = {"name": self.name, "words": self.words, "n_units": self.n_units}
        return plain({**about, "rows": self.to_frame().to_dict("records")})

    def summary(self) -> str:
        """Say both measures in a line."""
        bits, low, high = self.mean("js_bits")
        shared, least, most = self.mean("overlap")
        return (
            f"{self.name}: {bits:.4f} bits [{low:.4f}, {high:.4f}] ({self.mean('js_nats')[0]:.4f} "
            f"nats), {shared:.2f} [{least:.2f}, {most:.2f}] of {self.top_k} top experts shared "
            f"(chance {self.chance_overlap:.2f}); {self.n_pairs} pairs of {self.n_units} units: "
            f"{self.words}"
        )

    def _with_limits(self, measure: str) -> tuple[Float[ndarray, " row"], ...]:
        """Means of each layer and of all, with both ends of their intervals."""
        names = sorted({*self.units[0], *self.units[1]})
        mean, replicates = self._left_out(measure, names)
        if len(names) < 2:
            unknown = np.full(len(mean), np.nan)
            return mean, unknown, unknown
        reach = interval_factor(len(names)) * jackknife_error(replicates)
        most = {"js_nats": np.log(2), "js_bits": 1.0, "overlap": float(self.top_k)}[measure]
        return mean, np.maximum(mean - reach, 0.0), np.minimum(mean + reach, most)

    def _left_out(
        self, measure: str, names: Sequence[str]
    ) -> tuple[Float[ndarray, " row"], Float[ndarray, "group row"]]:
        """The means, and the means without the pairs of each unit."""
        code = {name: n for n, name in enumerate(names)}
        first, second = (np.array([code[name] for name in side]) for side in self.units)
        return _leave_out(self.values(measure), first, second, n_groups=len(names))


def routing_contrast(
    vectors: Float[ndarray, "row layer expert"],
    first: Sequence[int] | Int[ndarray, " pair"],
    second: Sequence[int] | Int[ndarray, " pair"],
    *,
    top_k: int,
    units: Sequence[Any] | Shaped[ndarray, " row"],
    owner: Sequence[int] | Int[ndarray, " pair"] | None = None,
    layers: Sequence[int] | None = None,
    name: str = "contrast",
    words: str = "",
) -> RoutingContrast:
    """Compare routing vectors pair by pair.

    A vector may be the mean routing weight of a prompt's tokens, their mean router probability,
    or that of a single token; each layer is divided by its sum first. Pooled and token-wise
    divergences are not the same: routing that differs at every token may agree on average. For
    token-wise ones give the tokens as rows, and say in `owner` which pair of prompts each pair of
    tokens belongs to.

    Args:
        vectors: Routing vectors, not negative.
        first: Row of the first member of each pair.
        second: Row of the second member.
        top_k: Entries that count as the top of a vector; of equal entries, the first.
        units: Exchange unit of each row.
        owner: Pair of prompts that each pair of rows belongs to; its rows are averaged.
        layers: Absolute decoder layers; from 0 on if not given.
        name: What the pairs differ in.
        words: What they share and what they differ in.

    Returns:
        The divergences and overlaps.

    Raises:
        DesignError: If there is no pair.
        ValueError: If shapes do not fit, a vector is negative, not finite or all 0, or `top_k`
            is no number of experts.

    Example:
        >>> vectors = np.array([[[0.5, 0.5, 0.0]], [[0.5, 0.0, 0.5]], [[0.5, 0.5, 0.0]]])
        >>> found = routing_contrast(vectors, [0, 0], [1, 2], top_k=2, units=["a", "b", "a"])
        >>> found.values("js_bits").ravel(), found.overlap.ravel()
        (array([0.5, 0. ]), array([1., 2.]))
    """
    first, second = (np.asarray(rows, dtype=np.int64).reshape(-1) for rows in (first, second))
    layers = tuple(range(vectors.shape[1])) if layers is None else tuple(map(int, layers))
    _check(vectors, first, second, top_k, units, owner, layers)
    divergence, shared = _measures(vectors, first, second, top_k)
    names = np.array([str(unit) for unit in units], dtype=object)
    sides = names[first], names[second]
    if owner is not None:
        _, start, place = np.unique(owner, return_index=True, return_inverse=True)
        divergence, shared = (_means(values, place) for values in (divergence, shared))
        sides = tuple(side[start] for side in sides)
    return RoutingContrast(
        name=name,
        words=words,
        layers=layers,
        top_k=top_k,
        n_experts=vectors.shape[2],
        js_nats=divergence,
        overlap=shared,
        units=(tuple(sides[0].tolist()), tuple(sides[1].tolist())),
    )


def _measures(
    vectors: Float[ndarray, "row layer expert"],
    first: Int[ndarray, " pair"],
    second: Int[ndarray, " pair"],
    top_k: int,
) -> tuple[Float[ndarray, "pair layer"], Float[ndarray, "pair layer"]]:
    """Both measures of every pair, in chunks of bounded memory."""
    shares = vectors / vectors.sum(axis=-1, keepdims=True)
    entropy = -xlogy(shares, shares).sum(axis=-1)
    order = np.argsort(-shares, axis=-1, kind="stable")[..., :top_k]
    is_top = np.zeros(shares.shape, dtype=bool)
    np.put_along_axis(is_top, order, values=True, axis=-1)
    divergence, shared = np.empty((2, len(first), shares.shape[1]))
    size = max(1, _CHUNK_NUMBERS // (shares.shape[1] * shares.shape[2]))
    for start in range(0, len(first), size):
        part = slice(start, start + size)
        one, other = first[part], second[part]
        middle = (shares[one] + shares[other]) / 2
        mixed = -xlogy(middle, middle).sum(axis=-1)
        # A difference of entropies rounds to either side of 0.
        divergence[part] = np.maximum(mixed - (entropy[one] + entropy[other]) / 2, 0.0)
        shared[part] = (is_top[one] & is_top[other]).sum(axis=-1)
    return divergence, shared


def _means(
    values: Float[ndarray, "pair layer"], place: Int[ndarray, " pair"]
) -> Float[ndarray, "owner layer"]:
    counts = np.bincount(place)
    total = np.zeros((len(counts), values.shape[1]))
    np.add.at(total, place, values)
    return total / counts[:, None]


def _check(
    vectors: Float[ndarray, "row layer expert"],
    first: Int[ndarray, " pair"],
    second: Int[ndarray, " other"],
    top_k: int,
    units: Sequence[Any] | Shaped[ndarray, " row"],
    owner: Sequence[int] | Int[ndarray, " pair"] | None,
    layers: Sequence[int],
) -> None:
    if not len(first):
        raise DesignError("There is no pair to compare: `first` is empty.")
    sizes = {"second": len(second), "owner": len(first) if owner is None else len(owner)}
    for name, size in sizes.items():
        if size != len(first):
            raise ValueError(f"`{name}` has {size} entries for {len(first)} pairs of `first`.")
    if len(units) != len(vectors) or len(layers) != vectors.shape[1]:
        raise ValueError(
            f"`vectors` has the shape (row, layer, expert) = {vectors.shape}, but there are "
            f"{len(units)} `units` and {len(layers)} `layers`."
        )
    used = vectors[np.union1d(first, second)]
    if not np.isfinite(used).all() or (used < 0).any() or (used.sum(axis=-1) <= 0).any():
        raise ValueError(
            "`vectors` must be finite, not negative, and above 0 somewhere in each layer."
        )
    if not 1 <= top_k <= vectors.shape[2]:
        raise ValueError(
            f"`top_k` must lie between 1 and the {vectors.shape[2]} experts, got {top_k}."
        )
