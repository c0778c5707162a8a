"""Memory: of a capture against the number of prompts, and of reading against the size of a record.

    OMP_NUM_THREADS=1 python benchmarks/memory.py [--only capture|larger] [--bound 96]

Every case runs in a process of its own, whose largest resident set the system reports. A capture
streams to a store with 1,000 and with 10,000 prompts; what counts is how much the second one's
exceeds the first one's. Reading opens a record that is four times larger on disk than the bound
(MiB, beyond what the imports take) and computes shares, scores, tests and the report's tokens.
The script fails if the bound does not hold.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

_MIB = 2**20
SIZES = {"layer": 16, "expert": 64, "top_k": 8}
_PROMPT_TOKENS = 200


def rss() -> float:
    """The largest resident set of this process so far, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def capture(n_prompts: int, store: Path) -> dict[str, float]:
    """Stream prompts to a store."""
    import moe_interp as mi

    model = mi.load_model("organism:topic", check=False)
    known = sorted(word for word in model.tokenizer.get_vocab() if word.isalpha() and len(word) > 1)
    rng = np.random.default_rng(0)
    texts = [" ".join(rng.choice(known, size=rng.integers(6, 16))) for _ in range(n_prompts)]
    # What the first forwards and writes take does not depend on the number of prompts.
    before = rss()
    start = time.monotonic()
    record = mi.record_routing(model, texts, store=store, progress=False)
    return {
        "rss_mib": rss(),
        "before_mib": before,
        "seconds": time.monotonic() - start,
        "tokens": record.n_tokens,
    }


def write_large(store: Path, n_mib: int) -> None:
    """Write a record of random routing, block by block; no model is needed for its size."""
    import zarr
    from zarr.storage import LocalStore

    from moe_interp.capture._chunks import create_array, write_metadata, write_rows
    from moe_interp.capture._store import KIND, SCHEMA_VERSION

    n_layers, n_experts, top_k = SIZES.values()
    n_tokens = n_mib * _MIB // (n_layers * (4 * n_experts + 5 * top_k)) // 256 * 256
    n_prompts = -(-n_tokens // _PROMPT_TOKENS)
    owner = (np.arange(n_tokens) // _PROMPT_TOKENS).astype(np.int32)
    names = [f"p{n:06d}" for n in range(n_prompts)]
    labels = {
        "text": [f"prompt {n}" for n in range(n_prompts)],
        "topic": [f"topic {n // 2 % 8}" for n in range(n_prompts)],
        "pair": [f"pair {n // 2}" for n in range(n_prompts)],
        "wording": [""] * n_prompts,
        "response": [""] * n_prompts,
        "id": names,
    }
    known = {
        "layer": (("layer",), np.arange(n_layers)),
        "span": (("span",), np.array(["user"], dtype=object)),
        "in_span": (
            ("span", "token"),
            (np.arange(n_tokens) % _PROMPT_TOKENS < _PROMPT_TOKENS - 10)[None],
        ),
        "prompt_index": (("token",), owner),
        "pos": (("token",), (np.arange(n_tokens) % _PROMPT_TOKENS).astype(np.int32)),
        "token_id": (("token",), (np.arange(n_tokens) % 977).astype(np.int32)),
        "token_text": (("token",), np.array(["word"] * n_tokens, dtype=object)),
        "harm": (("prompt",), np.arange(n_prompts) % 2 == 1),
        **{name: (("prompt",), np.array(own, dtype=object)) for name, own in labels.items()},
    }
    group = zarr.create_group(LocalStore(store), zarr_format=2)
    for name, (dims, values) in known.items():
        kind = str if values.dtype == object else values.dtype
        chunks = tuple(
            4096 if dim == "token" else n for dim, n in zip(dims, values.shape, strict=True)
        )
        create_array(group, name, dims, values.shape, chunks, kind)
        write_rows(group, name, 0, 0, values)
    recorded = {
        "expert_index": (top_k, np.uint8, "top_k"),
        "routing_weights": (top_k, np.float32, "top_k"),
        "router_logits": (n_experts, np.float32, "expert"),
    }
    for name, (width, kind, dim) in recorded.items():
        shape, chunks = (n_tokens, n_layers, width), (1024, n_layers, width)
        create_array(group, name, ("token", "layer", dim), shape, chunks, kind)
    rng = np.random.default_rng(0)
    for low in range(0, n_tokens, 4096):
        n = min(4096, n_tokens - low)
        logits = rng.standard_normal((n, n_layers, n_experts), dtype=np.float32)
        index = np.argpartition(logits, -top_k, axis=-1)[..., -top_k:]
        write_rows(group, "router_logits", 0, low, logits)
        write_rows(group, "expert_index", 0, low, index.astype(np.uint8))
        chosen = np.take_along_axis(logits, index, axis=-1)
        write_rows(group, "routing_weights", 0, low, np.sort(np.exp(chosen))[..., ::-1])
    coordinates = [name for name in known if name not in ("layer", "span", "in_span")]
    about = {
        "kind": KIND,
        "schema_version": SCHEMA_VERSION,
        "model": {"source": "random", "n_experts": n_experts, "score_function": "softmax"},
        "prompts": {"source": "random", "digest": "", "card": None},
        "versions": {},
        "coordinates": " ".join(coordinates),
    }
    write_metadata(store, about)


def read(store: Path) -> dict[str, float]:
    """Compute everything of a record that is on disk."""
    import moe_interp as mi
    from moe_interp.capture import token_routing  # noqa: F401  Loaded before memory is measured.
    from moe_interp.viz._sample import pack_tokens

    before, start = rss(), time.monotonic()
    record = mi.open_record(store)
    found = {"open": rss()}
    profile = record.profile("user")
    rng = np.random.default_rng(0)
    found["profile"] = rss()
    for score in (mi.selection_frequency, mi.mean_routing_weight, mi.mean_router_prob):
        score(record, span="user")
        found[score.__name__] = rss()
    mi.risk_difference(record)
    mi.expert_tests(profile, n_resamples=199, rng=rng)
    mi.harm_test(profile, n_resamples=199, rng=rng)
    found["tests"] = rss()
    pack_tokens(record.dataset)
    found["report"] = rss()
    grown = {f"{name}_mib": value - before for name, value in found.items()}
    return {
        "imports_mib": before,
        "grown_mib": rss() - before,
        "seconds": time.monotonic() - start,
        "prompts": record.n_prompts,
        "tokens": record.n_tokens,
        **grown,
    }


def in_process(*arguments: object) -> dict[str, float]:
    """Run one case in a process of its own."""
    command = [sys.executable, __file__, *map(str, arguments)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def measure(folder: Path, only: str | None, bound: int, few: int, many: int) -> dict[str, object]:
    """Measure all cases, or one of them."""
    facts: dict[str, object] = {}
    if only != "larger":
        cases = {n: in_process("--case", f"capture:{n}", "--folder", folder) for n in (few, many)}
        first, last = (cases[n]["rss_mib"] for n in (few, many))
        facts["capture"] = {"cases": cases, "growth": last / first - 1}
    if only != "capture":
        # Normal numbers compress by a tenth.
        in_process("--case", f"write:{int(4.8 * bound)}", "--folder", folder)
        store = folder / "large.zarr"
        size = sum(path.stat().st_size for path in store.rglob("*") if path.is_file()) / _MIB
        found = in_process("--case", "read", "--folder", folder)
        facts["larger"] = {"bound_mib": bound, "record_mib": size, **found}
    return facts


def main() -> int:
    """Print what was measured as JSON; fails if a bound does not hold."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", choices=["capture", "larger"], default=None)
    parser.add_argument("--bound", type=int, default=256, help="MiB beyond the imports")
    parser.add_argument("--few", type=int, default=1000)
    parser.add_argument("--many", type=int, default=10_000)
    parser.add_argument("--folder", type=Path, default=None)
    parser.add_argument("--case", default=None, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.case is not None:
        name, _, number = given.case.partition(":")
        if name == "capture":
            facts = capture(int(number), given.folder / f"{number}.zarr")
        elif name == "write":
            write_large(given.folder / "large.zarr", int(number))
            facts = {}
        else:
            facts = read(given.folder / "large.zarr")
        print(json.dumps(facts))
        return 0
    with tempfile.TemporaryDirectory(dir=given.folder) as folder:
        facts = measure(Path(folder), given.only, given.bound, given.few, given.many)
    print(json.dumps(facts))
    larger = facts.get("larger")
    if larger is None:
        return 0
    return int(larger["grown_mib"] > given.bound or larger["record_mib"] < 4 * given.bound)


if __name__ == "__main__":
    sys.exit(main())
