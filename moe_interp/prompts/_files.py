"""Rows of JSONL and CSV files, in and out, with the place of every mistake."""

import csv
import io
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moe_interp.errors import PromptError, ResultExistsError

SUFFIXES = (".jsonl", ".csv")


@dataclass(frozen=True)
class Row:
    """One row of a file.

    Attributes:
        place: Where it stands, for a message: ``"prompts.csv, row 3"``, where the header is row 1,
            or ``"prompts.jsonl, line 3"``.
        values: What it holds, by column.
    """

    place: str
    values: dict[str, Any]


def read_rows(path: Path) -> list[Row]:
    """Read all rows of a JSONL or CSV file.

    Args:
        path: The file; its ending says which kind it is.

    Returns:
        The rows; blank lines are passed over.

    Raises:
        PromptError: If the file is missing, is of another kind, is not UTF-8, or has a broken row.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise PromptError(
            f"Prompts are read from a file that ends in {' or '.join(map(repr, SUFFIXES))}, "
            f"got {path.name!r}."
        )
    if not path.is_file():
        raise PromptError(f"There is no prompt file {str(path)!r}. Check the path.")
    raw = path.read_bytes()
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        raise PromptError(
            f"{path.name}, line {line}: byte {raw[error.start]:#04x} is not UTF-8. "
            "Save the file with the encoding UTF-8."
        ) from None
    read = _read_csv if path.suffix.lower() == ".csv" else _read_jsonl
    return read(path.name, text)


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
    writer = csv.DictWriter(table, fieldnames=list(rows[0]), lineterminator="\n")
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


def _read_jsonl(name: str, text: str) -> list[Row]:
    rows = []
    # Not `splitlines`: JSON strings may hold U+2028 and its like unescaped.
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        place = f"{name}, line {number}"
        try:
            values = json.loads(line)
        except (json.JSONDecodeError, RecursionError) as error:
            raise PromptError(
                f"{place}: not valid JSON ({error}). Each line is one object."
            ) from None
        if not isinstance(values, dict):
            raise PromptError(
                f"{place}: a {type(values).__name__} where an object is needed, such as "
                '{"text": "...", "topic": "...", "harm": false}.'
            )
        rows.append(Row(place, values))
    return rows


def _read_csv(name: str, text: str) -> list[Row]:
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    records: list[list[str]] = []
    try:
        records.extend(reader)
    except csv.Error as error:
        raise PromptError(
            f"{name}, row {len(records) + 1} (line {reader.line_num}): {error}. "
            "Check the quotes of this row and of the ones before it."
        ) from None
    numbered = [(number, cells) for number, cells in enumerate(records, start=1) if cells]
    if not numbered:
        return []
    header = [column.strip() for column in numbered[0][1]]
    twice = sorted({column for column in header if header.count(column) > 1})
    if twice:
        raise PromptError(f"{name}: the header names these columns twice: {', '.join(twice)}.")
    rows = []
    for number, cells in numbered[1:]:
        place = f"{name}, row {number}"
        if len(cells) != len(header):
            raise PromptError(
                f"{place}: {len(cells)} cells under a header of {len(header)} columns. "
                "Put texts that hold commas or line breaks in double quotes."
            )
        rows.append(Row(place, dict(zip(header, cells, strict=True))))
    return rows
