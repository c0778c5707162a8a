"""`moe-interp models`: what can be opened, and what one model is."""

from typing import Annotated

import typer

from moe_interp.cli._console import out as console


def models(
    model: Annotated[
        str | None,
        typer.Argument(help="Open this one, check it, and print its architecture."),
    ] = None,
) -> None:
    """List the architectures and organisms that are known, or describe one model.

    Example: moe-interp models organism:topic
    """
    from rich.table import Table

    if model is not None:
        from moe_interp.cli._open import open_model

        architecture = open_model(model).architecture.to_dict()
        width = max(map(len, architecture))
        for name, value in architecture.items():
            console.print(f"{name:<{width}}  {value}", markup=False)
        return

    from moe_interp.models import SUPPORTED
    from moe_interp.organism import ORGANISMS, card

    console.print("Architectures read exactly (the check runs at every load):")
    console.print("  " + ", ".join(sorted(SUPPORTED)), markup=False)
    console.print("\nShipped model organisms:")
    table = Table(box=None, pad_edge=False, show_header=False, padding=(0, 2))
    for name in ORGANISMS:
        table.add_row(f"  organism:{name}", card(name)["description"])
    console.print(table)
