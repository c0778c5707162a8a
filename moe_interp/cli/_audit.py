"""`moe-interp audit`: the main job, from a model and prompts to one report."""

from typing import Annotated

import typer

from moe_interp.cli._console import out as console
from moe_interp.cli._options import (
    BatchSize,
    Device,
    Dtype,
    Force,
    Model,
    Out,
    Prompts,
    RandomRouters,
    Remote,
    Seed,
    TrustRemoteCode,
)


def audit(
    model: Model,
    prompts: Prompts,
    out: Out,
    seed: Seed = 0,
    n_null: Annotated[
        int, typer.Option("--n-null", min=100, help="Random expert sets in the matched null.")
    ] = 100,
    opener: Annotated[
        list[str] | None,
        typer.Option(
            "--opener",
            help="A word that opens this model's refusals, one token; may be repeated.",
            show_default="the card's, or I, As, Sorry, Unfortunately",
        ),
    ] = None,
    random_routers: RandomRouters = 99,
    batch_size: BatchSize = None,
    device: Device = None,
    dtype: Dtype = None,
    trust_remote_code: TrustRemoteCode = False,
    remote: Remote = None,
    force: Force = False,
) -> None:
    """Does routing follow the topic or the harm of a prompt, and which experts matter?

    Captures the routing, tests it against a random router on the same hidden states, finds
    experts that carry the refusal on one half of the prompts, and ablates them on the other
    half beside random experts matched on use. Writes report.html, results.json, experts.csv
    and record.zarr into OUT.

    Example: moe-interp audit --model organism:topic --prompts organism --out out/demo
    """
    from moe_interp.audit import check_output, run_audit
    from moe_interp.cli._open import open_model
    from moe_interp.prompts import load_prompts

    check_output(out, force=force)
    chosen = load_prompts(prompts)
    code = {"trust_remote_code": trust_remote_code}
    opened = open_model(model, device=device, dtype=dtype, remote=remote, **code)
    result = run_audit(
        opened,
        chosen,
        seed=seed,
        n_random_routers=random_routers,
        n_null=n_null,
        openers=opener,
        batch_size=batch_size or "auto",
        progress=True,
    )
    result.save(out, force=force)
    console.print(result.summary(), markup=False)
    console.print(f"\nopen {out / 'report.html'}", markup=False)
