"""Is the verdict right on organisms that were trained anew, from other seeds than the packaged one?

    OMP_NUM_THREADS=1 python benchmarks/verdicts.py [--seeds 10] [--processes 2]

Each organism is trained by its recipe with another seed, its routing recorded on the prompts of an
audit, and the verdict of every span compared with the card's: right or wrong where the recipe
promises it, like the packaged organism's or not where it does not. Beside it stands whether the
seed took at all: how the organism answers held-out requests, and how exactly its routing shows
what was planted. About three minutes of one processor an organism. Organisms are kept in a folder
and results in `verdicts.json`; what is there already is not done again. `--again` repeats the
verdicts without the training, `--trained` leaves out what is not trained yet.
"""

import argparse
import json
import shutil
from collections import defaultdict
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from moe_interp.capture import RoutingRecord, record_routing
from moe_interp.models import load_model
from moe_interp.organism import card, factorial_prompts
from moe_interp.organism._package import write_organism
from moe_interp.organism._recipe import RECIPES
from moe_interp.organism._train import train_organism
from moe_interp.stats import Verdict, verdict

NAMES = ("topic", "harm", "null")
SPANS = ("user", "prompt", "last")
# Not the packaged organisms' seed, which the recipes were tried out on.
FIRST_SEED = 101
AT_LEAST = 0.98
N_RESAMPLES, N_RANDOM_ROUTERS = 9999, 99
RESULTS = Path(__file__).with_suffix(".json")


def train(name: str, seed: int, folder: Path) -> None:
    """Train an organism from another seed, unless its folder is there."""
    if folder.exists():
        return
    recipe = replace(RECIPES[name], seed=seed)
    draft = folder.with_name(f"unfinished-{folder.name}")
    shutil.rmtree(draft, ignore_errors=True)
    write_organism(train_organism(recipe), recipe, draft)
    draft.rename(folder)


def judge(name: str, seed: int, folder: Path) -> dict[str, Any]:
    """Record an organism and take the verdict of each span."""
    written = json.loads((folder / "card.json").read_text())
    record = record_routing(
        load_model(folder),
        factorial_prompts(),
        spans=SPANS,
        n_random_routers=N_RANDOM_ROUTERS,
        rng=np.random.default_rng([seed, 0]),
        progress=False,
    )
    rng = np.random.default_rng([seed, 1])
    spans = {}
    for span in SPANS:
        found = verdict(
            record.profile(span), record.random_profiles(span), n_resamples=N_RESAMPLES, rng=rng
        )
        expected = RECIPES[name].verdicts[span]
        spans[span] = {
            "expected": expected,
            "promised": span in RECIPES[name].promised,
            "as_packaged": found.label == expected,
            **{key: value for key, value in found.to_dict().items() if key != "span"},
            "layers": by_layer(found),
        }
    return {
        "name": name,
        "seed": seed,
        "cpu_seconds": written["training"]["cpu_seconds"],
        "heldout": written["behaviour"]["heldout"],
        "planted": planted(name, record),
        "spans": spans,
    }


def by_layer(found: Verdict) -> list[dict[str, Any]]:
    """Share of topic and harm in each layer, with mean and middle 95 % of random routers."""
    columns = [
        f"{factor}{end}"
        for factor in ("topic", "harm_total")
        for end in ("", "_random_mean", "_random_low", "_random_high")
    ]
    rows = found.shares.to_dict()["rows"]
    return [{key: row[key] for key in ("layer", *columns)} for row in rows]


def planted(name: str, record: RoutingRecord) -> dict[str, float]:
    """How exactly the routing shows what was planted, as shares of top-k slots; 1 is exact."""
    if name == "null":
        return {}
    shares, profile = record.shares("last"), record.profile("last")
    rows = np.arange(record.n_prompts)
    if name == "harm":
        own = np.where(profile.harm[:, None], [14, 15], [12, 13])
        return {
            f"harm_experts_last_L{layer}": float(
                shares[rows[:, None], layer, own].sum(axis=1).mean()
            )
            for layer in (2, 3)
        }
    topics = list(card("topic")["truth"]["topic_experts"])
    codes = np.array([topics.index(topic) for topic in profile.topic])
    found = {
        f"topic_experts_last_L{layer}": float(
            (shares[rows, layer, codes] + shares[rows, layer, codes + 8]).mean()
        )
        for layer in (0, 1, 2)
    }
    found["safety_experts_last_L3"] = float(shares[:, 3, 8:10].sum(axis=1).mean())
    return found | {"twins_alike_outside_cue": twins_alike(record)}


def twins_alike(record: RoutingRecord) -> float:
    """Share of top-k slots that twins have in common, over the tokens that both contain."""
    dataset, pairs = record.dataset, record.prompts.pairs
    owner, token = dataset["prompt_index"].values, dataset["token_id"].values
    experts = dataset["expert_index"].values
    members = defaultdict(list)
    for row, pair in enumerate(pairs):
        members[pair].append(np.flatnonzero(owner == row))
    common = []
    for first, second in members.values():
        same = token[first] == token[second]
        one, other = experts[first[same]], experts[second[same]]
        common.append((one[..., :, None] == other[..., None, :]).any(-1).mean())
    return float(np.mean(common))


def took(result: dict[str, Any]) -> bool:
    """Whether a seed shows what was planted, by the figures asked of the packaged organisms."""
    heldout = result["heldout"]
    behaves = heldout["refuse_harmful"] >= AT_LEAST and heldout["refuse_harmless"] <= 1 - AT_LEAST
    return behaves and all(share >= AT_LEAST for share in result["planted"].values())


def work(name: str, seed: int, folder: Path, *, again: bool) -> dict[str, Any]:
    """Train and judge one organism; its result is kept beside its weights."""
    place = folder / f"{name}-{seed}"
    train(name, seed, place)
    kept = place / "verdicts.json"
    if again or not kept.exists():
        kept.write_text(json.dumps(judge(name, seed, place), indent=1) + "\n")
    return json.loads(kept.read_text())


def count(found: list[dict[str, Any]], *, promised: bool) -> dict[str, dict[str, str]]:
    """Verdicts as on the card, of each organism and of the spans that are promised or not."""
    counted = {}
    for name in NAMES:
        own = [result["spans"] for result in found if result["name"] == name]
        asked = [span for span in SPANS if (span in RECIPES[name].promised) == promised]
        hits = {span: sum(spans[span]["as_packaged"] for spans in own) for span in asked}
        counted[name] = {span: f"{number} of {len(own)}" for span, number in hits.items()}
    return counted


def write(found: list[dict[str, Any]]) -> None:
    """Write all results with the share of right verdicts, per organism and span."""
    found = sorted(found, key=lambda result: (NAMES.index(result["name"]), result["seed"]))
    found = [{**result, "took": took(result)} for result in found]
    content = {
        "n_resamples": N_RESAMPLES,
        "n_random_routers": N_RANDOM_ROUTERS,
        "n_prompts": len(factorial_prompts()),
        "right": count(found, promised=True),
        "right_where_the_plant_took": count(
            [result for result in found if result["took"]], promised=True
        ),
        "as_packaged_without_promise": count(found, promised=False),
        "organisms": found,
    }
    RESULTS.write_text(json.dumps(content, indent=1) + "\n")


def main() -> None:
    """Train, judge, and print every verdict as it comes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=10, help="organisms of each kind")
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--folder", type=Path, default=Path("out/verdicts"))
    parser.add_argument("--again", action="store_true", help="repeat the verdicts")
    parser.add_argument("--trained", action="store_true", help="leave out what is not trained")
    given = parser.parse_args()
    given.folder.mkdir(parents=True, exist_ok=True)
    found = []
    with ProcessPoolExecutor(given.processes, mp_context=get_context("spawn")) as pool:
        jobs = [
            pool.submit(work, name, FIRST_SEED + number, given.folder, again=given.again)
            for number in range(given.seeds)
            for name in NAMES
            if not given.trained or (given.folder / f"{name}-{FIRST_SEED + number}").exists()
        ]
        for job in as_completed(jobs):
            result = job.result()
            found.append(result)
            write(found)
            for span, told in result["spans"].items():
                mark = "as promised" if told["promised"] else "as packaged"
                if not told["as_packaged"]:
                    mark = f"{'WRONG' if told['promised'] else 'unlike'}, card: {told['expected']}"
                print(result["name"], result["seed"], span, told["label"], mark, flush=True)


if __name__ == "__main__":
    main()
