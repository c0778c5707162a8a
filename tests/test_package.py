"""What a user installs: one wheel with the organisms and the report's assets inside."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from moe_interp.organism import ORGANISMS

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
def test_the_wheel_holds_the_organisms_and_stays_small(tmp_path):
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    for organism in ORGANISMS:
        folder = f"moe_interp/organism/weights/{organism}"
        for name in ("model.safetensors", "config.json", "tokenizer.json", "card.json"):
            assert f"{folder}/{name}" in names
    assert "moe_interp/py.typed" in names
    assert "moe_interp/models/support.json" in names
    assert any(name.startswith("moe_interp/viz/assets/") for name in names)
    assert not any(name.startswith("tests/") for name in names)
    assert wheel.stat().st_size < 7e6
