"""The application: its commands, and how an error becomes one line and exit code 2."""

import sys
import warnings

import typer

from moe_interp import __version__
from moe_interp.cli import (
    _audit,
    _examine,
    _jobs,
    _models,
    _prompts,
    _record,
    _report,
    _score,
    _study,
    _sweep,
    _tune,
)
from moe_interp.cli._console import note, stop
from moe_interp.errors import MoEInterpError

app = typer.Typer(
    name="moe-interp",
    help="Exact, loud, honest interpretability of Mixture-of-Experts language models.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("audit")(_audit.audit)
app.command("record")(_record.record)
app.command("test")(_examine.examine)
app.command("score")(_score.score)
app.command("sweep")(_sweep.sweep)
app.command("tune")(_tune.tune)
app.command("report")(_report.report)
app.command("jobs")(_jobs.jobs)
app.command("study")(_study.study)
app.command("models")(_models.models)
app.command("prompts")(_prompts.prompts)


# What the options before the command say.
_state = {"traceback": False}


def _print_version(wanted: bool | None) -> None:
    if wanted:
        typer.echo(f"moe-interp {__version__}")
        raise typer.Exit


@app.callback()
def _common(
    version: bool | None = typer.Option(
        None, "--version", callback=_print_version, is_eager=True, help="Print the version."
    ),
    traceback: bool = typer.Option(
        False, "--traceback", help="Show where an error came from, for a report of a bug."
    ),
) -> None:
    """Exact, loud, honest interpretability of Mixture-of-Experts language models."""
    _state["traceback"] = traceback


def main() -> None:
    """Run the command line; what the user can mend is told in one line, with exit code 2."""
    warnings.showwarning = lambda message, *_args, **_kwargs: note(str(message))
    _state["traceback"] = False
    try:
        app()
    except (MoEInterpError, ValueError, OSError) as error:
        if _state["traceback"]:
            raise
        sys.exit(stop(str(error)))
    except KeyboardInterrupt:
        sys.exit(stop("interrupted; nothing was written over.", code=130))
