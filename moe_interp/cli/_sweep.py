"""`moe-interp sweep`: what taking each expert away, alone, does to the refusal."""

from pathlib import Path
from typing import Annotated

import typer

from moe_interp.cli._console import out as console
from moe_interp.cli._options import Device, Dtype, Force, Model, Prompts, Remote, TrustRemoteCode
from moe_interp.cli._table import check_file, write_table


def sweep(
    model: Model,
    prompts: Prompts,
    mode: Annotated[str, typer.Option("--mode", help="How: zero or ban.")] = "zero",
    harmful: Annotated[
        bool, typer.Option("--harmful/--all", help="On the harmful prompts alone, or on all.")
    ] = True,
    refusal: Annotated[
        list[str] | None,
        typer.Option(
            "--refusal",
            help="A word that opens a refusal; may be given several times.",
            show_default="the model card's, or usual ones",
        ),
    ] = None,
    show: Annotated[int, typer.Option("--show", min=0, help="Print the first N experts.")] = 12,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="A CSV file for all experts.", show_default=False),
    ] = None,
    store: Annotated[
        Path | None,
        typer.Option("--store", help="A folder to go on from if interrupted.", show_default=False),
    ] = None,
    device: Device = None,
    dtype: Dtype = None,
    trust_remote_code: TrustRemoteCode = False,
    remote: Remote = None,
    force: Force = False,
) -> None:
    """Measure, for every expert, how the log-odds of a refusal change without it; exactly.

    Experts that stand in for each other show no effect alone; `audit` finds those, too.

    Example: moe-interp sweep --model organism:topic --prompts organism --out effects.csv
    """
    check_file(out, force=force)
    from moe_interp.cli._open import open_model
    from moe_interp.errors import PromptError
    from moe_interp.metrics import RefusalLogOdds
    from moe_interp.prompts import load_prompts
    from moe_interp.scores import sweep as sweep_experts

    chosen = load_prompts(prompts)
    if harmful:
        if not chosen.has_harm or not chosen.harm.any():
            raise PromptError(
                f"{chosen.source} does not say which prompts are harmful. Give prompts with "
                "`harm`, or --all."
            )
        chosen = chosen.select(chosen.harm)
    code = {"trust_remote_code": trust_remote_code}
    opened = open_model(model, device=device, dtype=dtype, remote=remote, **code)
    openers = refusal or (opened.card or {}).get("refusal", {}).get("openers")
    metric = RefusalLogOdds(opened.tokenizer, openers=openers)
    found = sweep_experts(opened, chosen, metric=metric, mode=mode, store=store, progress=True)
    said = "zeroing" if mode == "zero" else "banning"
    console.print(
        f"{said} each expert alone, {metric.name} ({metric.unit}), mean of {len(chosen)} prompts",
        markup=False,
    )
    write_table(found.to_frame(), found.name, show=show, out=out, force=force)
