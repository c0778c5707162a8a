"""Our own layout: one column for each field of a prompt."""

from collections.abc import Sequence
from dataclasses import fields

from moe_interp.prompts._cells import boolean_cell, is_empty, name_cell, text_cell
from moe_interp.prompts._files import Row
from moe_interp.prompts._layout import Layout, Placed
from moe_interp.prompts._prompt import Prompt


def _read(rows: Sequence[Row], source: str) -> list[Placed]:
    return [
        Placed(
            Prompt(
                text=text_cell(row, "text"),
                topic=name_cell(row, "topic"),
                harm=boolean_cell(row, "harm"),
                pair=name_cell(row, "pair"),
                wording=name_cell(row, "wording"),
                id=name_cell(row, "id"),
                response=_response(row),
            ),
            row.place,
        )
        for row in rows
    ]


def _response(row: Row) -> str | None:
    empty = is_empty(row.values.get("response"))
    return None if empty else text_cell(row, "response")


OWN = Layout(
    needed=("text",),
    optional=tuple(field.name for field in fields(Prompt)),
    read=_read,
)
