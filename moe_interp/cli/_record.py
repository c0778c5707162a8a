"""`moe-interp record`: capture routing into a folder that needs no model to be read."""

from typing import Annotated

import typer

from moe_interp.cli._console import out as console
from moe_interp.cli._console import stop
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

Shard = Annotated[
    str | None,
    typer.Option(
        "--shard",
        metavar="I/N",
        help="Which of N processes that fill --out together this is, from 0: 0/4 to 3/4.",
    ),
]
OnError = Annotated[
    str,
    typer.Option(
        "--on-error",
        metavar="raise|skip",
        help="What to do about a prompt that cannot be run: stop, or note the reason and go on.",
    ),
]
WeightDtype = Annotated[
    str,
    typer.Option(
        "--weight-dtype",
        metavar="float32|float16",
        help="Format of routing weights in the record; half of it takes half the room.",
    ),
]


def record(
    model: Model,
    prompts: Prompts,
    out: Out,
    seed: Seed = 0,
    random_routers: RandomRouters = 99,
    batch_size: BatchSize = None,
    device: Device = None,
    dtype: Dtype = None,
    trust_remote_code: TrustRemoteCode = False,
    remote: Remote = None,
    shard: Shard = None,
    on_error: OnError = "raise",
    weight_dtype: WeightDtype = "float32",
    force: Force = False,
) -> None:
    """Capture which experts every token was routed to, and with which weights.

    The record is a zarr folder: `moe_interp.open_record(OUT)` reads it on any machine, and
    xarray opens it too. Padding is never in it. It is written block by block: killed at any
    moment, the same command goes on where it stood. With --shard several processes fill it.

    Example: moe-interp record --model organism:topic --prompts organism --out routing.zarr
    """
    import numpy as np

    from moe_interp.capture import check_free, record_routing, replace_record
    from moe_interp.capture._store import check_resumable
    from moe_interp.cli._open import open_model
    from moe_interp.prompts import load_prompts

    own, place = _shard(shard), out
    if force and own is not None:
        raise ValueError("--force and --shard do not go together: remove the record, then start.")
    if force and out.exists():
        # The old record stays until the new one is whole.
        check_free(out, force=True)
        place = out.with_name(f".{out.name}.new")
    check_resumable(place)
    chosen = load_prompts(prompts)
    code = {"trust_remote_code": trust_remote_code}
    opened = open_model(model, device=device, dtype=dtype, remote=remote, **code)
    try:
        captured = record_routing(
            opened,
            chosen,
            batch_size=batch_size or "auto",
            n_random_routers=random_routers,
            rng=np.random.default_rng(seed),
            store=place,
            shard=own,
            on_error=on_error,
            weight_dtype=weight_dtype,
        )
    except KeyboardInterrupt as error:
        told = " ".join(getattr(error, "__notes__", ["nothing was written over."]))
        raise typer.Exit(stop(f"interrupted; {told}", code=130)) from None
    if captured is None:
        console.print(f"shard {shard} of {out} is done; others are not", markup=False)
        return
    console.print(captured.summary(), markup=False)
    if place != out:
        captured.dataset.close()
        replace_record(place, out)
    console.print(f"wrote {out}", markup=False)


def _shard(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    number, slash, n_shards = text.partition("/")
    if not (slash and number.isdecimal() and n_shards.isdecimal()):
        raise ValueError(f"--shard must be I/N, such as 0/4 for the first of four, got {text!r}.")
    return int(number), int(n_shards)
