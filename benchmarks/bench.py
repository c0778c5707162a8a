"""All benchmarks in one run, within a quarter of an hour on two cores: a table, and JSON.

    OMP_NUM_THREADS=1 python benchmarks/bench.py [--json out/bench.json] [--only capture imports]

Each part runs in a process of its own and compares with a named alternative in that same process.
What is not there is named with the reason. `benchmarks/RESULTS.md` says what each number is
against; `benchmarks/kills.py` and `benchmarks/calibration.py` take longer and stand by themselves.
"""

import argparse
import json
import os
import re
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent
Row = dict[str, object]


def script(name: str, *arguments: object, seconds: float = 400, allowed: int = 0) -> str:
    """Run a script beside this one and give what it prints; codes up to `allowed` are no error."""
    command = [sys.executable, HERE / name, *arguments]
    done = subprocess.run(
        list(map(str, command)), capture_output=True, text=True, timeout=seconds, check=False
    )
    if not 0 <= done.returncode <= allowed:
        last = (done.stderr.strip().splitlines() or ["no word"])[-1]
        raise RuntimeError(f"{name} ended with code {done.returncode}: {last}")
    return done.stdout


def row(name: str, against: str, ratio: float, **more: object) -> Row:
    """A line of the table."""
    return {"name": name, "against": against, "ratio": ratio, **more}


def capture(device: str) -> list[Row]:
    """Capture and contributions against a plain forward and raw nnsight."""
    shapes = ("small",) if device == "cpu" else ("olmoe", "mixtral")
    found: list[Row] = []
    for shape in shapes:
        with tempfile.TemporaryDirectory() as folder:
            place = Path(folder) / "capture.json"
            script("capture.py", "--device", device, "--shape", shape, "--json", place)
            facts = json.loads(place.read_text("utf-8"))
        found += [{**one, "name": f"{shape}: {one['name']}"} for one in facts["rows"]]
        if facts["left_out"]:
            found.append({"name": "TransformerLens", "left_out": facts["left_out"]})
    return found


def sweeps(device: str) -> list[Row]:
    """A sweep against one trace for each expert, and for each expert and prompt."""
    text = script("sweep.py", "--layers", 4, "--prompts", 32, "--sampled", 4, "--sweeps", 2)
    found = re.findall(r"^(one trace .*?)\s+[\d.]+\s+([\d.]+)x\s+([\d.]+)", text, re.MULTILINE)
    return [row(name, "sweep", float(ratio), goal=float(goal)) for name, ratio, goal in found]


def permutations(device: str) -> list[Row]:
    """Permutation tests against scipy, and against one matrix product of the same size."""
    from scipy import stats

    from moe_interp.stats import paired_permutation_test

    n_pairs, n_experts, n_resamples = 500, 2048, 9999
    rng = np.random.default_rng(0)
    harmful, harmless = (rng.random((n_pairs, n_experts)) for _ in range(2))
    signs = rng.choice(np.float32([-1, 1]), size=(n_resamples, n_pairs))
    differences = (harmful - harmless).astype(np.float32)

    def seconds(work: Callable[[], object]) -> float:
        start = time.process_time()
        work()
        return time.process_time() - start

    def tested() -> None:
        paired_permutation_test(
            harmful, harmless, n_resamples=n_resamples, rng=np.random.default_rng(0)
        )

    def scipys() -> None:
        stats.permutation_test(
            (harmful[:, :64], harmless[:, :64]),
            lambda a, b, axis: np.mean(a - b, axis=axis),
            permutation_type="samples",
            vectorized=True,
            n_resamples=64,
            batch=32,
            rng=np.random.default_rng(0),
        )

    products, tests = [], []
    for _ in range(3):
        products.append(seconds(lambda: signs @ differences))
        tests.append(seconds(tested))
    ratios = np.array(products) / np.array(tests)
    slow = seconds(scipys) / 64 * n_resamples * n_experts / 64
    size = f"{n_resamples} x {n_pairs} x {n_experts}, single precision"
    return [
        row(
            "rate of paired_permutation_test (p and max-T)",
            f"one matrix product of {size}",
            float(np.median(ratios)),
            low=float(ratios.min()),
            high=float(ratios.max()),
            goal=">= 0.5",
        ),
        row(
            "scipy.stats.permutation_test, 64 draws of 64 experts, extrapolated",
            "paired_permutation_test",
            slow / float(np.median(tests)),
        ),
    ]


def memory(device: str) -> list[Row]:
    """Memory of a capture at 1,000 and 10,000 prompts, and of reading a record."""
    # It ends with 1 where a bound does not hold, which the table says.
    told = script("memory.py", "--bound", 192, seconds=800, allowed=1)
    facts = json.loads(told.splitlines()[-1])
    few, many = (case["rss_mib"] for case in facts["capture"]["cases"].values())
    larger = facts["larger"]
    return [
        row(
            "largest resident set, 10,000 prompts to a store",
            "1,000 prompts",
            many / few,
            goal=1.10,
            mib=[few, many],
        ),
        row(
            f"memory to read a record of {larger['record_mib']:.0f} MiB, beyond the imports",
            f"the bound of {larger['bound_mib']} MiB",
            larger["grown_mib"] / larger["bound_mib"],
            goal=1.0,
            mib=larger["grown_mib"],
        ),
    ]


def imports(device: str) -> list[Row]:
    """Time to import the package, and what a capture needs of it, against nnsight alone."""

    def spent(code: str) -> float:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, "-c", code], check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    rows = []
    for code, goal in (
        ("import moe_interp", 1.15),
        ("from moe_interp import load_model, record_routing", None),
    ):
        spent(code)
        ratios = [spent(code) / spent("import nnsight") for _ in range(5)]
        low, middle, high = np.quantile(ratios, [0.25, 0.5, 0.75])
        one = row(code, "import nnsight", float(middle), goal=goal)
        rows.append({**one, "low": float(low), "high": float(high)})
    return rows


def report(device: str) -> list[Row]:
    """Size and first paint of reports, by the script that measures them."""
    scripts = sorted(HERE.glob("report*.py"))
    if not scripts:
        return [{"name": "report", "left_out": "benchmarks/report.py is not there"}]
    return [
        {"name": one.name, "against": "as it says itself", "text": script(one.name)}
        for one in scripts
    ]


PARTS = {
    "imports": imports,
    "capture": capture,
    "permutations": permutations,
    "sweep": sweeps,
    "memory": memory,
    "report": report,
}


def shown(found: Row) -> str:
    """A line for people."""
    if "left_out" in found:
        return f"  {found['name']}: not measured, {found['left_out']}"
    if "text" in found:
        return f"  {found['name']}:\n{found['text']}"
    spread = f" ({found['low']:.2f}-{found['high']:.2f})" if "low" in found else ""
    goal = f", goal {found['goal']}" if found.get("goal") else ""
    return f"  {found['name']}: {found['ratio']:.3f}{spread} to {found['against']}{goal}"


def main() -> None:
    """Run the parts, and write what they found."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, default=None)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--device", default="cpu")
    given = parser.parse_args()
    begun, facts = time.monotonic(), {}
    for name in given.only:
        start, load = time.monotonic(), os.getloadavg()[0]
        try:
            found = PARTS[name](given.device)
        except (RuntimeError, subprocess.TimeoutExpired) as error:
            found = [{"name": name, "left_out": str(error)}]
        facts[name] = {"seconds": time.monotonic() - start, "load": load, "rows": found}
        print(f"{name} ({facts[name]['seconds']:.0f} s, load {load:.0f})", flush=True)
        print("\n".join(map(shown, found)), flush=True)
    whole = {"seconds": time.monotonic() - begun, "cores": os.cpu_count(), "parts": facts}
    print(f"{whole['seconds']:.0f} s in all")
    if given.json is not None:
        given.json.parent.mkdir(parents=True, exist_ok=True)
        given.json.write_text(json.dumps(whole, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
