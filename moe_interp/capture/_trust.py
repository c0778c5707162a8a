"""What a folder must be before anything in it is opened: plain numbers and texts, and all its own.

Zarr arrays name the codecs that decode them, and one of these runs whatever Python code is packed
into a chunk. A record needs none of that, so that anything beyond the few codecs here is refused
from the metadata alone.
"""

import json
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from moe_interp.errors import ResultError

_KEY = re.compile(r"(?:\w+/)?\.z(?:group|attrs|array)", re.ASCII)
_NUMBERS = re.compile(r"[<>|][biuf][1248]")
_TEXTS = re.compile(r"[<>|]U\d{1,6}")
_COMPRESSORS = ("blosc", "bz2", "gzip", "lz4", "zlib", "zstd")
_OBJECTS = [{"id": "vlen-utf8"}]
_LARGEST = 2**40


def check_folder(path: Path) -> None:
    """Refuse a zarr folder that could do anything but hold a record.

    Args:
        path: The folder.

    Raises:
        ValueError: If it has no metadata that can be read.
        ResultError: If an array is of Python objects, needs another codec, has an impossible
            shape, or a path leads out of the folder.
    """
    listed = json.loads((path / ".zmetadata").read_text("utf-8"))
    if not isinstance(listed, dict) or not isinstance(listed.get("metadata"), dict):
        raise ValueError("no list of arrays")
    for key, content in listed["metadata"].items():
        if not _KEY.fullmatch(key):
            raise ResultError(
                f"{str(path)!r} names {key!r} among its arrays, and no record has a path like "
                "that. It was not opened; do not trust where it came from."
            )
        if not isinstance(content, dict):
            raise ValueError(f"{key} is no object")
        if key.endswith(".zarray"):
            _check_array(path, key.removesuffix("/.zarray"), content)
    for link in _links(path):
        if not link.resolve().is_relative_to(path.resolve()):
            raise ResultError(
                f"{str(link)!r} leads out of the record's folder, to {str(link.resolve())!r}. It "
                "was not opened; copy what is needed into the folder."
            )


def _check_array(path: Path, name: str, about: Mapping[str, Any]) -> None:
    """Refuse an array of anything but numbers or texts."""
    dtype, filters = about.get("dtype"), about.get("filters") or []
    compressor = about.get("compressor")
    is_text = dtype == "|O" and filters == _OBJECTS
    is_plain = (
        isinstance(dtype, str)
        and (_NUMBERS.fullmatch(dtype) or _TEXTS.fullmatch(dtype))
        and not filters
    )
    known = compressor is None or (
        isinstance(compressor, dict) and compressor.get("id") in _COMPRESSORS
    )
    if not (is_text or is_plain) or not known:
        told = f"dtype {dtype!r}, filters {filters!r}, compressor {compressor!r}"
        raise ResultError(
            f"The array {name!r} of {str(path)!r} is not plain numbers or texts ({told[:200]}). "
            "It was not opened: such arrays may run code. Do not trust where it came from."
        )
    shape, chunks = about.get("shape"), about.get("chunks")
    if not (_are_sizes(shape, 0) and _are_sizes(chunks, 1) and len(shape) == len(chunks)):
        raise ResultError(
            f"The array {name!r} of {str(path)!r} has an impossible shape: {str(shape)[:80]} in "
            f"chunks of {str(chunks)[:80]}. It was not opened."
        )


def _are_sizes(values: object, least: int) -> bool:
    return isinstance(values, list) and all(
        isinstance(n, int) and not isinstance(n, bool) and least <= n <= _LARGEST for n in values
    )


def _links(path: Path) -> Iterator[Path]:
    """The links in a folder, however deep; none is followed."""
    with os.scandir(path) as found:
        for entry in found:
            if entry.is_symlink():
                yield Path(entry.path)
            elif entry.is_dir(follow_symlinks=False):
                yield from _links(Path(entry.path))
