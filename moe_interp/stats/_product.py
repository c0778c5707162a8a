"""One matrix product for all relabellings: where it runs, and how far it may round."""

from collections.abc import Callable

import numpy as np
from jaxtyping import Float
from numpy import ndarray

# Takes (draw, unit) and (unit, feature) in single precision and returns (draw, feature).
Product = Callable[[ndarray, ndarray], ndarray]

_HALF_UNIT = float(np.finfo(np.float32).eps) / 2


def product_error(sums: Float[ndarray, "unit feature"]) -> Float[ndarray, " feature"]:
    """Bound the rounding error of values between -1 and 1 times `sums`, in single precision.

    The bound holds in any order of summation (Higham (2002), "Accuracy and Stability of
    Numerical Algorithms", section 3.1); both factors were rounded too.

    Args:
        sums: The right-hand matrix.

    Returns:
        The largest error of any result in each column.
    """
    return (len(sums) + 3) * _HALF_UNIT * np.abs(sums).sum(axis=0)


def check_product(product: Product, sums: Float[ndarray, "unit feature"]) -> None:
    """Refuse a product that is not one, or rounds more than single precision does.

    Args:
        product: The product given by the caller.
        sums: A right-hand matrix to try it on.

    Raises:
        ValueError: If its result has the wrong shape or is too far off.
    """
    if product is np.matmul:
        return
    signs = np.where(np.arange(len(sums)) % 3 == 0, -1.0, 1.0)[None]
    found = np.asarray(product(signs.astype(np.float32), sums.astype(np.float32)))
    if found.shape != (1, sums.shape[1]):
        raise ValueError(
            f"`product` must return (draw, feature) = (1, {sums.shape[1]}) for matrices of shape "
            f"(1, {len(sums)}) and {sums.shape}, got {found.shape}."
        )
    off = np.abs(found - signs @ sums)
    if (off > product_error(sums)[None]).any():
        raise ValueError(
            f"`product` is off by up to {off.max():.2g}, more than single precision allows; turn "
            f"off reduced precision such as TF32."
        )
