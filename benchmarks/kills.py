"""Kill a capture at random moments, go on, and compare the store byte by byte.

    OMP_NUM_THREADS=1 python benchmarks/kills.py [--kills 30] [--json kills.json]

Each round starts a capture in a process of its own, sends it SIGKILL after a time that is uniform
over the seconds that an undisturbed one takes (making the store and finishing it included), and
asks for the same again; every third round that second process is killed too. What stands in the
end must have the same files with the same bytes as a store that nobody disturbed. The last rounds
run two shards side by side, of which one is killed and started again.
"""

import argparse
import json
import os
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from moe_interp.capture import record_routing
from moe_interp.models import MoEModel, load_model
from moe_interp.prompts import PromptSet, load_prompts


def files(folder: Path) -> dict[str, bytes]:
    """All files of a folder and what they hold."""
    found = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in found}


def start(model: MoEModel, prompts: PromptSet, store: Path, shard: tuple[int, int]) -> int:
    """Start a capture in a process of its own; returns its number."""
    child = os.fork()
    if child:
        return child
    try:
        rng = np.random.default_rng(0)
        options = {"batch_size": 1, "n_random_routers": 39, "rng": rng, "progress": False}
        record_routing(model, prompts, store=store, shard=shard, **options)
        os._exit(0)
    except BaseException as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
        os._exit(1)


def wait(child: int) -> int:
    """Wait for a process; returns how it ended."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def kill(child: int, after: float) -> bool:
    """Kill a process after some time; returns whether it still ran."""
    time.sleep(after)
    os.kill(child, signal.SIGKILL)
    return wait(child) == -signal.SIGKILL


def run_round(
    model: MoEModel, prompts: PromptSet, store: Path, number: int, seconds: float, rng: object
) -> tuple[int, str]:
    """Disturb one capture; returns how often it was killed while it ran, and what went wrong."""
    whole = (0, 1)
    while not (killed := kill(start(model, prompts, store, whole), rng.uniform(0, seconds))):
        # It was done before; that is no kill.
        shutil.rmtree(store)
        seconds *= 0.8
    if number % 3 == 2:
        killed += kill(start(model, prompts, store, whole), rng.uniform(0, seconds))
    code = wait(start(model, prompts, store, whole))
    return int(killed), "" if code == 0 else f"going on ended with code {code}"


def run_shards(
    model: MoEModel, prompts: PromptSet, store: Path, seconds: float, rng: object
) -> tuple[int, str]:
    """Two shards at once, one of them killed and started again."""
    first = start(model, prompts, store, (0, 2))
    second = start(model, prompts, store, (1, 2))
    killed = kill(first, rng.uniform(0, seconds))
    codes = [wait(second), wait(start(model, prompts, store, (0, 2)))]
    return int(killed), "" if codes == [0, 0] else f"shards ended with codes {codes}"


def main() -> int:
    """Print and write what happened; fails if one store differs."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=30, help="rounds of one process")
    parser.add_argument("--shards", type=int, default=3, help="rounds of two shards")
    parser.add_argument("--prompts", type=int, default=64)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, default=None)
    given = parser.parse_args()
    rng = np.random.default_rng(given.seed)
    model = load_model("organism:topic", check=False)
    prompts = load_prompts("organism").select(range(given.prompts))
    folder = Path(tempfile.mkdtemp(prefix="kills-"))
    try:
        # The first one also loads what later ones find loaded.
        for name in ("warm.zarr", "whole.zarr"):
            begun = time.monotonic()
            if wait(start(model, prompts, folder / name, (0, 1))) != 0:
                return 1
            seconds = time.monotonic() - begun
        expected = files(folder / "whole.zarr")
        outcomes = [
            {"killed": 0, "same": files(folder / "warm.zarr") == expected, "left": [], "wrong": ""}
        ]
        for number in range(given.kills + given.shards):
            store = folder / f"{number}.zarr"
            if number < given.kills:
                killed, wrong = run_round(model, prompts, store, number, seconds, rng)
            else:
                killed, wrong = run_shards(model, prompts, store, 1.5 * seconds, rng)
            same = not wrong and files(store) == expected
            left = sorted(path.name for path in folder.glob(f".{number}.zarr*"))
            outcomes.append({"killed": killed, "same": same, "left": left, "wrong": wrong})
            shutil.rmtree(store, ignore_errors=True)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    facts = {
        "rounds": len(outcomes),
        "kills": sum(one["killed"] for one in outcomes),
        "identical": sum(one["same"] and not one["left"] for one in outcomes),
        "files": len(expected),
        "seconds_undisturbed": round(seconds, 2),
        "outcomes": outcomes,
    }
    if given.json is not None:
        given.json.write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    print(json.dumps({key: value for key, value in facts.items() if key != "outcomes"}))
    return int(facts["identical"] != facts["rounds"])


if __name__ == "__main__":
    sys.exit(main())
