"""`moe-interp report`: make a report again from the results of audits and studies."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from moe_interp.cli._console import out as console
from moe_interp.cli._options import Force
from moe_interp.errors import ResultError

_RESULTS = "results.json"


def report(
    results: Annotated[
        list[Path],
        typer.Argument(help="Folders that audits or studies wrote.", show_default=False),
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", "-o", help="The HTML file.", show_default="report.html in the one folder"
        ),
    ] = None,
    force: Force = False,
    open_it: Annotated[bool, typer.Option("--open", help="Open it in a browser.")] = False,
) -> None:
    """Write a self-contained report of results; no model is needed.

    One audit gets its report anew. Several results get a section each in one page, which then
    needs --out.

    Example: moe-interp report out/demo --force --open

    Example: moe-interp report out/demo out/study --out both.html
    """
    from moe_interp.viz import write_report

    if out is None and len(results) > 1:
        raise ValueError(
            f"{len(results)} results need a file of their own. Name it: --out report.html."
        )
    folders = [path.parent if path.name == _RESULTS else path for path in results]
    read = [_read(folder) for folder in folders]
    path = out or folders[0] / "report.html"
    records = [record for _, record in read if record is not None]
    write_report(
        read[0][0] if len(read) == 1 else [found for found, _ in read],
        # Tokens of several models in one view would be told apart by nobody.
        records[0] if len(records) == 1 else None,
        path,
        force=force,
    )
    console.print(f"wrote {path}", markup=False)
    if open_it:
        typer.launch(path.resolve().as_uri())


def _read(folder: Path) -> tuple[dict[str, Any], Any]:
    """Read what an audit wrote, with its record, or what a study wrote."""
    path = folder / _RESULTS
    if path.is_file():
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ResultError(f"{str(path)!r} is not JSON: {error}.") from None
        if isinstance(found, dict) and "study" in found:
            return found, None
    from moe_interp.audit import read_audit

    audit = read_audit(folder)
    return audit.to_dict(), audit.record
