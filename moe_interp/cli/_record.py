"""`moe-interp record`: capture routing into a folder that needs no model to be read."""

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
    force: Force = False,
) -> None:
    """Capture which experts every token was routed to, and with which weights.

    The record is a zarr folder: `moe_interp.open_record(OUT)` reads it on any machine, and
    xarray opens it too. Padding is never in it.

    Example: moe-interp record --model organism:topic --prompts organism --out routing.zarr
    """
    import numpy as np

    from moe_interp.capture import check_free, record_routing
    from moe_interp.cli._open import open_model
    from moe_interp.prompts import load_prompts

    check_free(out, force=force)
    chosen = load_prompts(prompts)
    code = {"trust_remote_code": trust_remote_code}
    opened = open_model(model, device=device, dtype=dtype, remote=remote, **code)
    captured = record_routing(
        opened,
        chosen,
        batch_size=batch_size or "auto",
        n_random_routers=random_routers,
        rng=np.random.default_rng(seed),
    )
    captured.save(out, force=force)
    console.print(captured.summary(), markup=False)
    console.print(f"wrote {out}", markup=False)
