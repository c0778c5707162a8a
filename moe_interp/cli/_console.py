"""Where the commands write: results to standard output, news of the run to standard error."""

from rich.console import Console

out = Console(soft_wrap=True, highlight=False)
err = Console(stderr=True, soft_wrap=True, highlight=False)


def note(text: str) -> None:
    """Tell something the user should know, in one line on standard error."""
    err.print("note: ", style="yellow", end="")
    err.print(_one_line(text), markup=False)


def stop(text: str, *, code: int = 2) -> int:
    """Tell in one line why the command stops, and return its exit code."""
    err.print("moe-interp: ", style="bold red", end="")
    err.print(_one_line(text), markup=False)
    return code


def _one_line(text: str) -> str:
    return " ".join(text.split())
