"""Read the rows that a figure shows, whichever form they come in."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import pandas as pd
import xarray as xr


@runtime_checkable
class Tabular(Protocol):
    """A result that tells its numbers as a table."""

    def to_frame(self) -> pd.DataFrame:
        """Give the table."""


@runtime_checkable
class Recorded(Protocol):
    """A routing record, or anything else with a data set laid out like one."""

    @property
    def dataset(self) -> xr.Dataset:
        """Give the data set."""


Rows = Mapping[str, Any] | Sequence[Mapping[str, Any]] | pd.DataFrame | Tabular


def rows_of(source: Rows, key: str, columns: Sequence[str]) -> list[dict[str, Any]]:
    """Read the rows of an audit's results, a list of rows, a data frame or a result.

    Args:
        source: Where the rows are: a whole results dict (they are under `key`), the rows
            themselves, a data frame, or an object with ``to_frame()``.
        key: Their name in a results dict.
        columns: Columns that every row must have.

    Returns:
        The rows; a number that is missing or not finite is None.

    Raises:
        ValueError: If there are no rows or a column is missing.
    """
    if isinstance(source, Mapping):
        source = source.get(key) or []
    elif isinstance(source, Tabular):
        source = source.to_frame()
    if isinstance(source, pd.DataFrame):
        names = [name for name in source.index.names if name is not None]
        source = (source.reset_index() if names else source).to_dict("records")
    rows = [{name: finite(value) for name, value in row.items()} for row in source]
    missing = [name for name in columns if not rows or name not in rows[0]]
    if missing:
        given = f"columns {', '.join(map(str, rows[0]))}" if rows else "no rows"
        raise ValueError(
            f"The figure needs {key} rows with the columns {', '.join(columns)}; got {given}. "
            "Pass an audit's results or a table with these columns."
        )
    return rows


def finite(value: Any) -> Any:  # noqa: ANN401  Any cell of a table.
    """Turn a missing or non-finite number into None and a numpy scalar into Python's own.

    Args:
        value: Any cell of a table.

    Returns:
        The cell, or None where nothing was measured.
    """
    if hasattr(value, "item") and getattr(value, "ndim", 0) == 0:
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
