r"""Random expert sets that resemble a given one in layers, size and use.

Each expert is replaced by another of its layer that is not in the set. How likely another is taken
falls with the difference in how often the two are chosen, as a Gaussian kernel of the arcsine
square root of selection frequencies (the scale on which a fraction's noise does not depend on its
size). The kernel's width is Silverman's rule for the layer's experts,
:math:`0.9\, s\, n^{-1/5}` with :math:`s` their standard deviation: about a third to a half of the
spread, so that close matches are preferred and the sets still differ from draw to draw. Experts
that no prompt chose can change nothing, so they stand in for a chosen expert only if the layer has
no others left.

References:
    Silverman (1986), "Density Estimation", equation 3.31, for the width.
    Rosenbaum and Rubin (1985), "Constructing a Control Group Using Multivariate Matched
    Sampling", for matching within a distance rather than at random.
"""

import numpy as np
from jaxtyping import Float
from numpy.random import Generator

from moe_interp.experts import Expert, ExpertSet
from moe_interp.scores._scores import Scores


def draw_matched_sets(
    experts: ExpertSet, frequency: Scores, *, n_draws: int, rng: Generator
) -> list[ExpertSet]:
    """Draw sets matched on layer, size and selection frequency.

    Args:
        experts: The set to match.
        frequency: Selection frequency of every expert.
        n_draws: How many sets to draw; some may be the same.
        rng: Source of randomness.

    Returns:
        The sets.

    Raises:
        ValueError: If a layer has too few other experts, or the frequencies lack it.

    Example:
        >>> use = Scores.of_array(np.array([[0.5, 0.49, 0.48, 0.01]]), (6,), name="use")
        >>> draws = draw_matched_sets(
        ...     ExpertSet("L6E0".split()), use, n_draws=50, rng=np.random.default_rng(0)
        ... )
        >>> sorted({str(drawn) for drawn in draws})
        ['L6E1', 'L6E2']
    """
    weights = {
        layer: _kernel(frequency.of_layer(layer), ids, layer)
        for layer, ids in experts.by_layer().items()
    }
    return [
        ExpertSet(
            Expert(layer, chosen)
            for layer, rows in weights.items()
            for chosen in _one_draw(rows, rng)
        )
        for _ in range(n_draws)
    ]


def _kernel(
    frequency: Float[np.ndarray, " expert"], ids: tuple[int, ...], layer: int
) -> Float[np.ndarray, "member expert"]:
    """For each member of the set, the weight of every expert that may replace it."""
    if not np.isfinite(frequency).all():
        raise ValueError(f"`frequency` has no number for some experts of layer {layer}.")
    free = np.ones(len(frequency), dtype=bool)
    free[list(ids)] = False
    if free.sum() < len(ids):
        raise ValueError(
            f"Layer {layer} has {len(frequency)} experts, of which {len(ids)} are in the set: too "
            "few others to draw a matched set from. Match a smaller set."
        )
    used = free & (frequency > 0)
    if used.sum() >= len(ids):
        free = used
    scale = np.arcsin(np.sqrt(np.clip(frequency, 0, 1)))
    width = 0.9 * scale.std(ddof=1) * len(scale) ** -0.2
    distance = np.abs(scale[list(ids), None] - scale[None, :])
    if width == 0:
        return np.broadcast_to(free, distance.shape).astype(float)
    # Taking off each member's smallest distance changes no probability, and avoids all zeros.
    exponent = -0.5 * (distance / width) ** 2
    exponent -= np.where(free, exponent, -np.inf).max(axis=1, keepdims=True)
    return np.where(free, np.exp(np.minimum(exponent, 0)), 0.0)


def _one_draw(weights: Float[np.ndarray, "member expert"], rng: Generator) -> list[int]:
    """One replacement for each member, all different; members choose in random order."""
    taken: list[int] = []
    for member in rng.permutation(len(weights)):
        row = weights[member].copy()
        row[taken] = 0.0
        if row.sum() == 0:
            # Only experts so far off that their weight vanishes are left: take any of them.
            row = (weights.max(axis=0) > 0).astype(float)
            row[taken] = 0.0
        taken.append(int(rng.choice(len(row), p=row / row.sum())))
    return taken
