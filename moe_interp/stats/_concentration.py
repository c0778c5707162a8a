"""How evenly a quantity is spread over experts: entropy, effective number, coverage, Gini."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float
from numpy import ndarray

from moe_interp.notebook import Shown
from moe_interp.stats._results import plain

if TYPE_CHECKING:
    from pandas import DataFrame

COVERED = (0.8, 0.9, 0.95)


@dataclass(frozen=True)
class Concentration(Shown):
    """The spread of a non-negative quantity over the experts of each layer.

    Attributes:
        layers: Absolute decoder layers.
        n_experts: Experts in each layer.
        entropy: Of each layer's shares, in nats; NaN where the layer has nothing.
        effective: exp of the entropy: as many experts of equal share have the same entropy.
        gini: 0 where all experts have the same, near 1 where one has all.
        coverage: For each part of the total over all layers, the fewest experts that hold it.
    """

    layers: tuple[int, ...]
    n_experts: int
    entropy: Float[ndarray, " layer"]
    effective: Float[ndarray, " layer"]
    gini: Float[ndarray, " layer"]
    coverage: dict[float, int]

    @property
    def selectivity(self) -> Float[ndarray, " layer"]:
        """1 less the entropy in parts of its maximum: 0 if even, 1 if one expert has all."""
        return 1 - self.entropy / np.log(self.n_experts)

    def to_frame(self) -> "DataFrame":
        """Give one row per layer."""
        import pandas as pd

        columns = {"layer": self.layers, "entropy_nats": self.entropy, "effective": self.effective}
        return pd.DataFrame(columns | {"gini": self.gini, "selectivity": self.selectivity})

    def to_dict(self) -> dict[str, Any]:
        """Give everything as JSON-safe values; NaN becomes None."""
        return plain(dict(vars(self)) | {"selectivity": self.selectivity})

    def summary(self) -> str:
        """Say the coverage, and which layer is the most selective."""
        n_all = len(self.layers) * self.n_experts
        parts = ", ".join(f"{n} hold {part:.0%}" for part, n in self.coverage.items())
        if np.isnan(self.selectivity).all():
            return f"Of {n_all} experts {parts}."
        best = int(np.nanargmax(self.selectivity))
        return f"Of {n_all} experts {parts}; layer {self.layers[best]} is the most selective."


def concentration(
    mass: Float[ndarray, "layer expert"],
    *,
    layers: Sequence[int],
    covered: Sequence[float] = COVERED,
) -> Concentration:
    r"""Describe how a non-negative quantity is spread over experts.

    With :math:`q_e` the share of expert :math:`e` in its layer: entropy
    :math:`H = -\sum_e q_e \ln q_e`, effective number :math:`e^H`, and the Gini coefficient. The
    coverage pools all layers: how many of the largest hold 80 % of the total.

    Args:
        mass: The quantity of each expert, such as a selection frequency.
        layers: The absolute decoder layers, in the order of the first axis.
        covered: Parts of the total, in (0, 1].

    Returns:
        The description.

    Raises:
        ValueError: If the shape does not fit, a number is negative or NaN, all are 0, or a part
            is out of range.

    Example:
        >>> found = concentration(np.array([[0.5, 0.5, 0.0, 0.0]]), layers=[3])
        >>> found.effective.tolist(), found.coverage[0.8]
        ([2.0], 2)
    """
    mass = np.asarray(mass, dtype=float)
    if mass.ndim != 2 or len(mass) != len(layers):
        raise ValueError(
            f"`mass` must have the axes (layer, expert) with {len(layers)} layers, got the shape "
            f"{mass.shape}."
        )
    if not np.isfinite(mass).all() or (mass < 0).any() or not mass.any():
        raise ValueError("`mass` must hold numbers of at least 0 that are not all 0.")
    if not all(0 < part <= 1 for part in covered):
        raise ValueError(f"`covered` must lie in (0, 1], got {tuple(covered)}.")
    total = mass.sum(axis=1, keepdims=True)
    share = np.divide(mass, total, out=np.full_like(mass, np.nan), where=total > 0)
    logs = np.log(share, out=np.zeros_like(share), where=share > 0)
    entropy = -(share * logs).sum(axis=1)
    pooled = np.cumsum(np.sort(mass.ravel())[::-1]) / mass.sum()
    return Concentration(
        layers=tuple(int(layer) for layer in layers),
        n_experts=mass.shape[1],
        entropy=entropy,
        effective=np.exp(entropy),
        gini=_gini(share),
        # The last digits of a sum of shares must not ask for one expert more.
        coverage={part: int(np.searchsorted(pooled, part - 1e-12)) + 1 for part in covered},
    )


def _gini(share: Float[ndarray, "layer expert"]) -> Float[ndarray, " layer"]:
    n = share.shape[1]
    rank = np.arange(1, n + 1)
    return ((2 * rank - n - 1) * np.sort(share, axis=1)).sum(axis=1) / n
