"""Captures that are killed, in processes of their own, end in the bytes of one that was not."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "kills.py"


@pytest.mark.long
def test_captures_killed_at_random_moments_resume_to_the_same_bytes(tmp_path):
    """Five captures killed while they run, one of them twice, and two shards side by side."""
    facts = tmp_path / "kills.json"
    command = [
        sys.executable,
        SCRIPT,
        "--kills",
        5,
        "--shards",
        1,
        "--prompts",
        48,
        "--json",
        facts,
    ]
    subprocess.run(list(map(str, command)), check=True, timeout=600)
    found = json.loads(facts.read_text("utf-8"))
    assert found["kills"] >= 5
    assert found["identical"] == found["rounds"] == 7
    assert found["files"] > 100
