"""What the pages weigh and how long they take to be drawn, against raw circuitsvis.

    python benchmarks/report.py [--repeats 3]

One browser draws every page from a file, without a network, in turn; times are medians of the wall
clock from opening the file until the tokens stand there, and from selecting another expert until
the colours have changed. Raw circuitsvis is its view with selectors of layer and neuron, with the
script of its wheel in the file, for it draws nothing offline otherwise.
"""

import argparse
import shutil
import statistics
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import circuitsvis
import numpy as np
import xarray as xr
from playwright.sync_api import Page, sync_playwright

from moe_interp.viz import show_tokens, write_report

SHAPES = ((16, 64), (48, 128))
N_PROMPTS, N_TOKENS, TOP_K = 6, 100, 8
TOKENS = "document.querySelectorAll('.colored-tokens span > span')"
COLOURS = f"[...{TOKENS}].map((one) => getComputedStyle(one).backgroundColor).join()"


def make_record(n_layers: int, n_experts: int) -> Any:  # noqa: ANN401
    """Make up the routing of six prompts of a hundred tokens."""
    rng = np.random.default_rng(0)
    n = N_PROMPTS * N_TOKENS
    index = rng.random((n, n_layers, n_experts)).argsort(-1)[..., :TOP_K]
    prompt = {
        "text": "how do i open this lock",
        "topic": "locks",
        "pair": "",
    }
    dataset = xr.Dataset(
        {
            "expert_index": (("token", "layer", "top_k"), index),
            "routing_weights": (("token", "layer", "top_k"), rng.random(index.shape)),
        },
        coords={
            "layer": np.arange(n_layers),
            "prompt_index": ("token", np.repeat(np.arange(N_PROMPTS), N_TOKENS)),
            "token_text": (
                "token",
                rng.choice(["▁how", "▁do", "▁i", "<bos>", "?"], n).astype(object),
            ),
            "harm": ("prompt", np.arange(N_PROMPTS) % 2 == 1),
            "id": ("prompt", np.array([f"p{i}" for i in range(N_PROMPTS)], dtype=object)),
        }
        | {name: ("prompt", np.array([v] * N_PROMPTS, dtype=object)) for name, v in prompt.items()},
    )
    return SimpleNamespace(dataset=dataset, n_experts=n_experts)


def make_results(n_layers: int, n_experts: int) -> dict[str, Any]:
    """Make up an audit's numbers of every expert."""
    rng = np.random.default_rng(1)
    numbers = ("effect", "low", "high", "attribution", "ablation_effect", "p", "p_adjusted", "q")
    numbers += ("selection_frequency", "null_quantile")
    experts = [
        {"layer": layer, "expert": expert, "selected": expert == 3}
        | dict(zip(numbers, rng.random(len(numbers)).tolist(), strict=True))
        for layer in range(n_layers)
        for expert in range(n_experts)
    ]
    model = {"id": "made up", "n_experts": n_experts, "top_k": TOP_K}
    return {
        "schema_version": 1,
        "model": model | {"moe_layers": list(range(n_layers))},
        "prompts": {"n": N_PROMPTS, "topics": ["locks"]},
        "spans": ["user"],
        "primary_span": "user",
        "verdict": "undetermined",
        "experts": experts,
    }


def raw_page(record: Any) -> str:  # noqa: ANN401
    """Give circuitsvis' own view of the same weights, with its script inside."""
    dataset = record.dataset
    weights = np.zeros((dataset.sizes["token"], dataset.sizes["layer"], record.n_experts))
    index, values = dataset["expert_index"].values, dataset["routing_weights"].values
    np.put_along_axis(weights, index, values, axis=-1)
    texts = dataset["token_text"].values.tolist()
    cuts = [slice(i * N_TOKENS, (i + 1) * N_TOKENS) for i in range(N_PROMPTS)]
    drawn = circuitsvis.activations.text_neuron_activations(
        [texts[cut] for cut in cuts],
        [weights[cut] for cut in cuts],
        second_dimension_name="Expert",
    )
    return f"<!doctype html><meta charset='utf-8'><body>{drawn.local_src}</body>"


def timed(page: Page, path: Path, select: str) -> tuple[float, float]:
    """Open a page and select another expert; seconds until each is drawn."""
    start = time.perf_counter()
    page.goto(path.as_uri())
    page.wait_for_function(f"() => {TOKENS}.length >= {N_TOKENS}")
    if select == "#s-expert":
        page.wait_for_selector("body[data-ready]", state="attached")
    opened = time.perf_counter() - start
    before = page.evaluate(COLOURS)
    start = time.perf_counter()
    page.select_option(select, index=7)
    page.wait_for_function(f"(old) => {COLOURS} !== old", arg=before)
    return opened, time.perf_counter() - start


def main() -> None:
    """Print one line for each page and shape."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=3)
    repeats = parser.parse_args().repeats
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox", "--disable-gpu"]
        )
        for shape in SHAPES:
            record, place = make_record(*shape), Path(folder)
            files = {
                "report": (place / "report.html", "#s-expert"),
                "tokens with selectors": (place / "tokens.html", "#s-expert"),
                "raw circuitsvis": (place / "raw.html", "#neuron-selector"),
            }
            write_report(make_results(*shape), record, files["report"][0], force=True)
            show_tokens(record).save(files["tokens with selectors"][0], force=True)
            files["raw circuitsvis"][0].write_text(raw_page(record), encoding="utf-8")
            taken: dict[str, list[tuple[float, float]]] = {name: [] for name in files}
            for _ in range(repeats):
                for name, (path, select) in files.items():
                    page = browser.new_context(offline=True).new_page()
                    page.set_default_timeout(120_000)
                    taken[name].append(timed(page, path, select))
                    page.context.close()
            for name, (path, _) in files.items():
                opened, switched = (
                    statistics.median(column) for column in zip(*taken[name], strict=True)
                )
                print(
                    f"{shape[0]} × {shape[1]} | {name} | {path.stat().st_size / 1e6:.2f} MB | "
                    f"drawn {opened:.2f} s | switched {switched:.2f} s",
                    flush=True,
                )
        browser.close()


if __name__ == "__main__":
    main()
