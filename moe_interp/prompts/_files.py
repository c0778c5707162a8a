"""Rows of prompt files of every kind, with the place of every mistake."""

import csv
import gzip
import io
import json
import lzma
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moe_interp.errors import PromptError

SUFFIXES = (".jsonl", ".json", ".csv", ".tsv", ".parquet")
_PACKED = {".gz": gzip.decompress, ".xz": lzma.decompress}


@dataclass(frozen=True)
class Row:
    """One row of a file.

    Attributes:
        place: Where it stands, for a message: ``"prompts.csv, row 3"``, where the header is row 1,
            or ``"prompts.jsonl, line 3"``.
        values: What it holds, by column.
        part: The file or the split it belongs to, where a set has several.
    """

    place: str
    values: dict[str, Any]
    part: str = ""


def kind_of(path: Path) -> str | None:
    """The kind of a prompt file.

    Args:
        path: The file; it need not exist.

    Returns:
        One of `SUFFIXES`; None if its name ends otherwise. ``.gz`` and ``.xz`` may follow.
    """
    if path.suffix.lower() in _PACKED:
        path = path.with_suffix("")
    suffix = path.suffix.lower()
    return suffix if suffix in SUFFIXES else None


def read_rows(path: Path) -> list[Row]:
    """Read all rows of a prompt file.

    Args:
        path: The file; its ending says which kind it is.

    Returns:
        The rows; blank lines are passed over.

    Raises:
        PromptError: If the file is missing, is of another kind, cannot be read, is not UTF-8, or
            has a broken row.
    """
    kind = kind_of(path)
    if kind is None:
        raise PromptError(
            f"Prompts are read from a file that ends in {', '.join(map(repr, SUFFIXES))} (or in "
            f"one of these and '.gz' or '.xz'), got {path.name!r}."
        )
    if not path.is_file():
        raise PromptError(f"There is no prompt file {str(path)!r}. Check the path.")
    raw = _read_bytes(path)
    if kind == ".parquet":
        return _read_parquet(path.name, raw)
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        raise PromptError(
            f"{path.name}, line {line}: byte {raw[error.start]:#04x} is not UTF-8. "
            "Save the file with the encoding UTF-8."
        ) from None
    return _READERS[kind](path.name, text)


def _read_bytes(path: Path) -> bytes:
    try:
        raw = path.read_bytes()
        return _PACKED.get(path.suffix.lower(), bytes)(raw)
    except (OSError, EOFError, lzma.LZMAError, zlib.error) as error:
        raise PromptError(
            f"{str(path)!r} cannot be read ({error}). Check that it is whole and that you may "
            "read it."
        ) from error


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
        rows.append(_object_row(place, values))
    return rows


def _read_json(name: str, text: str) -> list[Row]:
    if not text.strip():
        return []
    try:
        items = json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
        raise PromptError(
            f"{name}: not valid JSON ({error}). A file of one object a line ends in .jsonl."
        ) from None
    if not isinstance(items, list):
        raise PromptError(
            f"{name}: a {type(items).__name__} where a list of objects is needed, such as "
            '[{"text": "...", "topic": "...", "harm": false}].'
        )
    return [_object_row(f"{name}, item {n}", item) for n, item in enumerate(items, start=1)]


def _object_row(place: str, values: object) -> Row:
    if not isinstance(values, dict):
        raise PromptError(
            f"{place}: a {type(values).__name__} where an object is needed, such as "
            '{"text": "...", "topic": "...", "harm": false}.'
        )
    return Row(place, values)


def _read_csv(name: str, text: str, *, delimiter: str = ",") -> list[Row]:
    reader = csv.reader(io.StringIO(text, newline=""), strict=True, delimiter=delimiter)
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
            separator = "commas" if delimiter == "," else "tabs"
            raise PromptError(
                f"{place}: {len(cells)} cells under a header of {len(header)} columns. "
                f"Put texts that hold {separator} or line breaks in double quotes."
            )
        rows.append(Row(place, dict(zip(header, cells, strict=True))))
    return rows


def _read_tsv(name: str, text: str) -> list[Row]:
    return _read_csv(name, text, delimiter="\t")


def _read_parquet(name: str, raw: bytes) -> list[Row]:
    import pandas as pd

    try:
        frame = pd.read_parquet(io.BytesIO(raw))
    except ImportError as error:
        raise PromptError(
            f"{name} is a parquet file, and the library that reads them is not installed. "
            "Install pyarrow, or save the prompts as .csv or .jsonl."
        ) from error
    except Exception as error:
        # Whatever a strange file makes the parquet library raise, it is not a table.
        raise PromptError(
            f"{name} cannot be read as a parquet file ({error}). Check that it is whole."
        ) from error
    plain = frame.astype(object).where(frame.notna(), None)
    records = plain.to_dict(orient="records")
    return [Row(f"{name}, row {n}", record) for n, record in enumerate(records, start=1)]


_READERS: dict[str, Callable[[str, str], list[Row]]] = {
    ".jsonl": _read_jsonl,
    ".json": _read_json,
    ".csv": _read_csv,
    ".tsv": _read_tsv,
}
