"""JailbreakBench behaviours (Chao et al., 2024): harmful goals, each with a benign twin.

Harm stands in no column: it is which of the two files, or splits, a row comes from.
"""

import warnings
from collections.abc import Sequence

from moe_interp.errors import PromptError
from moe_interp.prompts._card import DataCard
from moe_interp.prompts._cells import name_cell, text_cell
from moe_interp.prompts._files import Row
from moe_interp.prompts._layout import Layout, Placed
from moe_interp.prompts._prompt import Prompt, listed


def _read(rows: Sequence[Row], source: str) -> list[Placed]:
    placed = [_prompt(row) for row in rows]
    indices = [
        {one.prompt.pair for one in placed if one.prompt.harm is harm} for harm in (False, True)
    ]
    if not all(indices):
        given, missing = ("harmful", "benign") if indices[1] else ("benign", "harmful")
        warnings.warn(
            f"{source} holds only JailbreakBench's {given} behaviours, so that no prompt has a "
            f"partner. Give the folder that holds {missing}-behaviors.csv too, or both files.",
            stacklevel=4,
        )
    elif indices[0] != indices[1]:
        lone = [one.prompt.id for one in placed if one.prompt.pair in indices[0] ^ indices[1]]
        warnings.warn(
            f"{len(lone)} of {len(placed)} prompts of {source} have no partner of their `Index`: "
            f"{listed(lone)}. They stay out of paired tests.",
            stacklevel=4,
        )
    return placed


def _prompt(row: Row) -> Placed:
    index = _index(row)
    harm = _harm(row)
    return Placed(
        Prompt(
            text=text_cell(row, "Goal"),
            topic=name_cell(row, "Category"),
            harm=harm,
            pair=index,
            id=f"{'harmful' if harm else 'benign'}-{index}",
        ),
        row.place,
    )


def _index(row: Row) -> str:
    name = name_cell(row, "Index")
    if name is None:
        raise PromptError(f"{row.place}: `Index` is empty; it says which rows are a pair.")
    return name


def _harm(row: Row) -> bool:
    levels = [level for level in ("benign", "harmful") if level in row.part.casefold()]
    if len(levels) != 1:
        raise PromptError(
            f"{row.place}: the columns are those of JailbreakBench's behaviours, which do not say "
            "whether a row is harmful; the name of the file must. Keep the published names, "
            "harmful-behaviors.csv and benign-behaviors.csv."
        )
    return levels == ["harmful"]


JBB = Layout(
    needed=("Index", "Goal", "Behavior", "Category"),
    optional=("Target", "Source"),
    read=_read,
    card=DataCard(
        "JailbreakBench behaviours",
        licence="MIT",
        topic="`Category`",
        pairing="the harmful and the benign behaviour of one `Index`",
        reference="Chao et al., 2024",
    ),
)
