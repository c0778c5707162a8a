"""`moe-interp report`: make the report again from the results of an audit."""

from pathlib import Path
from typing import Annotated

import typer

from moe_interp.cli._console import out as console
from moe_interp.cli._options import Force


def report(
    folder: Annotated[Path, typer.Argument(help="The folder an audit wrote.", show_default=False)],
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="The HTML file.", show_default="FOLDER/report.html"),
    ] = None,
    force: Force = False,
    open_it: Annotated[bool, typer.Option("--open", help="Open it in a browser.")] = False,
) -> None:
    """Write the self-contained report of an audit's results; no model is needed.

    Example: moe-interp report out/demo --force --open
    """
    from moe_interp.audit import read_audit
    from moe_interp.viz import write_report

    result = read_audit(folder)
    path = out or folder / "report.html"
    write_report(result.to_dict(), result.record, path, force=force)
    console.print(f"wrote {path}", markup=False)
    if open_it:
        typer.launch(path.resolve().as_uri())
