"""The options that several commands share, described once."""

from pathlib import Path
from typing import Annotated

import typer

Model = Annotated[
    str,
    typer.Option(
        "--model",
        "-m",
        help="A hub id, a local folder in the Hugging Face layout, or organism:NAME.",
        show_default=False,
    ),
]
Prompts = Annotated[
    str,
    typer.Option(
        "--prompts",
        "-p",
        help="A .jsonl or .csv with text, topic, harm, pair (and wording); a public set's file or "
        "folder; or a name: 'organism', 'jbb', 'xstest' and others that `datasets` fetches.",
        show_default=False,
    ),
]
Seed = Annotated[int, typer.Option("--seed", min=0, help="The same seed gives the same numbers.")]
Force = Annotated[
    bool, typer.Option("--force", help="Replace a result that already stands at --out.")
]
RandomRouters = Annotated[
    int,
    typer.Option(
        "--random-routers", min=39, help="Random routers in the baseline; fewer need less memory."
    ),
]
BatchSize = Annotated[
    int | None,
    typer.Option(
        "--batch-size", min=1, help="Prompts a batch; by default as many as a token budget holds."
    ),
]
Device = Annotated[
    str | None,
    typer.Option(
        "--device",
        help="For example cpu or cuda:0; auto spreads a model over all devices.",
        show_default="a GPU if there is one",
    ),
]
Dtype = Annotated[
    str | None,
    typer.Option("--dtype", help="For example float32 or bfloat16.", show_default="checkpoint's"),
]
Out = Annotated[Path, typer.Option("--out", "-o", help="Where to write.", show_default=False)]
TrustRemoteCode = Annotated[
    bool,
    typer.Option("--trust-remote-code", help="Run Python code that the checkpoint brings along."),
]
Remote = Annotated[
    str | None,
    typer.Option(
        "--remote",
        help="Run the model on an NDIF server: its address, or 'ndif' for the one that nnsight is "
        "configured with.",
        show_default="here",
    ),
]
