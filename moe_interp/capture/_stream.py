"""RecordStore: a record on disk that several processes fill, each at its own blocks, without locks.

The arrays are created once, in full. A block is written to chunks that no other block has a part
in, and then marked: what has no mark is done again, with the same result. Rows in which blocks
meet in one chunk are kept under ``.capture`` until all blocks are there; whoever sees that they
are puts them into place. All of this may be cut off anywhere, and done twice.
"""

import hashlib
import io
import json
import os
import shutil
import tempfile
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numpy import ndarray
from zarr.storage import LocalStore

from moe_interp.capture._arrays import DIMS, attributes, of_prompts, of_tokens
from moe_interp.capture._blocks import BlockPlan
from moe_interp.capture._chunks import (
    chunk_files,
    create_array,
    is_whole,
    read_rows,
    write_metadata,
    write_rows,
    write_whole,
)
from moe_interp.capture._identity import differences
from moe_interp.capture._store import FOLDER, MANIFEST
from moe_interp.capture._trust import check_folder
from moe_interp.errors import ResultError, ResultExistsError
from moe_interp.models import Architecture
from moe_interp.prompts import PromptSet, TokenizedPrompts

KIND = "moe_interp capture"
#: Prompts whose tokens are written at once when a store is made.
_AT_ONCE = 1024


class RecordStore:
    """The folder of a record that is filled block by block.

    Args:
        path: The folder; `create` makes it.
        plan: How it is divided.
        identity: What it is a record of.
        tokens: The prompts as tokens.
    """

    def __init__(
        self,
        path: str | Path,
        plan: BlockPlan,
        identity: Mapping[str, Any],
        tokens: TokenizedPrompts,
    ) -> None:
        self.path, self.plan, self.tokens = Path(path), plan, tokens
        self.identity = {**identity, "plan": plan.to_dict()}
        self._group: zarr.Group | None = None

    def check(self, *, resume: bool) -> bool:
        """Refuse a place that holds anything but this capture.

        Args:
            resume: Whether to go on with it.

        Returns:
            Whether it is there.

        Raises:
            ResultExistsError: If something else is there, a capture of something else, or any
                where it is not to be gone on with.
        """
        if not self.path.exists():
            return False
        known = manifest_of(self.path)
        where = repr(str(self.path))
        if known is None:
            raise ResultExistsError(
                f"{where} exists already and was left as it is. It is no capture that could be "
                "gone on with; choose another name."
            )
        told = differences(known, self.identity)
        if told:
            raise ResultExistsError(
                f"{where} holds a capture of something else and was left as it is: {told}. "
                "Choose another `store`, or ask for the same again."
            )
        if not resume:
            raise ResultExistsError(
                f"{where} exists already and was left as it is: it is this capture. Pass "
                "resume=True to go on with it, or choose another `store`."
            )
        check_folder(self.path)
        return True

    def create(
        self,
        architecture: Architecture,
        prompts: PromptSet,
        kinds: Mapping[str, np.dtype],
        sizes: Mapping[str, int],
    ) -> None:
        """Make the folder with all arrays in full, and what is known before the model runs.

        Args:
            architecture: The model.
            prompts: The prompts.
            kinds: What is recorded, and in which format.
            sizes: The length of every dimension.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        draft = Path(tempfile.mkdtemp(prefix=f".{self.path.name}-draft-", dir=self.path.parent))
        try:
            draft.chmod(0o777 & ~_umask())
            group = zarr.create_group(LocalStore(draft), zarr_format=2)
            for name, kind in kinds.items():
                chunks = tuple(self._chunk(dim, sizes) for dim in DIMS[name])
                shape = tuple(sizes[dim] for dim in DIMS[name])
                create_array(group, name, DIMS[name], shape, chunks, kind)
            self._write_known(group, architecture, prompts)
            about = attributes(architecture, prompts)
            write_metadata(draft, {**about, **self._coordinates(group), "complete": False})
            (draft / FOLDER).mkdir()
            manifest = {"kind": KIND, "identity": self.identity}
            write_whole(draft / FOLDER / MANIFEST, json.dumps(manifest, indent=1))
            # Another process may have been faster; a folder does not replace one that is not empty.
            os.rename(draft, self.path)  # noqa: PTH104
        except OSError:
            if manifest_of(self.path) is None:
                raise
        finally:
            shutil.rmtree(draft, ignore_errors=True)

    def is_done(self, block: int) -> bool:
        """Whether a block is marked, and all that it has written is there.

        Args:
            block: Which block.

        Returns:
            Whether it need not be done again.
        """
        if self.mark(block) is None:
            return False
        first, end = self._rows(block)
        start, stop = self.plan.inner(first, end)
        files = []
        for name in self._recorded():
            array = self._array(name)
            axis, low, high = self._place(name, block, (start, stop))
            files += [self.path / name / file for file in chunk_files(array, axis, low, high)]
        if not self.is_complete() and self.plan.edges(first, end):
            files.append(self._edges(block))
        return all(map(is_whole, files))

    def mark(self, block: int) -> dict[str, Any] | None:
        """What is noted of a block that was committed.

        Args:
            block: Which block.

        Returns:
            Its checksums and failed prompts; None if it was not committed.
        """
        try:
            return json.loads(self._mark(block).read_text("utf-8"))
        except (OSError, ValueError):
            return None

    def write(self, block: int, arrays: Mapping[str, ndarray], failed: Mapping[str, str]) -> None:
        """Write a block and mark it; doing so again changes nothing.

        Args:
            block: Which block.
            arrays: What was recorded of its prompts.
            failed: The reason for each of its prompts that failed, by id.
        """
        first, end = self._rows(block)
        start, stop = self.plan.inner(first, end)
        edges = {}
        for name in self._recorded():
            values = arrays[name]
            axis, low, high = self._place(name, block, (start, stop))
            if "token" not in DIMS[name]:
                write_rows(self._opened(), name, axis, low, values)
                continue
            if low < high:
                write_rows(self._opened(), name, 0, low, values[low - first : high - first])
            for begin, until in self.plan.edges(first, end):
                edges[f"{name}-{begin}"] = values[begin - first : until - first]
        if edges:
            packed = io.BytesIO()
            np.savez(packed, **edges)
            write_whole(self._edges(block), packed.getvalue())
        noted = {
            "block": block,
            "failed": dict(failed),
            "checksums": {name: checksum(arrays[name]) for name in self._recorded()},
        }
        write_whole(self._mark(block), json.dumps(noted, indent=1))

    def finish(self) -> bool:
        """Put the rows in which blocks meet into place, if all blocks are there.

        Returns:
            Whether the record is whole now.
        """
        if not self.is_complete():
            marks = [self.mark(block) for block in range(self.plan.n_blocks)]
            if any(mark is None for mark in marks):
                return False
            try:
                self._join()
            except FileNotFoundError:
                # Another process has finished meanwhile, and taken away what is not needed.
                if not self.is_complete():
                    raise
            about = json.loads((self.path / ".zattrs").read_text("utf-8"))
            failed: dict[str, str] = {}
            for mark in marks:
                failed |= mark["failed"]
            write_metadata(self.path, {**about, "failed": failed, "complete": True})
        self._clean()
        return True

    def is_complete(self) -> bool:
        """Whether all blocks are in place."""
        whole = json.loads((self.path / ".zmetadata").read_text("utf-8"))
        return bool(whole["metadata"][".zattrs"].get("complete", True))

    def _join(self) -> None:
        """Write every chunk in which blocks meet, from the rows that each of them has kept."""
        found: dict[int, dict[str, list[tuple[int, ndarray]]]] = {}
        for block in range(self.plan.n_blocks):
            first, end = self._rows(block)
            if not self.plan.edges(first, end):
                continue
            for key, rows in self._kept(block).items():
                name, _, begin = key.rpartition("-")
                chunk = int(begin) // self.plan.rows
                found.setdefault(chunk, {}).setdefault(name, []).append((int(begin), rows))
            # Rows of chunks that end before the next block begins are complete.
            for chunk in [known for known in found if (known + 1) * self.plan.rows <= end]:
                self._place_chunk(found.pop(chunk))
        for chunk in list(found):
            self._place_chunk(found.pop(chunk))

    def _kept(self, block: int) -> dict[str, ndarray]:
        """The rows that a block has kept beside the arrays."""
        try:
            with np.load(self._edges(block), allow_pickle=False) as kept:
                return {key: kept[key] for key in kept.files}
        except (ValueError, zipfile.BadZipFile) as error:
            raise ResultError(
                f"{str(self._edges(block))!r} cannot be read as numbers ({error}). Remove the "
                "file, and ask for the same capture again."
            ) from error

    def _place_chunk(self, found: Mapping[str, list[tuple[int, ndarray]]]) -> None:
        for name, parts in found.items():
            parts.sort(key=lambda part: part[0])
            rows = np.concatenate([rows for _, rows in parts])
            write_rows(self._opened(), name, 0, parts[0][0], rows)

    def _clean(self) -> None:
        """Take away what only a store that is being filled needs."""
        for path in (*self.path.glob(f"{FOLDER}/*.npz"), *self.path.rglob("*.partial")):
            path.unlink(missing_ok=True)
        for draft in self.path.parent.glob(f".{self.path.name}-draft-*"):
            shutil.rmtree(draft, ignore_errors=True)

    def _write_known(
        self, group: zarr.Group, architecture: Architecture, prompts: PromptSet
    ) -> None:
        """Write what is known before the model runs, tokens window by window."""
        n_tokens, rows = self.plan.n_tokens, self.plan.rows
        constant = {
            "layer": (("layer",), np.array(architecture.moe_layers, dtype=np.int64)),
            "span": (("span",), np.array(list(self.tokens.spans), dtype=object)),
            **of_prompts(prompts),
        }
        for name, (dims, values) in constant.items():
            kind = str if values.dtype == object else values.dtype
            create_array(group, name, dims, values.shape, values.shape, kind)
            write_rows(group, name, 0, 0, values)
        ends, held, first = self.tokens.ends, {}, 0
        for low in range(0, self.plan.n_prompts, _AT_ONCE):
            high = min(low + _AT_ONCE, self.plan.n_prompts)
            for name, (dims, values) in of_tokens(self.tokens.part(low, high), low).items():
                axis = dims.index("token")
                if not low:
                    shape = (*values.shape[:axis], n_tokens)
                    kind = str if values.dtype == object else values.dtype
                    create_array(group, name, dims, shape, (*values.shape[:axis], rows), kind)
                # Whole chunks only, so that none is read again to be added to.
                kept = np.concatenate([held.pop(name), values], axis=axis) if low else values
                stop = int(ends[high - 1])
                whole = stop if high == self.plan.n_prompts else stop // rows * rows
                here, later = np.split(kept, [max(0, whole - first)], axis=axis)
                if here.shape[axis]:
                    write_rows(group, name, axis, first, here)
                held[name] = later
            first = max(first, whole)

    def _coordinates(self, group: zarr.Group) -> dict[str, str]:
        """Which arrays are coordinates, as xarray reads it."""
        others = {*self._recorded_in(group), "in_span", "layer", "span"}
        return {"coordinates": " ".join(sorted(set(group.array_keys()) - others))}

    def _chunk(self, dim: str, sizes: Mapping[str, int]) -> int:
        own = {"token": self.plan.rows, "prompt": self.plan.block, "draw": self.plan.draws}
        return 1 if dim == "span" else own.get(dim, sizes[dim])

    def _rows(self, block: int) -> tuple[int, int]:
        """The rows of a block's tokens."""
        low, high = self.plan.prompts(block)
        ends = self.tokens.ends
        return int(ends[low] - self.tokens.lengths[low]), int(ends[high - 1])

    def _place(self, name: str, block: int, inner: tuple[int, int]) -> tuple[int, int, int]:
        """Where a block is written: the axis, and from where to where."""
        if "token" in DIMS[name]:
            return 0, *inner
        return DIMS[name].index("prompt"), *self.plan.prompts(block)

    def _recorded(self) -> list[str]:
        return self._recorded_in(self._opened())

    @staticmethod
    def _recorded_in(group: zarr.Group) -> list[str]:
        return [name for name in DIMS if name in group]

    def _array(self, name: str) -> zarr.Array:
        return self._opened()[name]

    def _opened(self) -> zarr.Group:
        if self._group is None:
            self._group = zarr.open_group(LocalStore(self.path), mode="r+", zarr_format=2)
        return self._group

    def _mark(self, block: int) -> Path:
        return self.path / FOLDER / f"block-{block:06d}.json"

    def _edges(self, block: int) -> Path:
        return self.path / FOLDER / f"block-{block:06d}.npz"


def manifest_of(path: Path) -> dict[str, Any] | None:
    """What a store says that it is a capture of.

    Args:
        path: The folder.

    Returns:
        The fields; None if it is no such store.
    """
    try:
        found = json.loads((path / FOLDER / MANIFEST).read_text("utf-8"))
        return dict(found["identity"]) if found["kind"] == KIND else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def checksum(values: ndarray) -> str:
    """SHA-256 of an array's values in their format.

    Args:
        values: The array.

    Returns:
        In hexadecimal.
    """
    return hashlib.sha256(np.ascontiguousarray(values).tobytes()).hexdigest()


def check_blocks(path: str | Path) -> None:
    """Read a record that was captured block by block, and compare it with its checksums.

    Args:
        path: Its folder.

    Raises:
        ResultError: If it is no such record, is not whole, holds what no record holds, or a value
            has changed.
    """
    path = Path(path)
    known = manifest_of(path)
    if known is None:
        raise ResultError(f"{str(path)!r} is no capture with checksums, so it cannot be compared.")
    plan = BlockPlan(**known["plan"])
    marks = [path / FOLDER / f"block-{block:06d}.json" for block in range(plan.n_blocks)]
    missing = [block for block, mark in enumerate(marks) if not mark.is_file()]
    if missing:
        raise ResultError(f"{str(path)!r} is not whole: block {missing[0]} is missing.")
    check_folder(path)
    group = zarr.open_group(LocalStore(path), mode="r", zarr_format=2)
    owner = np.asarray(group["prompt_index"][:])
    for block, mark in enumerate(marks):
        low, high = plan.prompts(block)
        first, end = (int(row) for row in np.searchsorted(owner, (low, high)))
        for name, expected in json.loads(mark.read_text("utf-8"))["checksums"].items():
            axis = DIMS[name].index("token" if "token" in DIMS[name] else "prompt")
            span = (first, end) if "token" in DIMS[name] else (low, high)
            try:
                values = read_rows(group[name], axis, *span)
            except RuntimeError as error:
                raise ResultError(
                    f"{name!r} of prompts {low} to {high - 1} in {str(path)!r} cannot be read: "
                    f"{error}. Capture it again."
                ) from error
            if checksum(values) != expected:
                raise ResultError(
                    f"{name!r} of prompts {low} to {high - 1} in {str(path)!r} has changed since "
                    "it was written. Capture it again."
                )


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
