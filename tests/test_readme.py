"""The README's Python runs as it stands."""

import re
import subprocess
import sys
from pathlib import Path

from moe_interp.models import supported_families

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"


def test_the_screen_of_python_runs(tmp_path):
    (block,) = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    script = tmp_path / "readme.py"
    script.write_text(block, encoding="utf-8")
    ran = subprocess.run(
        [sys.executable, script], capture_output=True, text=True, cwd=tmp_path, check=False
    )
    assert ran.returncode == 0, ran.stderr
    assert "topic_driven ('user' tokens)" in ran.stdout
    assert "harmful (128): " in ran.stdout


def test_the_numbers_of_families_are_those_of_the_table():
    table = supported_families()
    claim = f"{len(table.offered)} of the {len(table)} model types"
    for name in ("README.md", "CHANGELOG.md"):
        text = " ".join((ROOT / name).read_text(encoding="utf-8").split())
        assert f"{claim} with routed experts in transformers 5.23" in text, name
    assert len(table.refused) == 6


def test_every_file_that_the_readme_links_to_is_there():
    links = re.findall(r"\]\((?!https?:)([^)#]+)", README.read_text(encoding="utf-8"))
    assert len(links) >= 4
    assert all((ROOT / link).is_file() for link in links)
