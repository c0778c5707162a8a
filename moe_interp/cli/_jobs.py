"""`moe-interp jobs`: captures that servers go on with while nobody waits."""

from pathlib import Path
from typing import Annotated

import typer

from moe_interp.cli._console import out as console

Fetch = Annotated[
    str | None,
    typer.Option("--fetch", help="The job, by name or folder, to wait for and to write to --out."),
]
Out = Annotated[
    Path | None, typer.Option("--out", "-o", help="Where to write the record.", show_default=False)
]
Timeout = Annotated[
    float | None,
    typer.Option("--timeout", min=0, help="Seconds to wait; without end if not given."),
]


def jobs(fetch: Fetch = None, out: Out = None, timeout: Timeout = None) -> None:
    """List the captures that were submitted to a server, or fetch one.

    `moe_interp.submit_routing` submits them. A part that a server lost is asked for again, one
    that has come back is not.

    Example: moe-interp jobs --fetch 20260102-101500-olmoe --out routing.zarr
    """
    from moe_interp.capture import all_jobs, check_free, open_job

    if fetch is None:
        known = all_jobs()
        for job in known:
            console.print(job.summary(), markup=False)
        if not known:
            console.print("no jobs", markup=False)
        return
    if out is None:
        raise ValueError("`--fetch` needs `--out`, the folder to write the record to.")
    check_free(out)
    record = open_job(fetch).wait(timeout=timeout)
    record.save(out)
    console.print(record.summary(), markup=False)
    console.print(f"wrote {out}", markup=False)
