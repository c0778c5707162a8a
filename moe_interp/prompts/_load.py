"""Prompts from files, from the package or from a hub, by one name."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from moe_interp.errors import PromptError
from moe_interp.prompts._builtin import BUILTIN_PROMPTS, builtin_factory
from moe_interp.prompts._files import SUFFIXES, Row, kind_of, read_rows
from moe_interp.prompts._hub import HUB_SETS, fetch_rows
from moe_interp.prompts._layouts import layout_of, without_strangers
from moe_interp.prompts._prompt import check_design
from moe_interp.prompts._promptset import PromptSet
from moe_interp.prompts._repeats import without_repeats


def load_prompts(
    source: str | Path | Sequence[str | Path],
    **options: Any,  # noqa: ANN401
) -> PromptSet:
    """Load a prompt set from files, from the package, or from a hub.

    A file has the fields `text`, and as far as known `topic`, `harm`, `pair`, `wording`, `id` and
    `response`; or it has the layout of a public set, recognised by its columns: JailbreakBench,
    XSTest, HarmBench, StrongREJECT, AdvBench, BeaverTails, PKU-SafeRLHF or WildJailbreak. The
    summary of the set says which, with its licence and what its topics and pairs are. XSTest's
    pairs rest on the order of its rows, so give the file as published.

    A prompt that stands twice is left out, with a warning.

    Args:
        source: A path that ends in ``.jsonl``, ``.json``, ``.csv``, ``.tsv`` or ``.parquet``
            (``.gz`` or ``.xz`` may follow); a folder of such files, or a list of them, that make
            one set, such as JailbreakBench's two; the built-in set ``"organism"``; or a name to
            fetch from a hub: ``"jbb"``, ``"xstest"``, ``"harmbench"``, ``"strongreject"``,
            ``"advbench"``, ``"beavertails"``, ``"saferlhf"``, ``"wildjailbreak"``.
        options: Options of a built-in set, such as ``per_topic=4``; others take none.

    Returns:
        The prompts, in the order of the file.

    Raises:
        PromptError: If there is no such file or set, it cannot be fetched, or a row cannot be
            used; the message names the file and the row.
        TypeError: If options are given for a set that is not built in.
    """
    if isinstance(source, str) and source in BUILTIN_PROMPTS:
        return builtin_factory(source)(**options)
    if options:
        raise TypeError(
            f"A prompt file takes no options, got {', '.join(options)}. "
            "Choose among its prompts with `PromptSet.select`."
        )
    if isinstance(source, str) and source in HUB_SETS:
        return _assembled(fetch_rows(source), source)
    if isinstance(source, str | Path):
        path = Path(source)
        if path.is_dir():
            rows = without_strangers(_rows_of(_files_in(path)), source=path.name)
            return _assembled(rows, path.name)
        return _assembled(_rows_of([path]), path.name)
    files = [Path(one) for one in source]
    return _assembled(_rows_of(files), " + ".join(file.name for file in files))


def _files_in(folder: Path) -> list[Path]:
    files = sorted(path for path in folder.iterdir() if path.is_file() and kind_of(path))
    if not files:
        raise PromptError(
            f"The folder {str(folder)!r} holds no prompt file; one ends in {', '.join(SUFFIXES)}."
        )
    return files


def _rows_of(files: Sequence[Path]) -> list[Row]:
    if not files:
        raise PromptError("The list of prompt files is empty; give at least one.")
    names = [file.name for file in files]
    same_name = len(set(names)) < len(names)
    rows = []
    for file in files:
        if kind_of(file) is None:
            raise PromptError(
                f"{str(file)!r} is neither a built-in prompt set ({', '.join(BUILTIN_PROMPTS)}), "
                f"nor one that can be fetched ({', '.join(HUB_SETS)}), nor a folder, nor a file "
                f"that ends in {', '.join(SUFFIXES)}."
            )
        found = read_rows(file)
        if not found:
            raise PromptError(f"{file.name} holds no prompts; give at least one row.")
        if same_name:
            found = [replace(row, place=f"{file.parent.name}/{row.place}") for row in found]
        part = str(file) if same_name else file.name
        rows += [replace(row, part=part) for row in found]
    return rows


def _assembled(rows: Sequence[Row], source: str) -> PromptSet:
    layout = layout_of(rows, source=source)
    placed = without_repeats(layout.read(rows, source), source=source)
    if not placed:
        raise PromptError(
            f"All {len(rows)} rows of {source} were left out, so that no prompt stays; the "
            "warnings say why."
        )
    prompts = [one.prompt for one in placed]
    check_design(prompts, [one.place for one in placed])
    return PromptSet(prompts, source=source, card=layout.card)
