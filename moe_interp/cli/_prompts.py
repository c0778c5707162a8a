"""`moe-interp prompts`: look at a prompt set before anything is run on it."""

from pathlib import Path
from typing import Annotated

import typer

from moe_interp.cli._console import out as console


def prompts(
    source: Annotated[
        str,
        typer.Argument(
            help="A file of prompts or of a public set, a folder of them, or a name such as "
            "'organism', 'jbb' or 'xstest'."
        ),
    ] = "organism",
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="Write the set in our own layout (.jsonl or .csv)."),
    ] = None,
    show: Annotated[int, typer.Option("--show", min=0, help="Print the first N prompts.")] = 6,
) -> None:
    """Read a prompt set, say what is in it, and write it in our own layout if asked.

    Example: moe-interp prompts xstest_prompts.csv --out xstest.jsonl
    """
    from rich.table import Table

    from moe_interp.prompts import listed, load_prompts

    chosen = load_prompts(source)
    console.print(chosen.summary(), markup=False)
    if chosen.n_pairs and chosen.unpaired:
        console.print(f"without a partner: {listed(chosen.unpaired)}", markup=False)
    if show:
        columns = ["topic", "harm", "pair", "text"]
        columns += ["response"] if any(chosen.responses) else []
        table = Table(box=None, pad_edge=False, header_style="bold")
        for column in columns:
            table.add_column(column, overflow="fold")
        for prompt in chosen[:show]:
            table.add_row(*(_cell(getattr(prompt, column)) for column in columns))
        console.print(table, markup=False)
    if out is not None:
        write = chosen.to_csv if out.suffix == ".csv" else chosen.to_jsonl
        write(out)
        console.print(f"wrote {out}", markup=False)


def _cell(value: str | bool | None) -> str:
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "harmful" if value else "harmless"
    return value
