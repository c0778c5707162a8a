"""Write `moe_interp/models/support.json` and `docs/support.md` from the models of `zoo`.

python tests/write_support.py
"""

import beartype  # noqa: F401, I001  Before nnsight, which mounts `save` on `object` and breaks it.
import json
import os
import sys
from importlib.metadata import version
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"

import support_facts
import support_page
import torch
import zoo

from moe_interp.models._support import parse_support

ROOT = Path(__file__).parents[1]
TABLE = ROOT / "moe_interp" / "models" / "support.json"
PAGE = ROOT / "docs" / "support.md"
PACKAGES = ("transformers", "nnsight", "torch")


def versions() -> dict[str, str]:
    """The releases that a measurement is made with, and the processor's kind."""
    found = {name: version(name).partition("+")[0] for name in PACKAGES}
    return {**found, "cpu": torch.backends.cpu.get_cpu_capability()}


def collect(measured: list[dict[str, object]]) -> dict[str, object]:
    """The table of all families from the rows of all entries."""
    by_type: dict[str, list[dict[str, object]]] = {}
    for row in measured:
        by_type.setdefault(row["model_type"], []).append(row)
    families = [support_facts.merge(rows) for _, rows in sorted(by_type.items())]
    for family in families:
        if family["offered"]:
            errors = family["errors"].items()
            family["errors"] = {kind: support_facts.round_up(value) for kind, value in errors}
    return {"versions": versions(), "families": families}


def to_text(stored: dict[str, object]) -> str:
    """The table as it is stored."""
    return json.dumps(stored, indent=1, ensure_ascii=False) + "\n"


def main() -> None:
    torch.set_num_threads(1)
    measured = []
    for name in zoo.FAMILIES:
        measured.append(support_facts.measure(name))
        sys.stdout.write(f"{name}: {measured[-1]['reason'] or 'offered'}\n")
    measured += [support_facts.measure_beside(name) for name in support_facts.BESIDE]
    stored = collect(measured)
    TABLE.write_text(to_text(stored), encoding="utf-8")
    PAGE.write_text(support_page.render(parse_support(stored)), encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
