r"""The contrast of harm under many relabellings at once, and the spread it has by itself.

Relabelling makes all prompts alike, but harmful prompts may be noisier than harmless ones, for
instance because they are shorter. Where labels are permuted the squared contrast is therefore
divided by a variance that lets the two levels differ and is computed anew for every relabelling:
the test stays exact if the units are exchangeable, and holds its level in larger samples if only
their means are equal [1, 2]. With sums :math:`g_u` of the units less their stratum's mean, and
:math:`n_1` harmful among :math:`n` units of the stratum, contrast and variance are

.. math:: c = \sum_u a_u g_u, \quad V = \tfrac{n}{n - 1} \sum_u a_u^2 \lVert g_u \rVert^2, \quad
    a_u = 2 n_0 / n \text{ (harmful)}, -2 n_1 / n \text{ (harmless)}

added over strata: a score test with units as clusters. In balanced strata, and where units are
flipped, V is the same for all relabellings and changes nothing.

References:
    [1] Chung and Romano (2013), "Exact and asymptotically robust permutation tests".
    [2] Anderson, Walsh, Clarke, Gorley and Guerra-Castro (2017), "Some solutions to the
        multivariate Behrens-Fisher problem for dissimilarity-based analyses".
"""

from dataclasses import dataclass

import numpy as np
from einops import rearrange, reduce
from jaxtyping import Float, Int
from numpy import ndarray
from scipy.sparse import csr_array

from moe_interp.stats._design import Design
from moe_interp.stats._forms import harm_rows, topic_rows
from moe_interp.stats._product import Product, check_product, product_error
from moe_interp.stats._schemes import Exchange


@dataclass(frozen=True, eq=False)
class Squares:
    """Squared contrasts, their variances, and how far rounding may have moved the squares.

    Attributes:
        square: Squared contrast.
        variance: What it would be on average if harm did nothing.
        error: Bound of the error of `square`.
    """

    square: Float[ndarray, "draw group"]
    variance: Float[ndarray, "draw group"]
    error: Float[ndarray, "draw group"]


class Weights:
    """How each unit's label enters the contrast and its variance.

    Args:
        exchange: What is exchanged.
    """

    def __init__(self, exchange: Exchange) -> None:
        self.flips = exchange.kind == "flip"
        if self.flips:
            return
        harmful = np.bincount(exchange.stratum, weights=exchange.label)
        size = np.bincount(exchange.stratum)
        # Strata of one label, or one unit, say nothing of harm.
        factor = 4 / (size * np.maximum(size - 1, 1)) * (size > 1)
        self.if_harmful = (factor * (size - harmful) ** 2)[exchange.stratum]
        self.if_harmless = (factor * harmful**2)[exchange.stratum]
        used = np.minimum(self.if_harmful, self.if_harmless)
        self.least = used[used > 0].min(initial=np.inf)

    def signs(self, labels: Int[ndarray, "draw unit"]) -> Int[ndarray, "draw unit"]:
        """Return +1 and -1 as labels enter the contrast of centred sums.

        Args:
            labels: Signs of flips, or 0 and 1.

        Returns:
            The signs.
        """
        return labels if self.flips else 2 * labels - 1

    def of_squares(self, labels: Int[ndarray, "draw unit"]) -> Float[ndarray, "draw unit"]:
        """Return what each unit's squared sum weighs in the variance.

        Args:
            labels: Labels of the units; not for flips, whose weights are all 1.

        Returns:
            The weights.
        """
        return np.where(labels == 1, self.if_harmful, self.if_harmless)


def sum_units(
    unit: Int[ndarray, " prompt"],
    features: Float[ndarray, "prompt feature"],
    weights: Float[ndarray, " prompt"] | None = None,
) -> Float[ndarray, "unit feature"]:
    """Add up the features of each unit.

    Args:
        unit: Unit of each prompt.
        features: Features of each prompt.
        weights: Weight of each prompt; 1 if None.

    Returns:
        The sums.
    """
    weights = np.ones(len(unit)) if weights is None else weights
    return csr_array((weights, (unit, np.arange(len(unit))))) @ features


def stratum_centred(
    exchange: Exchange, sums: Float[ndarray, "unit feature"]
) -> Float[ndarray, "unit feature"]:
    """Take the mean of its stratum off each unit's sums.

    Args:
        exchange: What is exchanged.
        sums: Sums of the units.

    Returns:
        The centred sums.
    """
    total = sum_units(exchange.stratum, sums)
    return sums - (total / np.bincount(exchange.stratum)[:, None])[exchange.stratum]


def centred_unit_sums(
    design: Design, features: Float[ndarray, "prompt feature"], topic: int | None = None
) -> Float[ndarray, "unit feature"]:
    """Sum each unit's features, less the means of their topics and of the unit's stratum.

    Args:
        design: The design.
        features: Features of the prompts that take part.
        topic: Sum the prompts of this topic only; all if None.

    Returns:
        The sums; their products with the labels' signs are the contrast.
    """
    exchange = design.exchange
    means = sum_units(design.topic, features) / np.bincount(design.topic)[:, None]
    weights = np.ones(design.n_prompts) if topic is None else (design.topic == topic).astype(float)
    if exchange.kind == "flip":
        weights *= harm_rows(design, np.ones(design.n_prompts, dtype=bool)).sum(axis=0)
    sums = sum_units(exchange.unit, features - means[design.topic], weights)
    return sums if exchange.kind == "flip" else stratum_centred(exchange, sums)


def by_layer(sums: Float[ndarray, "row feature"], n_layers: int) -> Float[ndarray, "row layer"]:
    """Return each layer's squared length.

    Args:
        sums: Features of all layers in a row.
        n_layers: Number of layers.

    Returns:
        The squares, in double precision.
    """
    layered = rearrange(sums, "row (layer expert) -> row layer expert", layer=n_layers)
    return np.einsum("rle,rle->rl", layered, layered).astype(np.float64)


def square_error(
    square: Float[ndarray, "draw layer"], bound: Float[ndarray, " feature"], n_layers: int
) -> Float[ndarray, "draw layer"]:
    """Bound the error of squared lengths in single precision.

    Args:
        square: The squared lengths.
        bound: Bound of each feature's error.
        n_layers: Number of layers.

    Returns:
        Bounds of the squares' errors.
    """
    length = np.sqrt(by_layer(bound[None], n_layers))
    own_rounding = len(bound) / n_layers * np.finfo(np.float32).eps
    return length * (2 * np.sqrt(square) + length) + own_rounding * square


def with_total(values: Float[ndarray, "*rows layer"]) -> Float[ndarray, "*rows layer_and_total"]:
    """Append the sum over layers.

    Args:
        values: Values of each layer.

    Returns:
        The same and their sum.
    """
    return np.concatenate([values, values.sum(axis=-1, keepdims=True)], axis=-1)


class HarmSquares:
    """Squared contrasts of harm, main and within topics, layer by layer and pooled.

    Args:
        design: The design.
        points: Points of the prompts that take part.
        product: Product of matrices in single precision.
    """

    def __init__(
        self, design: Design, points: Float[ndarray, "prompt layer expert"], product: Product
    ) -> None:
        self._weights = Weights(design.exchange)
        self._n_layers, self._product = points.shape[1], product
        features = rearrange(points, "prompt layer expert -> prompt (layer expert)")
        sizes = (harm_rows(design, np.ones(design.n_prompts, dtype=bool)) ** 2).sum(axis=1)
        self._parts, self._inverse_size = [], 1 / sizes
        main_squares = by_layer(centred_unit_sums(design, features), self._n_layers)
        nested_squares = np.zeros_like(main_squares)
        for topic, size in enumerate(sizes):
            units = np.unique(design.exchange.unit[design.topic == topic])
            sums = centred_unit_sums(design, features, topic)
            nested_squares += by_layer(sums, self._n_layers) / size
            sums = sums[units]
            check_product(product, sums)
            self._parts.append((units, sums, sums.astype(np.float32), product_error(sums)))
        self._unit_squares = np.concatenate([main_squares, nested_squares], axis=1)

    def __call__(self, labels: Int[ndarray, "draw unit"], *, exact: bool = False) -> Squares:
        """Compute the squares under some relabellings.

        Args:
            labels: The relabellings.
            exact: Whether to compute in double precision throughout.

        Returns:
            Squares of main layer by layer and pooled, then of nested.
        """
        kind = np.float64 if exact else np.float32
        signs = self._weights.signs(labels).astype(kind)
        n_features = self._parts[0][1].shape[1]
        main = np.zeros((len(labels), n_features), dtype=kind)
        nested, nested_error = np.zeros((2, len(labels), self._n_layers))
        main_bound = np.zeros(n_features)
        for (units, sums, single, bound), inverse in zip(
            self._parts, self._inverse_size, strict=True
        ):
            contrast = signs[:, units] @ sums if exact else self._product(signs[:, units], single)
            main += contrast
            # Adding the topics' parts rounds once more for each of them.
            main_bound += bound * (1 + len(self._parts) / len(units))
            square = by_layer(contrast, self._n_layers)
            nested += square * inverse
            nested_error += square_error(square, bound, self._n_layers) * inverse
        square = by_layer(main, self._n_layers)
        variance = self._variance(labels)
        error = np.concatenate(
            [square_error(square, main_bound, self._n_layers), nested_error], axis=1
        )
        return Squares(
            square=self._pool(np.concatenate([square, nested], axis=1)),
            variance=self._pool(variance),
            error=self._pool(np.zeros_like(error) if exact else error),
        )

    def _variance(self, labels: Int[ndarray, "draw unit"]) -> Float[ndarray, "draw group"]:
        if self._weights.flips:
            constant = self._unit_squares.sum(axis=0, keepdims=True)
            return np.repeat(constant, len(labels), axis=0)
        return self._weights.of_squares(labels) @ self._unit_squares

    def _pool(self, values: Float[ndarray, "draw group"]) -> Float[ndarray, "draw row"]:
        """Add to the layers of each statistic their sum."""
        split = rearrange(values, "draw (statistic layer) -> draw statistic layer", statistic=2)
        return rearrange(with_total(split), "draw statistic row -> draw (statistic row)")


class TopicSquares:
    """Sums of squares of topic after harm, layer by layer and pooled.

    Args:
        design: The design; at least two topics.
        points: Points of the prompts that take part.
        product: Product of matrices in single precision.
    """

    def __init__(
        self, design: Design, points: Float[ndarray, "prompt layer expert"], product: Product
    ) -> None:
        exchange = design.topic_exchange
        self._n_layers, self._product = points.shape[1], product
        features = rearrange(points, "prompt layer expert -> prompt (layer expert)").copy()
        for level in (-1, 1):
            features[design.harm == level] -= features[design.harm == level].mean(axis=0)
        self._sums = stratum_centred(exchange, sum_units(exchange.unit, features))
        check_product(product, self._sums)
        self._single = self._sums.astype(np.float32)
        self._values, _ = topic_rows(design, np.ones(design.n_prompts, dtype=bool))
        self._bound = product_error(self._sums)
        self._squares = by_layer(self._sums, self._n_layers)
        self._largest = np.sqrt((np.abs(self._values).max(axis=0) ** 2).sum())

    @property
    def n_columns(self) -> int:
        """Number of contrasts between topics."""
        return self._values.shape[1]

    def __call__(self, labels: Int[ndarray, "draw unit"], *, exact: bool = False) -> Squares:
        """Compute the squares under some relabellings.

        Args:
            labels: The relabellings.
            exact: Whether to compute in double precision throughout.

        Returns:
            Squares layer by layer and pooled.
        """
        values = self._values if exact else self._values.astype(np.float32)
        dealt = rearrange(values[labels], "draw unit column -> (draw column) unit")
        sums = dealt @ self._sums if exact else self._product(dealt, self._single)
        square = reduce(
            by_layer(sums, self._n_layers),
            "(draw column) layer -> draw layer",
            "sum",
            column=self.n_columns,
        )
        variance = (self._values**2).sum(axis=1)[labels] @ self._squares
        error = square_error(square, self._largest * self._bound, self._n_layers)
        return Squares(
            square=with_total(square),
            variance=with_total(variance),
            error=with_total(np.zeros_like(error) if exact else error),
        )
