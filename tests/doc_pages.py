"""Run the code of the pages in `docs/`."""

import re
from pathlib import Path

DOCS = Path(__file__).parents[1] / "docs"


def read_page(name: str) -> str:
    """The text of a page, named by its path in `docs/`."""
    return (DOCS / name).read_text(encoding="utf-8")


def blocks(name: str, language: str) -> list[str]:
    """The blocks of a page in a language, in order."""
    return re.findall(rf"^```{language}\n(.*?)^```", read_page(name), re.DOTALL | re.MULTILINE)


def run_page(name: str, folder: Path) -> tuple[dict[str, object], int]:
    """Run a page's Python one block after the other, as a file, which nnsight reads it from.

    Gives the names that it defines and the number of blocks.
    """
    found = blocks(name, "python")
    script = folder / "page.py"
    script.write_text("\n".join(found), encoding="utf-8")
    names = {"__name__": "page", "__file__": str(script)}
    exec(compile(script.read_text(encoding="utf-8"), str(script), "exec"), names)
    return names, len(found)
