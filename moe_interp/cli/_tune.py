"""`moe-interp tune`: train chosen experts on responses, and nothing else."""

from pathlib import Path
from typing import Annotated

import typer

from moe_interp.cli._console import out as console
from moe_interp.cli._options import Device, Dtype, Force, Model, Seed, TrustRemoteCode


def tune(
    model: Model,
    data: Annotated[
        str,
        typer.Option(
            "--data",
            help="Prompts with a `response` each, to be learned: a .jsonl or .csv file.",
            show_default=False,
        ),
    ],
    experts: Annotated[
        str, typer.Option("--experts", help="Such as L3E8,L3E9; or 'all'.", show_default=False)
    ],
    out: Annotated[
        Path, typer.Option("--out", "-o", help="The delta file to write.", show_default=False)
    ],
    checkpoint: Annotated[
        Path | None,
        typer.Option(
            "--checkpoint", help="A folder for the whole tuned model.", show_default=False
        ),
    ] = None,
    epochs: Annotated[int, typer.Option("--epochs", min=1)] = 3,
    learning_rate: Annotated[float, typer.Option("--learning-rate")] = 1e-4,
    batch_size: Annotated[int, typer.Option("--batch-size", min=1)] = 8,
    rank: Annotated[
        int | None,
        typer.Option("--rank", min=1, help="Rank of each change.", show_default="all values"),
    ] = None,
    routers: Annotated[
        bool, typer.Option("--routers/--no-routers", help="Train the routers as well.")
    ] = False,
    seed: Seed = 0,
    device: Device = None,
    dtype: Dtype = None,
    trust_remote_code: TrustRemoteCode = False,
    force: Force = False,
) -> None:
    """Train chosen experts on responses to prompts; everything else stays bit for bit.

    The delta holds the tuned values alone: `moe_interp.load_delta(OUT).applied(model)` puts them
    into the model they were made from.

    Example: moe-interp tune -m organism:topic --data lessons.jsonl --experts L3E8 -o safe.delta
    """
    from moe_interp.errors import ResultExistsError

    for path in (out, checkpoint):
        if path is not None and path.exists() and not force:
            raise ResultExistsError(f"{str(path)!r} exists. Give another path, or --force.")
    from moe_interp.cli._open import open_model
    from moe_interp.prompts import load_prompts
    from moe_interp.tuning import tune_experts

    lessons = load_prompts(data)
    opened = open_model(model, device=device, dtype=dtype, trust_remote_code=trust_remote_code)
    tuned = tune_experts(
        opened,
        experts,
        lessons,
        seed=seed,
        routers=routers,
        epochs=epochs,
        learning_rate=learning_rate,
        batch_size=batch_size,
        rank=rank,
        progress=True,
    )
    console.print(tuned.summary(), markup=False)
    tuned.delta.save(out, force=force)
    console.print(f"wrote {out}", markup=False)
    if checkpoint is not None:
        tuned.save_checkpoint(opened, checkpoint, force=force)
        console.print(f"wrote {checkpoint}", markup=False)
