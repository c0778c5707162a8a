"""The arrays of a store that is filled block by block, and its metadata.

Zarr format 2, written as xarray writes it: it specifies texts of any length, and one file that
lists all arrays. Every chunk carries a checksum, which whoever reads it checks.
"""

import json
import os
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numcodecs import Zstd
from numpy import ndarray

#: Light compression; zstd's checksum tells a chunk that was changed or cut.
COMPRESSOR = Zstd(level=1, checksum=True)
# A chunk of zeros is written like any other, so that one that is missing was lost.
_WRITE_ALL = {"array.write_empty_chunks": True}


def create_array(
    group: zarr.Group,
    name: str,
    dims: tuple[str, ...],
    shape: tuple[int, ...],
    chunks: tuple[int, ...],
    dtype: Any,  # noqa: ANN401  Whatever numpy takes.
) -> None:
    """Create an array in full, without values.

    Args:
        group: Where.
        name: Its name.
        dims: Its dimensions.
        shape: Its length along each of them.
        chunks: The same of a chunk.
        dtype: Its format; `str` for texts.
    """
    group.create_array(
        name,
        shape=shape,
        chunks=tuple(max(1, min(n, whole)) for n, whole in zip(chunks, shape, strict=True)),
        dtype=dtype,
        compressors=COMPRESSOR,
        # With a fill value, xarray would take equal values for missing ones.
        fill_value=None,
        attributes={"_ARRAY_DIMENSIONS": list(dims)},
    )


def write_rows(group: zarr.Group, name: str, axis: int, first: int, values: ndarray) -> None:
    """Write values to their place along one axis, in full along the others.

    Args:
        group: Where the array is.
        name: Its name.
        axis: The axis.
        first: Where on it they begin.
        values: The values.
    """
    # An array keeps the setting that it was opened under.
    with zarr.config.set(_WRITE_ALL):
        array = group[name]
    place = [slice(None)] * array.ndim
    place[axis] = slice(first, first + values.shape[axis])
    array[tuple(place)] = values


def read_rows(array: zarr.Array, axis: int, first: int, end: int) -> ndarray:
    """Read values along one axis.

    Args:
        array: The array.
        axis: The axis.
        first: Where on it they begin.
        end: Where they end.

    Returns:
        The values.
    """
    place = [slice(None)] * array.ndim
    place[axis] = slice(first, end)
    return np.asarray(array[tuple(place)])


def write_metadata(root: Path, attributes: Mapping[str, Any]) -> None:
    """Write what a store says of itself, and the file that lists all its arrays.

    Args:
        root: The folder of the store.
        attributes: What it says.
    """
    write_whole(root / ".zattrs", json.dumps(attributes, indent=1))
    listed = {".zgroup": {"zarr_format": 2}, ".zattrs": dict(attributes)}
    for path in sorted(root.glob("*/.z*")):
        listed[f"{path.parent.name}/{path.name}"] = json.loads(path.read_text("utf-8"))
    whole = {"metadata": listed, "zarr_consolidated_format": 1}
    write_whole(root / ".zmetadata", json.dumps(whole, indent=1))


def write_whole(path: Path, content: str | bytes) -> None:
    """Write a file that appears under its name only once it is whole.

    Args:
        path: The file.
        content: What it holds.
    """
    draft = path.with_name(f"{path.name}.{uuid.uuid4().hex}.partial")
    try:
        draft.write_bytes(content.encode() if isinstance(content, str) else content)
        draft.replace(path)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise


def chunk_files(array: zarr.Array, axis: int, first: int, end: int) -> list[str]:
    """The files, within an array's folder, of the chunks that rows along one axis fill.

    Args:
        array: The array.
        axis: The axis.
        first: The first row.
        end: The row after the last.

    Returns:
        Their names.
    """
    if first == end:
        return []
    counts = [-(-n // chunk) for n, chunk in zip(array.shape, array.chunks, strict=True)]
    ranges = [range(n) for n in counts]
    ranges[axis] = range(first // array.chunks[axis], -(-end // array.chunks[axis]))
    grid = np.array(np.meshgrid(*ranges, indexing="ij")).reshape(array.ndim, -1).T
    return [".".join(map(str, place)) for place in grid.tolist()]


def is_whole(path: Path) -> bool:
    """Whether a file is there and not empty."""
    try:
        return os.stat(path).st_size > 0  # noqa: PTH116  Path.stat costs twice as much.
    except OSError:
        return False
