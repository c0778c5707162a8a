"""Each tutorial opens with its question, can be switched to a real model, and keeps its claim."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "tutorials"
TUTORIALS = sorted(FOLDER.glob("[0-9][0-9]_*.py"))
# Seconds of computing that one may take, kernel and imports included.
MOST_CPU_SECONDS = 120


def cells(path):
    """(kind and tags, text) of each cell."""
    parts = re.split(r"^# %%(.*)$", path.read_text(encoding="utf-8"), flags=re.M)[1:]
    return list(zip(parts[::2], parts[1::2], strict=True))


def test_they_are_numbered_without_a_gap():
    numbers = [int(path.name[:2]) for path in TUTORIALS]
    # The eighth is about servers, see docs/remote.md.
    assert set(range(1, 11)) - {8} <= set(numbers)
    assert len(numbers) == len(set(numbers))


@pytest.mark.parametrize("path", TUTORIALS, ids=lambda path: path.stem)
def test_it_opens_with_a_question_and_ends_with_an_assertion(path):
    found = cells(path)
    kind, text = found[0]
    assert "[markdown]" in kind
    assert re.search(r"^# \*\*[^*]+\?\*\*$", " ".join(text.split("\n# ")), re.M) or "?**" in text
    code = [text for kind, text in found if "[markdown]" not in kind]
    assert "assert " in code[-1]


@pytest.mark.parametrize("path", TUTORIALS, ids=lambda path: path.stem)
def test_one_cell_switches_it_to_a_real_model(path):
    switches = [text for kind, text in cells(path) if '"switch"' in kind]
    assert len(switches) == 1
    assert re.search(r"^# MODELS?\b.*=", switches[0], re.M)


@pytest.mark.long
@pytest.mark.parametrize("path", TUTORIALS, ids=lambda path: path.stem)
def test_it_runs_in_two_minutes_and_its_claim_holds(path):
    made = subprocess.run(
        [sys.executable, FOLDER / "build.py", path.stem],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert made.returncode == 0, made.stderr[-4000:]
    import nbformat

    notebook = nbformat.read(ROOT / "docs" / "tutorials" / f"{path.stem}.ipynb", as_version=4)
    assert notebook.metadata["moe_interp"]["cpu_seconds"] < MOST_CPU_SECONDS
    assert notebook.cells[-1].outputs[-1]["text"].strip()
