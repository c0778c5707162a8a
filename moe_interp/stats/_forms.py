r"""Sums of squares and their expectation over all relabellings, without relabelling.

Each quantity is a quadratic form in the points, :math:`\sum_r w_r \lVert b_r^\top Y\rVert^2`,
whose rows and weights depend on the design alone. Permutation null expectations have this form
too: a sign flip keeps the units' own squares and loses the products between units; a
permutation keeps the mean label and the scatter of the units within their stratum. Few rows run
over all prompts; the others are sums over one unit, whose squared lengths do not change when
other units are left out, so that the jackknife reuses them.
"""

from dataclasses import dataclass
from itertools import accumulate, pairwise

import numpy as np
from einops import rearrange, reduce
from jaxtyping import Bool, Float, Int
from numpy import ndarray
from scipy.sparse import csr_array

from moe_interp.stats._design import Design
from moe_interp.stats._schemes import Exchange

QUANTITIES = ("total", "topic", "harm", "nested", "null_topic", "null_harm", "null_nested")
_RANK_TOLERANCE = 1e-9


@dataclass
class _Forms:
    """Rows over prompts and weights on units, collected quantity by quantity."""

    n_prompts: int
    n_terms: int

    def __post_init__(self) -> None:
        self.rows: list[ndarray] = []
        self.owners: list[int] = []
        self.weights: list[float] = []
        self.terms = np.zeros((len(QUANTITIES), self.n_terms))

    def add(self, quantity: str, rows: ndarray, weight: float | ndarray = 1.0) -> None:
        rows = np.atleast_2d(rows)
        self.rows.extend(rows)
        self.owners.extend([QUANTITIES.index(quantity)] * len(rows))
        self.weights.extend(np.broadcast_to(weight, len(rows)))

    def add_terms(self, quantity: str, terms: slice | ndarray, weight: float | ndarray) -> None:
        self.terms[QUANTITIES.index(quantity), terms] += weight


class SumsOfSquares:
    """Sums of squares of one design, for all its prompts or with some left out.

    Args:
        design: The design.
        points: Points of the prompts that take part; any number of "layers".
    """

    def __init__(self, design: Design, points: Float[ndarray, "prompt layer expert"]) -> None:
        self._design = design
        self._points = rearrange(points, "prompt layer expert -> prompt (layer expert)")
        self._n_layers = points.shape[1]
        exchange, units = design.exchange, design.exchange.unit
        n_topics = len(design.topics)
        # One term per prompt, per harm unit, per topic part of a harm unit, per topic unit.
        parts, part = np.unique(units * n_topics + design.topic, return_inverse=True)
        self._part_unit, self._part_topic = parts // n_topics, parts % n_topics
        signs = design.harm if exchange.kind == "flip" else np.ones(design.n_prompts)
        sizes = (design.n_prompts, exchange.n_units, len(parts), design.topic_exchange.n_units)
        starts = accumulate(sizes, initial=0)
        self._slices = [slice(start, stop) for start, stop in pairwise(starts)]
        self._terms = np.concatenate(
            [
                self._squares(np.arange(design.n_prompts), np.ones(design.n_prompts)),
                self._squares(units, signs),
                self._squares(part.reshape(-1), signs),
                self._squares(design.topic_exchange.unit, np.ones(design.n_prompts)),
            ]
        )

    def _squares(self, unit: Int[ndarray, " prompt"], signs: Float[ndarray, " prompt"]) -> ndarray:
        member = csr_array((signs, (unit, np.arange(len(unit)))))
        return self._by_layer(member @ self._points)

    def _by_layer(self, sums: Float[ndarray, "row feature"]) -> Float[ndarray, "row layer"]:
        return reduce(
            np.square(sums), "row (layer expert) -> row layer", "sum", layer=self._n_layers
        )

    def __call__(self, keep: Bool[ndarray, " prompt"] | None = None) -> dict[str, ndarray]:
        """Compute every quantity of `QUANTITIES`.

        Args:
            keep: Prompts to use; whole exchange units. All if None.

        Returns:
            Quantity to its value in each layer.
        """
        design = self._design
        keep = np.ones(design.n_prompts, dtype=bool) if keep is None else keep
        forms = _Forms(design.n_prompts, self._slices[-1].stop)
        forms.add("total", keep / np.sqrt(keep.sum()), -1.0)
        forms.add_terms("total", self._slices[0], keep)
        self._add_harm(forms, keep)
        self._add_topic(forms, keep)
        squares = self._by_layer(np.array(forms.rows) @ self._points)
        weights = np.zeros((len(QUANTITIES), len(squares)))
        weights[forms.owners, np.arange(len(squares))] = forms.weights
        values = weights @ squares + forms.terms @ self._terms
        return dict(zip(QUANTITIES, values, strict=True))

    def _add_harm(self, forms: _Forms, keep: Bool[ndarray, " prompt"]) -> None:
        design = self._design
        rows = harm_rows(design, keep)
        sizes = (rows**2).sum(axis=1)
        inverse = np.divide(1.0, sizes, out=np.zeros_like(sizes), where=sizes > 0)
        forms.add("harm", rows.sum(axis=0), 1 / sizes.sum())
        forms.add("nested", rows, inverse)
        kept_units = np.bincount(design.exchange.unit[keep], minlength=design.exchange.n_units) > 0
        kept_parts = kept_units[self._part_unit]
        if design.exchange.kind == "flip":
            forms.add_terms("null_harm", self._slices[1], kept_units / sizes.sum())
            forms.add_terms("null_nested", self._slices[2], kept_parts * inverse[self._part_topic])
            return
        levels = 2.0 * design.exchange.label[:, None] - 1
        everyone = np.arange(len(keep))
        moments = _Moments(design.exchange, levels, keep)
        centred = moments.mean_rows(everyone) - _topic_means(
            moments.mean_rows(everyone), design, keep
        )
        forms.add("null_harm", centred, 1 / sizes.sum())
        forms.add("null_harm", *moments.sum_rows(everyone, scale=1 / sizes.sum()))
        forms.add_terms("null_harm", self._slices[1], moments.unit_weight / sizes.sum())
        for topic in np.flatnonzero(sizes > 0):
            members = np.flatnonzero(design.topic == topic)
            forms.add("null_nested", centred * (design.topic == topic), inverse[topic])
            forms.add("null_nested", *moments.sum_rows(members, scale=inverse[topic]))
        forms.add_terms(
            "null_nested",
            self._slices[2],
            moments.unit_weight[self._part_unit] * inverse[self._part_topic],
        )

    def _add_topic(self, forms: _Forms, keep: Bool[ndarray, " prompt"]) -> None:
        design = self._design
        scaled, rows = topic_rows(design, keep)
        forms.add("topic", rows)
        exchange = design.topic_exchange
        moments = _Moments(exchange, scaled[exchange.label], keep)
        everyone = np.arange(len(keep))
        forms.add("null_topic", _less_harm_means(moments.mean_rows(everyone), design, keep))
        forms.add("null_topic", *moments.sum_rows(everyone, scale=1.0))
        forms.add_terms("null_topic", self._slices[3], moments.unit_weight)


class _Moments:
    """Mean and scatter of the labels dealt within each stratum, for the units kept."""

    def __init__(
        self,
        exchange: Exchange,
        values: Float[ndarray, "unit column"],
        keep: Bool[ndarray, " prompt"],
    ) -> None:
        self._stratum = exchange.stratum[exchange.unit]
        self._keep = keep
        kept = np.bincount(exchange.unit[keep], minlength=exchange.n_units) > 0
        n_strata = int(exchange.stratum.max()) + 1
        size = np.bincount(exchange.stratum[kept], minlength=n_strata)
        total = np.zeros((n_strata, values.shape[1]))
        np.add.at(total, exchange.stratum[kept], values[kept])
        self._mean = total / np.maximum(size, 1)[:, None]
        scatter = np.zeros(n_strata)
        off = values[kept] - self._mean[exchange.stratum[kept]]
        np.add.at(scatter, exchange.stratum[kept], (off**2).sum(axis=1))
        self._variance = scatter / np.maximum(size - 1, 1)
        self._size = size
        self.unit_weight = np.where(kept, self._variance[exchange.stratum], 0.0)

    def mean_rows(self, members: Int[ndarray, " member"]) -> Float[ndarray, "column prompt"]:
        rows = np.zeros((self._mean.shape[1], len(self._keep)))
        rows[:, members] = (self._mean[self._stratum[members]] * self._keep[members, None]).T
        return rows

    def sum_rows(
        self, members: Int[ndarray, " member"], *, scale: float
    ) -> tuple[Float[ndarray, "stratum prompt"], Float[ndarray, " stratum"]]:
        strata = np.unique(self._stratum[members])
        rows = np.zeros((len(strata), len(self._keep)))
        position = np.searchsorted(strata, self._stratum[members])
        rows[position, members] = self._keep[members]
        return rows, -scale * self._variance[strata] / np.maximum(self._size[strata], 1)


def harm_rows(design: Design, keep: Bool[ndarray, " prompt"]) -> Float[ndarray, "topic prompt"]:
    """Return, topic by topic, harm less its mean in the topic.

    Args:
        design: The design.
        keep: Prompts to use.

    Returns:
        One row a topic, 0 outside it; their sum is harm adjusted for topic.
    """
    harm = design.harm * keep
    rows = np.zeros((len(design.topics), design.n_prompts))
    rows[design.topic, np.arange(design.n_prompts)] = (
        harm - _topic_means(harm[None], design, keep)[0]
    )
    return rows * keep


def topic_rows(
    design: Design, keep: Bool[ndarray, " prompt"]
) -> tuple[Float[ndarray, "topic column"], Float[ndarray, "column prompt"]]:
    """Return an orthonormal basis of topic, adjusted for harm.

    Args:
        design: The design.
        keep: Prompts to use.

    Returns:
        The values each topic gets in each column, and the columns' rows over prompts.
    """
    indicator = np.zeros((len(design.topics), design.n_prompts))
    indicator[design.topic, np.arange(design.n_prompts)] = keep
    adjusted = _less_harm_means(indicator, design, keep)
    values, vectors = np.linalg.eigh(adjusted @ adjusted.T)
    real = values > _RANK_TOLERANCE * max(values.max(), 1.0)
    scaled = vectors[:, real] / np.sqrt(values[real])
    return scaled, scaled.T @ adjusted


def _topic_means(
    rows: Float[ndarray, "row prompt"], design: Design, keep: Bool[ndarray, " prompt"]
) -> Float[ndarray, "row prompt"]:
    """Mean of each row over the kept prompts of the prompt's own topic, 0 where not kept."""
    return _group_means(rows, design.topic, keep)


def _less_harm_means(
    rows: Float[ndarray, "row prompt"], design: Design, keep: Bool[ndarray, " prompt"]
) -> Float[ndarray, "row prompt"]:
    return rows - _group_means(rows, (design.harm > 0).astype(int), keep)


def _group_means(
    rows: Float[ndarray, "row prompt"],
    group: Int[ndarray, " prompt"],
    keep: Bool[ndarray, " prompt"],
) -> Float[ndarray, "row prompt"]:
    member = np.zeros((group.max() + 1, len(group)))
    member[group, np.arange(len(group))] = keep
    size = np.maximum(member.sum(axis=1), 1)
    return (rows @ member.T / size) @ member
