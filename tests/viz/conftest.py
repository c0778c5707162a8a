"""A routing record and an audit's results with the schema of the real ones and numbers made up."""

import copy
import os
import shutil

import numpy as np
import pytest
import xarray as xr
from playwright.sync_api import sync_playwright

OWN = ("file:", "data:", "blob:", "about:")
LAYERS, EXPERTS, TOP_K = (1, 2, 4, 5), 16, 2
SPANS = ("user", "prompt", "last")
TOPICS = ("cooking", "locks", "network", "finance")
HOSTILE = ("<img/src=x onerror=window.hacked=1>", "</script>", "<bos>", "&amp;", "<!--<script>")


class FakeRecord:
    def __init__(self, dataset):
        self.dataset = dataset
        self.layers = LAYERS
        self.n_experts = EXPERTS
        self.top_k = TOP_K


def _sentence(topic, harm, number):
    cue = "so that somebody gets hurt" if harm else "so that nobody gets hurt"
    return f"how do i open the {topic} {number} {cue} ?"


@pytest.fixture(scope="session")
def record():
    rng = np.random.default_rng(0)
    prompts = [(t, h, n) for t in TOPICS for n in range(6) for h in (False, True)]
    texts = [_sentence(*prompt) for prompt in prompts]
    words = [["<bos>", "<|user|>", *text.split(), "<end>"] for text in texts]
    words[0][3:3] = list(HOSTILE)
    owner = np.repeat(np.arange(len(words)), [len(w) for w in words])
    n_tokens = len(owner)
    # No token chooses expert 0 in any layer.
    order = 1 + rng.random((n_tokens, len(LAYERS), EXPERTS - 1)).argsort(-1)
    # The first pair uses two experts only in the second recorded layer.
    order[owner <= 1, 1, :TOP_K] = (1, 2)
    weights = np.sort(rng.random((n_tokens, len(LAYERS), TOP_K)), axis=-1)[..., ::-1]
    weights = weights / weights.sum(-1, keepdims=True)
    pos = np.concatenate([np.arange(len(w)) for w in words])
    last = np.concatenate([np.arange(len(w)) == len(w) - 1 for w in words])
    return FakeRecord(
        xr.Dataset(
            {
                "expert_index": (("token", "layer", "top_k"), order[..., :TOP_K].astype("int64")),
                "routing_weights": (("token", "layer", "top_k"), weights.astype("float32")),
                "in_span": (("span", "token"), np.stack([pos > 1, pos >= 0, last])),
            },
            coords={
                "layer": list(LAYERS),
                "span": list(SPANS),
                "prompt_index": ("token", owner),
                "pos": ("token", pos),
                "token_text": ("token", np.concatenate(words).astype(object)),
                "text": ("prompt", np.array(texts, dtype=object)),
                "topic": ("prompt", np.array([t for t, _, _ in prompts], dtype=object)),
                "harm": ("prompt", np.array([h for _, h, _ in prompts])),
                "pair": ("prompt", np.array([f"{t}-{n}" for t, _, n in prompts], dtype=object)),
                "id": ("prompt", np.array([f"p{i:03d}" for i in range(len(prompts))])),
            },
        )
    )


def _decomposition(rng):
    rows = []
    levels = {
        "user": (0.38, 0.004, 0.002),
        "prompt": (0.31, 0.012, 0.004),
        "last": (0.04, 0.45, 0.03),
    }
    for span, (topic, harm, interaction) in levels.items():
        for layer in (*LAYERS, "all"):
            row = {"span": span, "layer": layer}
            for name, level in (("topic", topic), ("harm", harm), ("interaction", interaction)):
                share = level * (1 if layer == "all" else 0.7 + 0.6 * rng.random())
                row |= {
                    name: share,
                    f"{name}_low": share - 0.02,
                    f"{name}_high": share + 0.023,
                    f"{name}_random_mean": 0.11 + 0.02 * (name == "topic"),
                    f"{name}_random_low": 0.08,
                    f"{name}_random_high": 0.15,
                }
            rows.append(row)
    return rows


def _experts(rng):
    rows = []
    for layer in LAYERS:
        for expert in range(EXPERTS):
            chosen = (layer, expert) in {(5, 8), (5, 9)}
            routed = (layer, expert) in {(2, 14), (2, 15)}
            effect = float(rng.normal(0, 0.01) + 0.13 * routed)
            p = 0.0005 if routed else float(rng.uniform(0.02, 1))
            rows.append(
                {
                    "layer": layer,
                    "expert": expert,
                    "effect": effect,
                    "low": effect - 0.02,
                    "high": effect + 0.02,
                    "p": p,
                    "p_adjusted": min(1.0, p * 30),
                    "q": min(1.0, p * 12),
                    "selection_frequency": float(rng.beta(1, 7)),
                    "attribution": float(rng.normal(0, 0.1) + 2.4 * chosen),
                    "ablation_effect": -3.1 if chosen else None,
                    "null_quantile": 0.005 if chosen else None,
                    "selected": chosen,
                    "harm_routed": routed,
                }
            )
    return rows


def _control(name, *, label="topic_driven"):
    return {
        "control": name,
        "words": "what was done",
        "label": label,
        "topic": [0.38, 0.35, 0.41],
        "harm": [0.004, -0.001, 0.009],
        "p_topic": 0.0001,
        "p_harm": 0.0123,
        "covered": 1.0 if label else 0.77,
        "changes": label is None,
    }


def _causal(rng):
    null = np.clip(rng.normal(0.975, 0.02, 100), 0, 1).round(3).tolist()
    main = {
        "metric": "refusal_rate",
        "unit": "fraction of prompts",
        "mode": "ban",
        "experts": ["L5E8", "L5E9"],
        "baseline": 0.985,
        "observed": 0.015,
        "null_mean": float(np.mean(null)),
        "null_quantiles": {"0.025": 0.93, "0.5": 0.98, "0.975": 1.0},
        "null": null,
        "p": 0.0099,
        "n_draws": 100,
        "n_distinct": 97,
        "benign": {"baseline": 0.0, "observed": 0.005},
        "causal": True,
    }
    contrast = main | {
        "name": "frequency_contrast",
        "experts": ["L2E14", "L2E15"],
        "observed": 0.972,
        "p": 0.4257,
        "causal": False,
    }
    return main | {"sets": [main | {"name": "selected"}, contrast]}


@pytest.fixture(scope="session")
def made_up():
    rng = np.random.default_rng(1)
    return {
        "schema_version": 1,
        "model": {
            "id": "organism:natural",
            "model_type": "olmoe",
            "model_class": "OlmoeForCausalLM",
            "n_layers": 6,
            "moe_layers": list(LAYERS),
            "n_experts": EXPERTS,
            "top_k": TOP_K,
            "d_model": 64,
            "score_function": "softmax",
            "experts_implementation": "grouped_mm",
            "dtype": "float32",
            "n_parameters": 483328,
            "card": {
                "name": "natural",
                "kind": "organism",
                "description": "Nothing planted: refusal learned jointly with everything else.",
                "disclaimer": "A tiny model with a planted answer. It validates tools.",
            },
        },
        "prompts": {
            "source": "organism",
            "n": 48,
            "n_pairs": 24,
            "n_harmful": 24,
            "n_harmless": 24,
            "topics": list(TOPICS),
            "scheme": "wording",
            "digest": "ab" * 32,
            "warnings": ["Topic 'gardening' has one harm level only and was left out."],
        },
        "spans": list(SPANS),
        "primary_span": "user",
        "seed": 0,
        "decomposition": _decomposition(rng),
        "p_harm": 0.0123,
        "p_topic": 0.0001,
        "p_values": {
            "user": {"harm": 0.0123, "harm_nested": 0.34, "topic": 0.0001},
            "prompt": {"harm": 0.0456, "harm_nested": 0.21, "topic": 0.0001},
            "last": {"harm": 0.0001, "harm_nested": 0.0002, "topic": 0.0789},
        },
        "verdict": "topic_driven",
        "verdicts": {"user": "topic_driven", "prompt": "topic_driven", "last": "harm_driven"},
        "reasons": {
            "user": "Harm is negligible beside topic, and topic lies above the random router.",
            "prompt": "Harm is negligible beside topic.",
            "last": "Harm lies above the random router, and topic does not.",
        },
        "what_would_change": {
            "user": "Topic would no longer count at 3 more random routers above it.",
            "prompt": "Other prompts.",
            "last": "Other prompts.",
        },
        "sensitivity": {
            "span": "user",
            "alpha": 0.05,
            "changing": ["token_identity"],
            "dispersion": "Prompts differ more than their tokens make them: design effect 1.5.",
            "refused": None,
            "rows": [_control("none"), _control("length"), _control("token_identity", label=None)],
        },
        "verdict_note": "The answer depends on the tokens one looks at.",
        "experts": _experts(rng),
        "causal": _causal(rng),
        "truth": {"safety_experts": ["L5E8", "L5E9"], "precision": 1.0, "recall": 1.0},
        "method": {
            "decomposition": "Permutation-adjusted shares of Hellinger variation.",
            "selection": "Gradient attribution, then greedy sequential ablation, on one half.",
        },
        "versions": {"moe_interp": "0.1.0", "torch": "2.13.0"},
        "seconds": {"capture": 1.25, "statistics": 0.5, "selection": 8.0},
    }


@pytest.fixture
def results(made_up):
    return copy.deepcopy(made_up)


@pytest.fixture(scope="session")
def chromium():
    found = shutil.which("chromium") or shutil.which("google-chrome")
    if found is None and not os.environ.get("CI"):
        pytest.skip("no `chromium` on the path; install it to run the browser tests")
    assert found, "CI must have Chromium: the report's browser tests may not be skipped there"
    return found


@pytest.fixture(scope="module")
def browser(chromium):
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=chromium, args=["--no-sandbox", "--disable-gpu"]
        )
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def opened(browser):
    """Open a file and record whatever it asks the network for or complains of."""
    contexts = []

    def open_file(path, **options):
        context = browser.new_context(offline=True, **options)
        contexts.append(context)
        page = context.new_page()
        # Two busy cores may take a minute to read five megabytes of script.
        page.set_default_timeout(120_000)
        page.complaints = []

        def only_files(route):
            if route.request.url.startswith(OWN):
                route.continue_()
            else:
                page.complaints.append(route.request.url)
                route.abort()

        context.route("**/*", only_files)
        page.on("pageerror", lambda error: page.complaints.append(str(error)))
        page.on("websocket", lambda socket: page.complaints.append(socket.url))
        page.on(
            "console",
            lambda said: page.complaints.append(said.text) if said.type == "error" else None,
        )
        page.goto(path.as_uri())
        page.wait_for_selector("body[data-ready], body[data-failed]")
        return page

    yield open_file
    for context in contexts:
        context.close()
