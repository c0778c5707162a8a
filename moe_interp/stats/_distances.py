r"""Shares by Jensen-Shannon distance, for comparison with papers that report it.

The divergence in bits is the square of a distance in some Euclidean space [1], so that sums of
squares follow from distances alone: with :math:`G = -\tfrac12 C D^2 C` and :math:`C` the centring
matrix, :math:`\lVert b^\top Y\rVert^2 = b^\top G b` for every contrast b [2]. All prompts by all
prompts are held, one layer at a time.

References:
    [1] Fuglede and Topsøe (2004), "Jensen-Shannon divergence and Hilbert space embedding".
    [2] McArdle and Anderson (2001), "Fitting multivariate models to community data".
"""

import numpy as np
from jaxtyping import Float
from numpy import ndarray
from scipy.sparse import csr_array
from scipy.special import xlogy

from moe_interp.stats._design import Design
from moe_interp.stats._forms import QUANTITIES, Contrasts, contrasts

# Numbers held at once while divergences are computed.
_CHUNK_NUMBERS = 2**22
_ROUNDING = 1e-12


def jensen_shannon(
    shares: Float[ndarray, "prompt expert"],
) -> Float[ndarray, "prompt prompt"]:
    """Compute the Jensen-Shannon divergence of every two prompts.

    Args:
        shares: Shares of one layer.

    Returns:
        The divergences in bits, between 0 and 1.
    """
    shares = np.asarray(shares, dtype=np.float64)
    n_prompts, n_experts = shares.shape
    entropy = -xlogy(shares, shares).sum(axis=1)
    size = max(1, _CHUNK_NUMBERS // (n_prompts * n_experts))
    found = np.empty((n_prompts, n_prompts))
    for start in range(0, n_prompts, size):
        rows = slice(start, start + size)
        middle = (shares[rows, None] + shares[None]) / 2
        mixed = -xlogy(middle, middle).sum(axis=2)
        found[rows] = mixed - (entropy[rows, None] + entropy[None]) / 2
    return np.maximum(found, 0.0) / np.log(2)


class DistanceSums:
    """Sums of squares from distances, with the calls of `SumsOfSquares`.

    Args:
        design: The design.
        shares: Shares of the prompts that take part.
    """

    def __init__(self, design: Design, shares: Float[ndarray, "prompt layer expert"]) -> None:
        self._design = design
        self._inner = [_centred(jensen_shannon(layer)) for layer in np.moveaxis(shares, 1, 0)]
        self._terms = self._lengths(design.terms.rows)

    def _lengths(self, rows: csr_array | ndarray) -> Float[ndarray, "row layer"]:
        """Squared length that each contrast has in each layer."""
        columns = []
        for inner in self._inner:
            product = rows @ inner
            columns.append(np.asarray((rows * product).sum(axis=1)).reshape(-1))
        return np.stack(columns, axis=1)

    def __call__(self, part: Contrasts | None = None) -> dict[str, ndarray]:
        """Compute every quantity of `QUANTITIES`.

        Args:
            part: Contrasts of the prompts to use; all if None.

        Returns:
            Quantity to its value in each layer.
        """
        part = contrasts(self._design) if part is None else part
        values = part.weights @ self._lengths(part.rows) + part.terms @ self._terms
        return dict(zip(QUANTITIES, values, strict=True))


def _centred(squared: Float[ndarray, "prompt prompt"]) -> Float[ndarray, "prompt prompt"]:
    inner = -squared / 2
    inner = inner - inner.mean(axis=0) - inner.mean(axis=1, keepdims=True) + inner.mean()
    inner[np.abs(inner) < _ROUNDING] = 0.0
    return inner
