"""Prompts from a file or from the package, by one name."""

from pathlib import Path
from typing import Any

from moe_interp.errors import PromptError
from moe_interp.prompts._builtin import BUILTIN_PROMPTS, builtin_factory
from moe_interp.prompts._files import SUFFIXES, read_rows
from moe_interp.prompts._layouts import prompts_from_rows
from moe_interp.prompts._prompt import check_design
from moe_interp.prompts._promptset import PromptSet


def load_prompts(source: str | Path, **options: Any) -> PromptSet:  # noqa: ANN401
    """Load a prompt set from a JSONL or CSV file, or one that ships with the package.

    A file has the fields `text`, and as far as known `topic`, `harm`, `pair`, `wording` and `id`;
    or it has XSTest's layout (Röttger et al., 2024), recognised by `prompt`, `type` and `focus`.
    XSTest's pairs rest on the order of its rows, so give the file as published.

    Args:
        source: A path that ends in ``.jsonl`` or ``.csv``, or a built-in name: ``"organism"``.
        options: Options of a built-in set, such as ``per_topic=4``; a file takes none.

    Returns:
        The prompts, in the order of the file.

    Raises:
        PromptError: If there is no such file or set, or a row cannot be used; the message names
            the file and the row.
        TypeError: If options are given for a file.
    """
    if isinstance(source, str) and source in BUILTIN_PROMPTS:
        return builtin_factory(source)(**options)
    path = Path(source)
    if path.suffix.lower() not in SUFFIXES:
        raise PromptError(
            f"{str(source)!r} is neither a built-in prompt set ({', '.join(BUILTIN_PROMPTS)}) "
            f"nor a file that ends in {' or '.join(SUFFIXES)}."
        )
    if options:
        raise TypeError(
            f"A prompt file takes no options, got {', '.join(options)}. "
            "Choose among its prompts with `PromptSet.select`."
        )
    rows = read_rows(path)
    if not rows:
        raise PromptError(f"{path.name} holds no prompts; give at least one row.")
    prompts = prompts_from_rows(rows, source=path.name)
    check_design(prompts, [row.place for row in rows])
    return PromptSet(prompts, source=path.name)
