"""Rows of prompts written to files, never over what is there unasked."""

import csv
import io
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from moe_interp.errors import ResultExistsError


def write_jsonl(path: Path, rows: Iterable[Mapping[str, Any]], *, force: bool) -> None:
    """Write rows as JSON, one object a line.

    Args:
        path: The file to write.
        rows: Values by column.
        force: Whether to write over a file that exists.

    Raises:
        ResultExistsError: If the file exists and `force` is False.
    """
    lines = (json.dumps(dict(row), ensure_ascii=False) + "\n" for row in rows)
    _write(path, "".join(lines), force=force)


def write_csv(path: Path, rows: Iterable[Mapping[str, Any]], *, force: bool) -> None:
    """Write rows as a table; None becomes an empty cell.

    Args:
        path: The file to write.
        rows: Values by column, the same columns in every row.
        force: Whether to write over a file that exists.

    Raises:
        ResultExistsError: If the file exists and `force` is False.
    """
    rows = list(rows)
    table = io.StringIO(newline="")
    # Readers end a row at a carriage return too, but writers need not put it in quotes.
    returns = any("\r" in str(value) for row in rows for value in row.values())
    writer = csv.DictWriter(
        table,
        fieldnames=list(rows[0]),
        lineterminator="\n",
        quoting=csv.QUOTE_ALL if returns else csv.QUOTE_MINIMAL,
    )
    writer.writeheader()
    writer.writerows(rows)
    _write(path, table.getvalue(), force=force)


def _write(path: Path, text: str, *, force: bool) -> None:
    try:
        with path.open("w" if force else "x", encoding="utf-8", newline="") as file:
            file.write(text)
    except FileExistsError:
        raise ResultExistsError(
            f"{str(path)!r} exists already and was left as it is. "
            "Choose another name, or pass force=True."
        ) from None
