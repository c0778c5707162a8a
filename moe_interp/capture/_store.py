"""Records on disk: a zarr folder that says what it is, written whole or not at all."""

import shutil
import tempfile
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import xarray as xr

from moe_interp.capture._trust import check_folder
from moe_interp.errors import MissingPackageError, ResultError, ResultExistsError

KIND = "moe_interp routing record"
SCHEMA_VERSION = 1
#: What every record has, and along which axes.
_NEEDED = {
    "expert_index": ("token", "layer", "top_k"),
    "in_span": ("span", "token"),
    "layer": ("layer",),
    "span": ("span",),
    **dict.fromkeys(("prompt_index", "pos", "token_id", "token_text"), ("token",)),
    **dict.fromkeys(("text", "topic", "harm", "pair", "wording", "id"), ("prompt",)),
}
#: Where a store that is filled block by block keeps its marks.
FOLDER = ".capture"
MANIFEST = "capture.json"


def check_free(path: str | Path, *, force: bool = False) -> None:
    """Refuse a place where a record cannot be written; to be called before a long capture.

    Args:
        path: The folder that is to be made.
        force: Whether a record that is there may be replaced; nothing else ever is.

    Raises:
        ResultExistsError: If something is there, and it is no record or `force` is not given.
    """
    path = Path(path)
    if not path.exists():
        return
    if not force:
        raise ResultExistsError(
            f"{str(path)!r} exists already and was left as it is. "
            "Choose another name, or pass force=True to replace a record."
        )
    try:
        open_dataset(path).close()
    except ResultError as error:
        raise ResultExistsError(
            f"{str(path)!r} exists and is no routing record, so it is not replaced even with "
            "force=True. Choose another name."
        ) from error


def check_resumable(path: str | Path) -> None:
    """Refuse a place that holds anything but a capture, before anything is loaded or run.

    Args:
        path: The folder that a capture is to fill.

    Raises:
        ResultExistsError: If something else is there.
    """
    path = Path(path)
    if path.exists() and not (path / FOLDER / MANIFEST).is_file():
        raise ResultExistsError(
            f"{str(path)!r} exists already and was left as it is. It is no capture that could be "
            "gone on with; choose another name."
        )


def replace_record(new: Path, old: Path) -> None:
    """Put a record in the place of another, which is kept until that is done.

    Args:
        new: The folder of the record.
        old: The folder that it replaces.
    """
    aside = old.with_name(f".{old.name}.replaced")
    shutil.rmtree(aside, ignore_errors=True)
    old.rename(aside)
    new.rename(old)
    shutil.rmtree(aside)


def save_dataset(dataset: xr.Dataset, path: Path, *, force: bool) -> None:
    """Write a record's dataset.

    Args:
        dataset: The dataset.
        path: The folder to make.
        force: Whether a record that is there may be replaced.

    Raises:
        ResultExistsError: If something is there, and it is no record or `force` is not given.
    """
    check_free(path, force=force)
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{path.name}-", dir=path.parent) as draft:
        # Format 2: it specifies texts of any length, and one file that lists all arrays; format 3
        # does not yet, and zarr warns about both.
        plain = _with_plain_texts(dataset)
        plain.to_zarr(Path(draft) / "record", zarr_format=2, consolidated=True)
        if path.exists():
            shutil.move(path, Path(draft) / "replaced")
        shutil.move(Path(draft) / "record", path)


def open_dataset(path: Path, *, chunks: str | None = None) -> xr.Dataset:
    """Open a record's dataset; arrays are read when they are asked for.

    Args:
        path: The folder.
        chunks: ``"auto"`` for arrays of dask.

    Returns:
        The dataset.

    Raises:
        ResultError: If there is no record there, or one of a version that is not known, or it
            holds what no record holds.
        MissingPackageError: If `chunks` is given and dask is not installed.
    """
    if chunks is not None and find_spec("dask") is None:
        raise MissingPackageError(
            "`chunks` needs dask. Install it: pip install 'moe-interp[dask]'."
        )
    advice = "Give a folder that `RoutingRecord.save` or `moe-interp record` has written."
    if not path.is_dir():
        raise ResultError(f"There is no folder {str(path)!r}. {advice}")
    try:
        check_folder(path)
        dataset = xr.open_dataset(
            path, engine="zarr", chunks={} if chunks == "auto" else None, consolidated=True
        )
    except ResultError:
        raise
    except Exception as error:
        # Whatever a strange folder makes zarr raise, it is not a record.
        raise ResultError(f"{str(path)!r} cannot be read as a zarr folder. {advice}") from error
    if dataset.attrs.get("kind") != KIND:
        dataset.close()
        raise ResultError(f"{str(path)!r} is a zarr folder, but no routing record. {advice}")
    version = dataset.attrs.get("schema_version")
    if version != SCHEMA_VERSION:
        dataset.close()
        raise ResultError(
            f"{str(path)!r} is a routing record of version {version!r}; this moe_interp reads "
            f"version {SCHEMA_VERSION}. Capture it again, or install the moe_interp that wrote it: "
            f"{dataset.attrs.get('versions')}."
        )
    if not dataset.attrs.pop("complete", True):
        dataset.close()
        done = len(list((path / FOLDER).glob("block-*.json")))
        raise ResultError(
            f"{str(path)!r} is a capture that is not whole: {done} of its blocks are there. Ask "
            "for the same capture again to go on with it."
        )
    _check_structure(dataset, path)
    return without_failed(_with_plain_texts(dataset, only=("prompt", "span")))


def _check_structure(dataset: xr.Dataset, path: Path) -> None:
    """Refuse a record that lacks what every record has, or has it along other axes."""
    wrong = [
        name
        for name, dims in _NEEDED.items()
        if name not in dataset.variables or dataset[name].dims != dims
    ]
    about = dataset.attrs
    if not isinstance(about.get("model"), dict) or "n_experts" not in about["model"]:
        wrong.append("model")
    if not isinstance(about.get("prompts"), dict) or "source" not in about["prompts"]:
        wrong.append("prompts")
    if wrong:
        dataset.close()
        raise ResultError(
            f"The record {str(path)!r} is broken: {', '.join(map(repr, wrong))} is missing or has "
            "other axes. Capture it again."
        )


def without_failed(dataset: xr.Dataset) -> xr.Dataset:
    """Leave out the prompts that failed; their tokens have no routing.

    Args:
        dataset: The dataset.

    Returns:
        The same with the others alone.

    Raises:
        ResultError: If there are no others.
    """
    failed = dataset.attrs.get("failed") or {}
    if not failed:
        return dataset
    kept = ~np.isin(dataset["id"].values.astype(str), list(failed))
    if not kept.any():
        raise ResultError(
            f"Every prompt of this record failed, the first one of: {next(iter(failed.values()))}."
        )
    owner = dataset["prompt_index"].values
    place = np.cumsum(kept) - 1
    inside = np.flatnonzero(kept[owner])
    chosen = dataset.isel(prompt=np.flatnonzero(kept), token=inside)
    return chosen.assign_coords(prompt_index=("token", place[owner[inside]].astype(owner.dtype)))


def _with_plain_texts(dataset: xr.Dataset, *, only: tuple[str, ...] | None = None) -> xr.Dataset:
    """Texts as plain Python strings, which every numpy and zarr knows, along `only` these axes."""
    texts = {
        name: (coord.dims, np.array(coord.values.tolist(), dtype=object))
        for name, coord in dataset.coords.items()
        if coord.dtype.kind not in "biuf" and (only is None or coord.dims[0] in only)
    }
    return dataset.assign_coords(texts)
