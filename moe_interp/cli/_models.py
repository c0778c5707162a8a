"""`moe-interp models`: which families can be opened and what they offer, and what one model is."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from moe_interp.cli._console import out as console

if TYPE_CHECKING:
    from rich.table import Table

    from moe_interp.models import FamilySupport

# Up to this many columns the table of families leaves out how they route.
_NARROW = 100
_LEGEND = (
    "shared: the shared expert; without one, its output is no quantity. output: what the block "
    "makes of the experts' sum Σ and the shared expert's output S (f a factor, P a projection, "
    "N a norm, b a bias)."
)
_LEGEND_OF_ROUTING = (
    " choice: a bias that only the choice sees, groups that limit it. weight: s the score of a "
    "chosen expert, s/Σs divided by the sum over the chosen, f a factor."
)
_WEIGHTS = {
    "s": "the score",
    "s/Σs": "the score, divided by the sum over the chosen",
    "f·s": "a factor times the score",
    "f·s/Σs": "a factor times the score, divided by the sum over the chosen",
    "own rule": "by a rule of its own, see the note",
}


def models(
    model: Annotated[
        str | None,
        typer.Argument(help="Open this one, check it, and print its architecture."),
    ] = None,
    family: Annotated[
        str | None,
        typer.Option("--family", "-f", help="Print all that is known about this family."),
    ] = None,
) -> None:
    """List the families and organisms that are known, or describe one family or one model.

    Example: moe-interp models --family llama4_text

    Example: moe-interp models organism:topic
    """
    if family is None and model is not None and not _is_family(model):
        from moe_interp.cli._open import open_model

        _print_pairs(open_model(model).architecture.to_dict())
        return
    if family is not None or model is not None:
        from moe_interp.models import supported_families

        _print_family(supported_families().find(family or model))
        return
    _print_families()
    _print_organisms()


def _is_family(name: str) -> bool:
    """Whether an argument is the name of a family, and no folder of that name is here."""
    from moe_interp.models import supported_families

    return name in supported_families() and not Path(name).exists()


def _print_families() -> None:
    """One line a family, in as much detail as the terminal is wide."""
    from moe_interp.models import supported_families

    table = supported_families()
    found = table.versions
    console.print(
        f"{len(table.offered)} model types with routed experts are read and edited exactly, "
        f"{len(table.refused)} are refused\n(transformers {found['transformers']}, nnsight "
        f"{found['nnsight']}; the self-check runs at every load).\n",
        soft_wrap=False,
    )
    wide = console.width > _NARROW
    rows = _columns("family", *(("score", "choice", "weight") if wide else ()), "shared", "output")
    rows.add_column("offered")
    if wide:
        rows.columns[2].min_width = len("top-k + bias in groups")
    for one in map(table.get, table.offered):
        routing = (one.score_function, one.choice, one.weights) if wide else ()
        missing = ", ".join(name for name in one.missing if name != "shared_output")
        offered = f"all but {missing}" if missing else "all"
        rows.add_row(one.model_type, *routing, one.shared, one.after_sum, offered)
    console.print(rows, soft_wrap=False)
    console.print(f"\n{_LEGEND}{_LEGEND_OF_ROUTING if wide else ''}", soft_wrap=False)
    console.print("\nRefused:")
    refused = _columns("family", "reason")
    refused.show_header = False
    for one in map(table.get, table.refused):
        refused.add_row(one.model_type, one.reason)
    console.print(refused, soft_wrap=False)
    console.print(
        "\nAll about one of them: moe-interp models --family NAME. Other models are opened if "
        "their structure is one of these and the self-check agrees.",
        soft_wrap=False,
    )


def _columns(*names: str) -> "Table":
    """A plain table whose first column is never broken."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for number, name in enumerate(names):
        table.add_column(name, no_wrap=number == 0, style="bold" if number == 0 else None)
    return table


def _print_organisms() -> None:
    from moe_interp.organism import ORGANISMS, card

    console.print("\nShipped model organisms:")
    table = _columns("name", "description")
    table.show_header = False
    for name in ORGANISMS:
        table.add_row(f"organism:{name}", card(name)["description"])
    console.print(table, soft_wrap=False)


def _print_family(one: "FamilySupport") -> None:
    """Everything about a family, with the reasons."""
    if not one.offered:
        console.print(f"{one.model_type} is refused: {one.reason}", markup=False, soft_wrap=False)
        console.print(f"Class tried: {one.model_class}", markup=False, soft_wrap=False)
        return
    text = f" (its text part, {one.text_type})" if one.text_type else ""
    console.print(f"{one.model_type}{text} is read and edited exactly.\n", markup=False)
    shown = {
        "model": one.model_class,
        "block": one.block,
        "router": one.router,
        "experts": one.experts,
        "score function": one.score_function,
        "choice": one.choice,
        "routing weights": " or ".join(_WEIGHTS[part] for part in one.weights.split(" or ")),
        "n_experts counts": one.n_experts,
        "dispatch": one.dispatch,
        "shared expert": one.shared,
        "block's output": one.after_sum,
        "output_from": one.output_from,
        "experts run by": ", ".join(one.implementations),
        "their call skipped": ", ".join(one.skips_call) or "no",
        **{f"error in {kind}": _error(value) for kind, value in one.errors.items()},
        "tested as": ", ".join(one.settings),
    }
    _print_pairs(shown)
    for number, note in enumerate(one.notes):
        console.print(
            ("\n" if number == 0 else "") + f"Note: {note}.", markup=False, soft_wrap=False
        )
    console.print()
    cells = _columns("quantity", "read", "assigned")
    for name, read in one.read.items():
        cells.add_row(name, _cell(read), _cell(one.write[name], read))
    console.print(cells, soft_wrap=False)


def _cell(cell: str, read: str = "") -> str:
    """A cell of the table of quantities; the same refusal is not told twice."""
    if cell == "offered":
        return "yes"
    return "no" if cell == read else cell.replace("offered, but where", "yes, but where")


def _error(value: float | str) -> str:
    if isinstance(value, str):
        return value
    return f"at most {value:.0e} of the largest entry" if value else "none, bit for bit"


def _print_pairs(pairs: dict[str, object]) -> None:
    """Names and values in two columns."""
    table = _columns("name", "value")
    table.show_header = False
    for name, value in pairs.items():
        table.add_row(name, str(value))
    console.print(table, soft_wrap=False)
