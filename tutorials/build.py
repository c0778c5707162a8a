"""Run the tutorials and keep each as a notebook with its outputs: ``python tutorials/build.py``.

A tutorial is run only if it or the package has changed since its notebook was made. It fails if a
cell raises, which the assertion in its last cell does where its claim does not hold, or if anything
is written to stderr.
"""

import argparse
import hashlib
import os
import resource
import sys
import time
from pathlib import Path

import jupytext
import nbformat
from nbclient import NotebookClient

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
NOTEBOOKS = ROOT / "docs" / "tutorials"
TUTORIALS = sorted(HERE.glob("[0-9][0-9]_*.py"))
# Progress bars write to stderr, and warn where a notebook has no widgets for them.
_QUIET = {
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TQDM_DISABLE": "1",
    "PYTHONWARNINGS": "ignore:IProgress not found",
}


def digest(tutorial: Path) -> str:
    """A name for everything that the notebook is made of: this file, the tutorial, the package."""
    found = hashlib.sha256()
    package = sorted((ROOT / "moe_interp").rglob("*.py"))
    for path in (Path(__file__), tutorial, *package):
        found.update(path.read_bytes())
    return found.hexdigest()


def is_made(tutorial: Path) -> bool:
    """Whether the notebook is there and was made of what is there now."""
    target = NOTEBOOKS / f"{tutorial.stem}.ipynb"
    if not target.is_file():
        return False
    made = nbformat.read(target, as_version=4).metadata.get("moe_interp", {})
    return made.get("digest") == digest(tutorial)


def make(tutorial: Path, *, timeout: float = 900) -> float:
    """Run a tutorial, write its notebook, and say how many seconds it took.

    Args:
        tutorial: The file in percent format.
        timeout: Seconds after which a cell is given up.

    Raises:
        CellExecutionError: If a cell raises.
        RuntimeError: If a cell writes to stderr.
    """
    notebook = jupytext.read(tutorial, fmt="py:percent")
    notebook.metadata["kernelspec"] = {
        "name": "python3",
        "display_name": "Python 3",
        "language": "python",
    }
    environment = {**os.environ, **_QUIET}
    started, computed = time.monotonic(), _computed()
    place = {"metadata": {"path": str(HERE)}}
    client = NotebookClient(
        notebook, timeout=timeout, startup_timeout=300, resources=place, kernel_name="python3"
    )
    client.execute(env=environment)
    seconds = time.monotonic() - started
    _check(notebook, tutorial.stem)
    notebook.metadata["moe_interp"] = {
        "digest": digest(tutorial),
        "cpu_seconds": round(_computed() - computed, 1),
    }
    NOTEBOOKS.mkdir(parents=True, exist_ok=True)
    nbformat.write(notebook, NOTEBOOKS / f"{tutorial.stem}.ipynb")
    return seconds


def _computed() -> float:
    """Seconds of computing of all kernels that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _check(notebook: nbformat.NotebookNode, name: str) -> None:
    """Refuse what was written to stderr, and take out the times of cells."""
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
        for output in cell.get("outputs", []):
            if output.get("name") == "stderr":
                raise RuntimeError(f"{name} wrote to stderr: {output['text']}")


def main() -> None:
    """Make the notebooks that are asked for, or all."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help="such as 03 or 03_ablation_and_patching")
    parser.add_argument("--force", action="store_true", help="run those that did not change, too")
    asked = parser.parse_args()
    chosen = [
        path
        for path in TUTORIALS
        if not asked.names or any(path.stem.startswith(name) for name in asked.names)
    ]
    if not chosen:
        sys.exit(f"There is no tutorial {asked.names}. Tutorials: {[p.stem for p in TUTORIALS]}.")
    for tutorial in chosen:
        if is_made(tutorial) and not asked.force:
            print(f"{tutorial.stem}: nothing changed")
            continue
        print(f"{tutorial.stem}: {make(tutorial):.0f} s", flush=True)


if __name__ == "__main__":
    main()
