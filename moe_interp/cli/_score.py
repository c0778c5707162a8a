"""`moe-interp score`: how much every expert is used, from a record alone."""

from pathlib import Path
from typing import Annotated

import typer

from moe_interp.cli._console import out as console
from moe_interp.cli._options import Force
from moe_interp.cli._table import write_table


def score(
    record: Annotated[
        Path, typer.Argument(help="The folder that `record` wrote.", show_default=False)
    ],
    span: Annotated[str, typer.Option("--span", help="The tokens that count.")] = "user",
    show: Annotated[int, typer.Option("--show", min=0, help="Print the first N experts.")] = 12,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="A CSV file for all experts.", show_default=False),
    ] = None,
    force: Force = False,
) -> None:
    """Count the use of every expert: how often it is chosen, with which weight, and for whom.

    The first are those whose use differs most between harmful and harmless prompts. That says
    nothing of what they do: `test` tests the difference, `sweep` measures the effect.

    Example: moe-interp score routing.zarr --out use.csv
    """
    from moe_interp.capture import open_record
    from moe_interp.errors import DesignError, PromptError
    from moe_interp.scores import mean_routing_weight, risk_difference, selection_frequency

    opened = open_record(record)
    table = selection_frequency(opened, span=span).to_frame()
    order = "selection_frequency"
    if "routing_weights" in opened.dataset:
        mass = mean_routing_weight(opened, span=span)
        table[mass.name] = mass.mean.ravel()
    try:
        difference = risk_difference(opened, span=span)
    except (DesignError, PromptError) as error:
        console.print(f"no difference by harm: {error}", markup=False)
    else:
        table[difference.name] = difference.mean.ravel()
        order = difference.name
    write_table(table, order, show=show, out=out, force=force)
