"""The layouts of prompt files, recognised by their columns."""

import warnings
from collections.abc import Iterable, Sequence

from moe_interp.errors import PromptError
from moe_interp.prompts._files import Row
from moe_interp.prompts._layout import Layout
from moe_interp.prompts._layout_harmful import ADVBENCH, HARMBENCH, STRONGREJECT
from moe_interp.prompts._layout_jbb import JBB
from moe_interp.prompts._layout_own import OWN
from moe_interp.prompts._layout_responses import BEAVERTAILS, SAFERLHF
from moe_interp.prompts._layout_wildjailbreak import WILDJAILBREAK
from moe_interp.prompts._layout_xstest import XSTEST
from moe_interp.prompts._prompt import listed

# In the order in which they are tried: one row may have the columns of two of them.
LAYOUTS = {
    "own": OWN,
    "xstest": XSTEST,
    "jbb": JBB,
    "harmbench": HARMBENCH,
    "strongreject": STRONGREJECT,
    "advbench": ADVBENCH,
    "beavertails": BEAVERTAILS,
    "saferlhf": SAFERLHF,
    "wildjailbreak": WILDJAILBREAK,
}


def layout_of(rows: Sequence[Row], *, source: str) -> Layout:
    """Recognise the layout of a set by its columns.

    Columns that the layout does not know are named in a warning.

    Args:
        rows: All rows of the set.
        source: The set's name, for messages.

    Returns:
        The layout.

    Raises:
        PromptError: If no layout has these columns, or the files of a set differ in layout.
    """
    parts = _columns(rows)
    found = {part: _match(columns) for part, columns in parts.items()}
    for part, name in found.items():
        if name is None:
            raise PromptError(
                f"{part or source} has the columns {tuple(parts[part])}. Needed are `text` (with "
                "`topic`, `harm` and `pair` for an audit, and `wording` if wordings repeat), or "
                f"the columns of a public set: {_known_columns()}. Rename the columns."
            )
    if len(set(found.values())) > 1:
        kinds = ", ".join(f"{part} as {name}" for part, name in found.items())
        raise PromptError(
            f"The files of {source} differ in layout: {kinds}. Load each layout by itself."
        )
    layout = LAYOUTS[next(iter(found.values()))]
    columns = dict.fromkeys(column for known in parts.values() for column in known)
    unused = [c for c in columns if c not in layout.needed and c not in layout.optional]
    if unused:
        warnings.warn(f"{source}: these columns were not used: {listed(unused)}.", stacklevel=4)
    return layout


def without_strangers(rows: Sequence[Row], *, source: str) -> list[Row]:
    """Leave out, with a warning, the files of a folder that have no known layout.

    Args:
        rows: All rows of the folder.
        source: The folder's name, for messages.

    Returns:
        The rows of known layouts; all rows if there is none.
    """
    parts = _columns(rows)
    strangers = [part for part, columns in parts.items() if _match(columns) is None]
    if not strangers or len(strangers) == len(parts):
        return list(rows)
    warnings.warn(
        f"These files of {source} have no known layout and were left out: {listed(strangers)}.",
        stacklevel=3,
    )
    return [row for row in rows if row.part not in strangers]


def _columns(rows: Sequence[Row]) -> dict[str, dict[str, None]]:
    """The columns of each part of a set, in order."""
    parts: dict[str, dict[str, None]] = {}
    for row in rows:
        parts.setdefault(row.part, {}).update(dict.fromkeys(row.values))
    return parts


def _match(columns: Iterable[str]) -> str | None:
    present = set(columns)
    return next((name for name, one in LAYOUTS.items() if present.issuperset(one.needed)), None)


def _known_columns() -> str:
    return "; ".join(
        f"{layout.card.name} ({', '.join(layout.needed)})"
        for layout in LAYOUTS.values()
        if layout.card is not None
    )
