"""What a user does: the wheel in an environment of its own, and an audit outside the source tree.

``python tests/fresh_install.py`` builds the wheel and the sdist, installs the wheel with nothing
but the ranges of ``pyproject.toml`` (and the constraints file, which chooses a small torch), and
runs
the audit of a shipped model in an empty folder. Nothing of the source tree can be imported there.
"""

import json
import os
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FILES = ("report.html", "results.json", "experts.csv", "record.zarr")
# Run in the new environment: where the package came from, its marker of types, its organisms.
LOOK = """
import pathlib, sys
import moe_interp
place = pathlib.Path(moe_interp.__file__).parent
assert sys.prefix in str(place), place
assert (place / "py.typed").is_file()
assert len(list((place / "organism" / "weights").iterdir())) == 5
print(moe_interp.__version__)
"""


def call(*words: str | Path, cwd: Path) -> str:
    """Run a command without what this environment would lend it, and return what it prints."""
    clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    ran = subprocess.run(
        list(map(str, words)), cwd=cwd, env=clean, capture_output=True, text=True, check=False
    )
    if ran.returncode:
        sys.exit(f"{' '.join(map(str, words))}\n{ran.stdout}\n{ran.stderr}")
    return ran.stdout


def main() -> None:
    """Build, install, look, and audit."""
    with tempfile.TemporaryDirectory(prefix="moe-interp-fresh-") as folder:
        place = Path(folder)
        call(sys.executable, "-m", "build", "--outdir", place / "dist", ROOT, cwd=place)
        (wheel,) = (place / "dist").glob("*.whl")
        (sdist,) = (place / "dist").glob("*.tar.gz")
        print(f"built {wheel.name} ({wheel.stat().st_size / 1e6:.1f} MB) and {sdist.name}")
        venv.create(place / "venv", with_pip=True)
        binaries = place / "venv" / "bin"
        constraints = ROOT / "constraints.txt"
        call(binaries / "python", "-m", "pip", "install", "-q", "-c", constraints, wheel, cwd=place)
        call(binaries / "python", "-m", "pip", "check", cwd=place)
        elsewhere = place / "elsewhere"
        elsewhere.mkdir()
        print("installed", call(binaries / "python", "-c", LOOK, cwd=elsewhere).strip())
        audit = ("audit", "--model", "organism:topic", "--prompts", "organism", "--out", "x")
        call(binaries / "moe-interp", *audit, cwd=elsewhere)
        missing = [name for name in FILES if not (elsewhere / "x" / name).exists()]
        results = json.loads((elsewhere / "x" / "results.json").read_text(encoding="utf-8"))
        if missing or results["verdict"] != "topic_driven":
            sys.exit(f"missing: {missing}; verdict: {results['verdict']}")
        print(f"audited outside the source tree: {results['verdict']}")


if __name__ == "__main__":
    main()
