"""`moe-interp study`: a paper's analysis on one's own model and prompts."""

import inspect
from pathlib import Path
from typing import Annotated

import typer

from moe_interp.cli._console import out as console
from moe_interp.cli._options import Device, Dtype, Force, Remote, Seed, TrustRemoteCode


def study(
    name: Annotated[
        str | None, typer.Argument(help="The study; --list names them.", show_default=False)
    ] = None,
    model: Annotated[
        str | None,
        typer.Option("--model", "-m", help="A hub id, a local folder, or organism:NAME."),
    ] = None,
    prompts: Annotated[
        str | None,
        typer.Option("--prompts", "-p", help="A file of prompts, or the name of a set."),
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="The folder to write to.")] = None,
    base: Annotated[
        str | None,
        typer.Option("--base", help="The first of two checkpoints, for studies that compare two."),
    ] = None,
    seed: Seed = 0,
    list_them: Annotated[
        bool, typer.Option("--list", help="List the studies with paper, claim and formulas.")
    ] = False,
    device: Device = None,
    dtype: Dtype = None,
    trust_remote_code: TrustRemoteCode = False,
    remote: Remote = None,
    force: Force = False,
) -> None:
    """Run a paper's analysis, with the controls that the paper lacked.

    Writes results.json, report.html and tables into OUT.

    Example: moe-interp study siddiky2026 --model organism:harm --prompts organism --out out/s
    """
    import numpy as np

    from moe_interp.studies import check_folder, find_study

    if list_them:
        _list()
        return
    given = {"NAME": name, "--model": model, "--prompts": prompts, "--out": out}
    missing = [option for option, value in given.items() if value is None]
    if name is not None:
        chosen = find_study(name)
    if missing:
        raise ValueError(
            f"A study needs {', '.join(missing)}. `moe-interp study --list` names the studies."
        )
    if base is not None and "base" not in inspect.signature(chosen.run).parameters:
        raise ValueError(f"The study {name!r} is about one checkpoint: leave --base out.")
    check_folder(out, force=force)

    from moe_interp.cli._open import open_model
    from moe_interp.prompts import load_prompts

    loaded = load_prompts(prompts)
    place = {"device": device, "dtype": dtype, "remote": remote}
    opened = open_model(model, trust_remote_code=trust_remote_code, **place)
    options = {}
    if base is not None:
        options["base"] = open_model(base, trust_remote_code=trust_remote_code, **place)
    result = chosen.run(opened, loaded, rng=np.random.default_rng(seed), **options)
    result.write(out, force=force)
    console.print(result.summary(), markup=False)
    console.print(f"\nopen {out / 'report.html'}", markup=False)


def _list() -> None:
    from moe_interp.studies import STUDIES

    for one in STUDIES.values():
        console.print(f"{one.name}  {one.reference}", markup=False)
        console.print(f"  claim: {one.claim}", markup=False)
        for what, source in one.status.items():
            console.print(f"  formula: {what}: {source}", markup=False)
        console.print(f"  we add: {one.adds}\n", markup=False)
