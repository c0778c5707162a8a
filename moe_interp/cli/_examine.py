"""`moe-interp test`: topic or harm, from a record alone."""

import json
from pathlib import Path
from typing import Annotated

import typer

from moe_interp.cli._console import out as console
from moe_interp.cli._options import Force, Seed
from moe_interp.cli._table import check_file


def examine(
    record: Annotated[
        Path, typer.Argument(help="The folder that `record` wrote.", show_default=False)
    ],
    span: Annotated[
        str, typer.Option("--span", help="The tokens that the question is about.")
    ] = "user",
    seed: Seed = 0,
    resamples: Annotated[
        int, typer.Option("--resamples", min=99, help="Relabellings of each permutation test.")
    ] = 9999,
    effect: Annotated[
        float, typer.Option("--effect", help="Share of harm that the power is told for.")
    ] = 0.01,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="A JSON file for all numbers.", show_default=False),
    ] = None,
    force: Force = False,
) -> None:
    """Say whether routing follows topic or harm, with controls, decoding, distances and power.

    No model is needed. What the prompts do not allow is refused by name, and the rest goes on.

    Example: moe-interp test routing.zarr --span user --out tests.json
    """
    import numpy as np

    from moe_interp.audit import examine_routing
    from moe_interp.capture import open_record

    check_file(out, force=force)
    found = examine_routing(
        open_record(record),
        span=span,
        rng=np.random.default_rng(seed),
        n_resamples=resamples,
        effect=effect,
    )
    console.print(found.summary(), markup=False)
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        unfinished = out.with_name(f".{out.name}.part")
        unfinished.write_text(json.dumps(found.to_dict(), indent=1), encoding="utf-8")
        unfinished.replace(out)
        console.print(f"wrote {out}", markup=False)
