r"""Sums of squares, their expectation over all relabellings, and what is left of them.

Each quantity is a quadratic form in the points, :math:`\sum_r w_r \lVert b_r^\top Y\rVert^2`,
whose rows and weights depend on the design alone. Permutation null expectations have this form
too: a sign flip keeps the units' own squares and loses the products between units; a
permutation keeps the mean label and the scatter of the units within their stratum. Few rows run
over all prompts; the others are sums over one unit, whose squared lengths do not change when
other units are left out, so that the jackknife reuses them.

A factor's *signal* is its sum of squares less that expectation, and is 0 on average if the factor
does nothing. If it does something, the expectation holds part of that too, :math:`\lambda`: 1 / n
of it where n units are flipped. The rest is therefore divided by :math:`1 - \lambda`, for harm
within topics topic by topic; with one factor and single prompts, signal over total is the
adjusted :math:`R^2` of Ezekiel (1930). Harm that differs by topic is in the expectations of harm
and of topic as well, and is added back.
"""

from dataclasses import dataclass

import numpy as np
from einops import rearrange, reduce
from jaxtyping import Bool, Float, Int
from numpy import ndarray

from moe_interp.stats._design import Design
from moe_interp.stats._schemes import Exchange
from moe_interp.stats._terms import Terms

_FACTORS = ("topic", "harm", "nested")
QUANTITIES = (
    "total",
    *_FACTORS,
    *(f"null_{factor}" for factor in _FACTORS),
    *(f"signal_{factor}" for factor in _FACTORS),
)
_RANK_TOLERANCE = 1e-9


@dataclass(frozen=True, eq=False)
class Contrasts:
    """The quadratic forms of some of the prompts: rows over prompts and weights on unit terms.

    Attributes:
        rows: Contrasts between prompts.
        weights: Weight of each row's squared length in each quantity.
        terms: Weight of each unit's own squared length in each quantity.
    """

    rows: Float[ndarray, "row prompt"]
    weights: Float[ndarray, "quantity row"]
    terms: Float[ndarray, "quantity term"]


class SumsOfSquares:
    """Sums of squares of one set of points, for all its prompts or with some left out.

    Args:
        design: The design.
        points: Points of the prompts that take part; any number of "layers".
    """

    def __init__(self, design: Design, points: Float[ndarray, "prompt layer expert"]) -> None:
        self._design = design
        self._points = rearrange(points, "prompt layer expert -> prompt (layer expert)")
        self._n_layers = points.shape[1]
        self._terms = self._by_layer(design.terms.rows @ self._points)

    def _by_layer(self, sums: Float[ndarray, "row feature"]) -> Float[ndarray, "row layer"]:
        return reduce(
            np.square(sums), "row (layer expert) -> row layer", "sum", layer=self._n_layers
        )

    def __call__(self, part: Contrasts | None = None) -> dict[str, ndarray]:
        """Compute every quantity of `QUANTITIES`.

        Args:
            part: Contrasts of the prompts to use; all if None.

        Returns:
            Quantity to its value in each layer.
        """
        part = contrasts(self._design) if part is None else part
        squares = self._by_layer(part.rows @ self._points)
        values = part.weights @ squares + part.terms @ self._terms
        return dict(zip(QUANTITIES, values, strict=True))


def contrasts(design: Design, keep: Bool[ndarray, " prompt"] | None = None) -> Contrasts:
    """Find the forms of every quantity of `QUANTITIES` for some of the prompts.

    Args:
        design: The design.
        keep: Prompts to use; whole exchange units. All if None.

    Returns:
        The forms, good for any points of the design.
    """
    keep = np.ones(design.n_prompts, dtype=bool) if keep is None else keep
    forms = _Forms(design.terms)
    forms.add("total", (keep / np.sqrt(keep.sum()))[None], -1.0)
    forms.add_terms("total", "prompt", keep)
    within = harm_rows(design, keep)
    _add_harm(forms, design, keep, within)
    columns = _add_topic(forms, design, keep)
    return _with_signals(forms.collected(), design, columns, within)


def _with_signals(
    part: Contrasts,
    design: Design,
    columns: Float[ndarray, "column prompt"],
    within: Float[ndarray, "topic prompt"],
) -> Contrasts:
    """Add what relabelling leaves of each factor, made up for what it takes of a true effect."""
    main = within.sum(axis=0, keepdims=True)
    topic, harm, nested = _responses(part, design, columns, main, within)
    sizes = nested.of("nested")
    scale = _scales(sizes, sizes - nested.of("null_nested"))
    _add_signal(part, "nested", *_scales_within_topics(part, design, scale))
    # What relabelling harm takes of harm itself, and of its differences between topics.
    own = float((harm.of("null_harm") / harm.of("harm"))[0])
    used = sizes > 0
    every = float((nested.of("null_harm")[used] / sizes[used]).sum())
    differing = (every - own) / max(used.sum() - 1, 1)
    _add_signal(part, "harm", _scale(1 - own + differing), nested=differing)
    # What relabelling topics takes of topic, and of those differences.
    own = float(topic.of("null_topic").sum() / topic.of("topic").sum())
    every = float((nested.of("null_topic")[used] / sizes[used]).sum())
    differing = every / max(used.sum() - 1, 1)
    _add_signal(part, "topic", _scale(1 - own), nested=differing, harm=-differing)
    return part


@dataclass(frozen=True, eq=False)
class _Response:
    """The quantities of routing that shows one effect and nothing else, effect by effect."""

    values: Float[ndarray, "quantity effect"]

    def of(self, quantity: str) -> Float[ndarray, " effect"]:
        return self.values[QUANTITIES.index(quantity)]


def _responses(
    part: Contrasts, design: Design, *effects: Float[ndarray, "_ prompt"]
) -> list[_Response]:
    every = np.concatenate(effects).T
    values = part.weights @ (part.rows @ every) ** 2
    values += part.terms @ (design.terms.rows @ every) ** 2
    ends = np.cumsum([len(own) for own in effects])[:-1]
    return [_Response(own) for own in np.split(values, ends, axis=1)]


def _add_signal(
    part: Contrasts,
    factor: str,
    of_row: float | Float[ndarray, " row"],
    of_term: float | Float[ndarray, " term"] | None = None,
    **others: float,
) -> None:
    """Weigh what is left of a factor, and parts of other signals, as the factor's signal."""
    place = {name: number for number, name in enumerate(QUANTITIES)}
    of_term = of_row if of_term is None else of_term
    for held, scale in ((part.weights, of_row), (part.terms, of_term)):
        left = held[place[factor]] - held[place[f"null_{factor}"]]
        for other, share in others.items():
            left = left + share * held[place[f"signal_{other}"]]
        held[place[f"signal_{factor}"]] = left * scale


def _scales_within_topics(
    part: Contrasts, design: Design, scale: Float[ndarray, " topic"]
) -> tuple[Float[ndarray, " row"], Float[ndarray, " term"]]:
    """The topic's scale for rows and terms that lie within one; the others weigh nothing."""
    rows = design.topic[np.argmax(part.rows != 0, axis=1)]
    return scale[rows], scale[design.terms.topic]


def _scales(
    size: Float[ndarray, " part"], left: Float[ndarray, " part"]
) -> Float[ndarray, " part"]:
    """Size over what is left of it; 0 for parts of which nothing is, NaN if so for all."""
    known = left > _RANK_TOLERANCE * size
    if not known.any():
        return np.full_like(size, np.nan)
    return np.divide(size, left, out=np.zeros_like(size), where=known)


def _scale(left: float) -> float:
    return 1 / left if left > _RANK_TOLERANCE else float("nan")


class _Forms:
    """Rows over prompts and weights on units, collected quantity by quantity."""

    def __init__(self, terms: Terms) -> None:
        self._kinds = terms.kinds
        self._rows: list[ndarray] = []
        self._weights: list[ndarray] = []
        self._terms = np.zeros((len(QUANTITIES), len(terms.topic)))

    def add(self, quantity: str, rows: ndarray, weight: float | ndarray = 1.0) -> None:
        weights = np.zeros((len(QUANTITIES), len(rows)))
        weights[QUANTITIES.index(quantity)] = weight
        self._rows.append(rows)
        self._weights.append(weights)

    def add_terms(self, quantity: str, kind: str, weight: ndarray) -> None:
        self._terms[QUANTITIES.index(quantity), self._kinds[kind]] += weight

    def collected(self) -> Contrasts:
        return Contrasts(
            rows=np.concatenate(self._rows),
            weights=np.concatenate(self._weights, axis=1),
            terms=self._terms,
        )


def _add_harm(
    forms: _Forms,
    design: Design,
    keep: Bool[ndarray, " prompt"],
    rows: Float[ndarray, "topic prompt"],
) -> None:
    exchange, terms = design.exchange, design.terms
    sizes = (rows**2).sum(axis=1)
    inverse = np.divide(1.0, sizes, out=np.zeros_like(sizes), where=sizes > 0)
    forms.add("harm", rows.sum(axis=0)[None], 1 / sizes.sum())
    forms.add("nested", rows, inverse)
    part_unit, part_topic = terms.part_unit, terms.topic[terms.kinds["part"]]
    if exchange.kind == "flip":
        kept = np.bincount(exchange.unit[keep], minlength=exchange.n_units) > 0
        forms.add_terms("null_harm", "unit", kept / sizes.sum())
        forms.add_terms("null_nested", "part", kept[part_unit] * inverse[part_topic])
        return
    moments = _Moments(exchange, 2.0 * exchange.label[:, None] - 1, keep)
    mean = moments.mean_rows
    mean = mean - _group_means(mean, design.topic, keep)
    forms.add("null_harm", mean, 1 / sizes.sum())
    forms.add("null_harm", moments.sum_rows, moments.sum_weights / sizes.sum())
    forms.add_terms("null_harm", "unit", moments.unit_weights / sizes.sum())
    forms.add_terms("null_nested", "part", moments.unit_weights[part_unit] * inverse[part_topic])
    for topic in np.flatnonzero(sizes > 0):
        own = design.topic == topic
        forms.add("null_nested", mean * own, inverse[topic])
        forms.add("null_nested", moments.sum_rows * own, moments.sum_weights * inverse[topic])


def _add_topic(
    forms: _Forms, design: Design, keep: Bool[ndarray, " prompt"]
) -> Float[ndarray, "column prompt"]:
    """Add the quantities of topic, and return its orthonormal rows."""
    scaled, rows = topic_rows(design, keep)
    forms.add("topic", rows)
    exchange = design.topic_exchange
    moments = _Moments(exchange, scaled[exchange.label], keep)
    forms.add("null_topic", _less_harm_means(moments.mean_rows, design, keep))
    forms.add("null_topic", moments.sum_rows, moments.sum_weights)
    forms.add_terms("null_topic", "topic unit", moments.unit_weights)
    return rows


class _Moments:
    """Mean and scatter of the labels dealt within each stratum, for the units kept.

    What is dealt enters a sum of squares by the mean label (`mean_rows`) and by the scatter of
    the unit sums around their stratum's mean: the units' own squares (`unit_weights`) less that
    of the stratum's sum (`sum_rows`, `sum_weights`).
    """

    def __init__(
        self,
        exchange: Exchange,
        values: Float[ndarray, "unit column"],
        keep: Bool[ndarray, " prompt"],
    ) -> None:
        kept = np.bincount(exchange.unit[keep], minlength=exchange.n_units) > 0
        n_strata = int(exchange.stratum.max()) + 1
        size = np.maximum(np.bincount(exchange.stratum[kept], minlength=n_strata), 1)
        mean = np.zeros((n_strata, values.shape[1]))
        np.add.at(mean, exchange.stratum[kept], values[kept])
        mean /= size[:, None]
        scatter = np.zeros(n_strata)
        off = values[kept] - mean[exchange.stratum[kept]]
        np.add.at(scatter, exchange.stratum[kept], (off**2).sum(axis=1))
        variance = scatter / np.maximum(size - 1, 1)
        stratum = exchange.stratum[exchange.unit]
        self.mean_rows = (mean[stratum] * keep[:, None]).T
        self.sum_rows = np.zeros((n_strata, len(keep)))
        self.sum_rows[stratum, np.arange(len(keep))] = keep
        self.sum_weights = -variance / size
        self.unit_weights = np.where(kept, variance[exchange.stratum], 0.0)


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
    adjusted = harm - _group_means(harm[None], design.topic, keep)[0]
    rows[design.topic, np.arange(design.n_prompts)] = adjusted
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
