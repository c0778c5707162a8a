"""Tables of experts: the first few on the screen, all of them in a file."""

from pathlib import Path
from typing import TYPE_CHECKING

from moe_interp.cli._console import out as console
from moe_interp.errors import ResultExistsError

if TYPE_CHECKING:
    from pandas import DataFrame


def check_file(path: Path | None, *, force: bool) -> None:
    """Refuse a file that is there, before any work is done.

    Raises:
        ResultExistsError: If it is there and may not be replaced.
    """
    if path is not None and path.exists() and not force:
        raise ResultExistsError(f"{str(path)!r} exists. Give another --out, or --force.")


def write_table(
    table: "DataFrame", order: str, *, show: int, out: Path | None, force: bool
) -> None:
    """Print the experts with the largest magnitude in a column, and write all to a CSV file.

    Raises:
        ResultExistsError: If the file is there and may not be replaced.
    """
    from rich.table import Table

    check_file(out, force=force)
    first = table.reindex(table[order].abs().sort_values(ascending=False, kind="stable").index)
    if show:
        shown = Table(box=None, pad_edge=False, header_style="bold")
        numbers = [name for name in table.columns if name not in ("layer", "expert")]
        shown.add_column("expert")
        for name in numbers:
            shown.add_column(name, justify="right")
        for row in first.dropna(subset=[order]).head(show).to_dict("records"):
            label = f"L{row['layer']}E{row['expert']}"
            shown.add_row(label, *(f"{row[name]:.4g}" for name in numbers))
        console.print(shown)
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        unfinished = out.with_name(f".{out.name}.part")
        table.to_csv(unfinished, index=False)
        unfinished.replace(out)
        console.print(f"wrote {out}", markup=False)
