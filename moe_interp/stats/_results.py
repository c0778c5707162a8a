"""What result classes share: plain Python values that JSON can hold."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np


def plain(value: Any) -> Any:  # noqa: ANN401  Any value of a result goes in, any JSON value out.
    """Turn numpy values into plain ones that JSON can hold; NaN and infinity become None.

    Args:
        value: A number, text, array, or a mapping or sequence of them.

    Returns:
        The same in Python's own types.

    Example:
        >>> plain({"share": np.float64("nan"), "layers": np.array([0, 1])})
        {'share': None, 'layers': [0, 1]}
    """
    if isinstance(value, np.ndarray):
        return [plain(item) for item in value.tolist()]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, Sequence | Iterator) and not isinstance(value, str):
        return [plain(item) for item in value]
    return value


def format_p(p_value: float) -> str:
    """Write a p-value as reports do.

    Args:
        p_value: The p-value.

    Returns:
        Text such as ``"p = 0.013"`` or ``"p < 0.001"``.

    Example:
        >>> format_p(0.0125), format_p(0.0001)
        ('p = 0.013', 'p < 0.001')
    """
    if math.isnan(p_value):
        return "p undefined"
    return "p < 0.001" if p_value < 0.001 else f"p = {p_value:.3f}"
