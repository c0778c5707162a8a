"""Run the tests of access on the oldest and the newest supported nnsight and transformers.

``python tests/compatibility.py`` reads the ranges of ``pyproject.toml``, makes an environment for
the lowest releases they allow and one for the highest that can be installed, and runs in each what
reads and changes models: access, capture, interventions, sweeps, and every family against Hugging
Face's own forward. ``python tests/compatibility.py transformers==5.24.0`` tries other releases
before they are added: widen ``moe_interp/models/_versions.py`` first, which refuses them otherwise.

An environment takes some minutes to install and the tests a quarter of an hour, so this is no part
of ``make test``.
"""

import os
import re
import subprocess
import sys
import tempfile
import tomllib
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("nnsight", "transformers")
TESTS = ("tests/models", "tests/capture", "tests/interventions", "tests/organism")


def lowest(project: dict) -> list[str]:
    """Pins to the lowest releases that the ranges allow."""
    pins = []
    for needed in project["dependencies"]:
        name, _, ranges = needed.partition(">=")
        if name in PACKAGES:
            release = re.match(r"[\d.]+", ranges)[0]
            pins.append(f"{name}=={release}" + (".0" if release.count(".") < 2 else ""))
    return pins


def highest(project: dict) -> list[str]:
    """The ranges as they stand: pip takes the highest."""
    return [text for text in project["dependencies"] if re.match(r"[\w-]+", text)[0] in PACKAGES]


def check(name: str, pins: list[str]) -> bool:
    """Install with these pins, and say whether the tests pass."""
    print(f"== {name}: {' '.join(pins)}", flush=True)
    with tempfile.TemporaryDirectory(prefix="moe-interp-compat-") as folder:
        place = Path(folder)
        venv.create(place / "venv", with_pip=True)
        python = place / "venv" / "bin" / "python"
        # The project's constraints but for the packages in question.
        kept = [
            line
            for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
            if not line.startswith(PACKAGES)
        ]
        (place / "constraints.txt").write_text("\n".join([*kept, *pins]) + "\n", encoding="utf-8")
        pip = [python, "-m", "pip", "install", "-q", "-c", place / "constraints.txt"]
        subprocess.run([*pip, "--upgrade", "pip>=25.1"], check=True)
        # Not the package's own ranges, which the release in question may lie outside of.
        subprocess.run([*pip, "--no-deps", ROOT], check=True)
        others = [text for text in _project()["dependencies"] if text not in highest(_project())]
        subprocess.run([*pip, *others, *pins, "--group", f"{ROOT}/pyproject.toml:dev"], check=True)
        passed = True
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        for chosen in ((), ("-m", "conformance")):
            words = [python, "-m", "pytest", "-q", *chosen, *TESTS]
            passed &= subprocess.run(words, cwd=ROOT, env=environment, check=False).returncode == 0
    print(f"== {name}: {'passed' if passed else 'FAILED'}", flush=True)
    return passed


def _project() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def main() -> None:
    """Check the ends of the ranges, or the pins that are asked for."""
    asked = sys.argv[1:]
    project = _project()
    runs = (
        {"asked for": asked}
        if asked
        else {
            "lowest": lowest(project),
            "highest": highest(project),
        }
    )
    failed = [name for name, pins in runs.items() if not check(name, pins)]
    if failed:
        sys.exit(1)


if __name__ == "__main__":
    main()
