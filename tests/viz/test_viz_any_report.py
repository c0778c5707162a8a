"""Reports of any result and of lists of results: sections, sizes, refusals."""

import base64
import gzip
import json
import re
from types import SimpleNamespace

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import pytest
import xarray as xr

from moe_interp import ExpertSet
from moe_interp.errors import ResultError
from moe_interp.scores import Scores
from moe_interp.stats._transfer_calibration import Calibration
from moe_interp.viz import Part, plot_volcano, write_report
from moe_interp.viz._parts import part_of


def data_of(document):
    packed = re.search(r'id="data">(.*?)</script>', document)[1]
    return json.loads(gzip.decompress(base64.b64decode(packed)))


@pytest.fixture
def study(results):
    rows = [
        {"layer": row["layer"], "expert": row["expert"], "difference": row["effect"]}
        for row in results["experts"]
    ]
    return {
        "schema_version": 1,
        "study": "made2026",
        "paper": "Made (2026)",
        "model": results["model"],
        "answers": ["Two experts differ.", "Banning them does nothing."],
        "maps": {"Difference of use": "difference"},
        "truth": ["L5E8"],
        "arms": [results["causal"]["sets"][0]],
        "tables": {"experts": rows, "empty": []},
    }


def test_a_list_of_results_gets_a_section_each_in_order(results, study, record, tmp_path):
    scores = Scores.of_array("use", "share", np.ones((1, 3)), layers=(7,))
    listed = [results, study, scores, plot_volcano(results), "A remark.", Part("Own", ["Said."])]
    page = write_report(listed, record, tmp_path / "r.html").read_text(encoding="utf-8")
    heads = re.findall(r"<section[^>]*><h2>(.*?)</h2>", page)
    assert heads == [
        "Audit of organism:natural",
        "made2026 (Made (2026)) on organism:natural",
        "Scores",
        "−log₁₀ q-value by use by harmful minus harmless prompts",
        "The tokens an expert works on",
        "Note",
        "Own",
        "How to read this",
    ]
    data = data_of(page)
    assert len(data["figures"]) == page.count('id="figure-f')
    assert data["tokens"]["layers"] == [1, 2, 4, 5]
    assert "A tiny model with a planted answer." in page


def test_a_study_is_drawn_from_its_json(study, tmp_path):
    page = write_report(study, None, tmp_path / "r.html").read_text(encoding="utf-8")
    figures = list(data_of(page)["figures"].values())
    assert [figure["data"][0]["type"] for figure in figures] == ["heatmap", "histogram"]
    shown = figures[0]["data"][0]["z"]
    row = study["tables"]["experts"][17]
    assert shown[1][1] == pytest.approx(row["difference"], rel=1e-5)
    assert "Banning them does nothing." in page
    assert "The tokens an expert works on" not in page


def test_a_study_written_without_maps_is_drawn_by_its_numbers(study):
    del study["maps"]
    assert next(iter(part_of(study).figures)) == "Map of difference"


def test_results_are_known_by_their_fields():
    probability = np.linspace(0.05, 0.95, 40)
    found = Calibration("platt", 0.1, 0.2, probability > 0.5, probability)
    assert part_of(found).title == "Calibration"
    assert list(part_of(found).figures) == ["Probabilities beside what happened"]
    assert part_of(ExpertSet.parse("L1E2")).lines == ["1 expert in 1 layer"]
    table = pd.DataFrame({"layer": [1, 1], "expert": [0, 1], "use": [0.1, 0.2], "p": [0.1, 0.2]})
    assert list(part_of(table).figures) == ["Map of use"]
    doubled = pd.concat([table, table])
    assert not part_of(doubled).figures
    assert list(part_of(go.Figure()).figures) == ["figure"]


def test_an_audit_result_is_shown_as_its_results_are(results, record):
    wrapped = SimpleNamespace(results=results, record=record)
    assert part_of(wrapped).title == "Audit of organism:natural"


def test_what_cannot_be_shown_is_named(tmp_path):
    with pytest.raises(TypeError, match=r"summary\(\) or to_frame\(\).*got int\. Turn it into"):
        write_report([1], None, tmp_path / "r.html")
    with pytest.raises(ResultError, match="There are no results to report"):
        write_report([], None, tmp_path / "r.html")


def test_the_same_list_gives_the_same_bytes(results, study, record, tmp_path):
    pages = [
        write_report([results, study], record, tmp_path / f"{name}.html").read_bytes()
        for name in "ab"
    ]
    assert pages[0] == pages[1]


def big(n_layers, n_experts, n_tokens, top_k=8):
    """An audit and a record of a large model: shapes as they are, numbers made up."""
    rng = np.random.default_rng(0)
    words = [
        f"▁{word}"
        for word in [
            "how",
            "do",
            "i",
            "open",
            "the",
            "lock",
            "so",
            "that",
            "nobody",
            "gets",
            "hurt",
            "?",
        ]
    ]
    n_prompts = n_tokens // 25
    owner = np.repeat(np.arange(n_prompts), 25)
    index = rng.random((n_tokens, n_layers, n_experts)).argsort(-1)[..., :top_k]
    dataset = xr.Dataset(
        {
            "expert_index": (("token", "layer", "top_k"), index),
            "routing_weights": (("token", "layer", "top_k"), rng.random(index.shape)),
        },
        coords={
            "layer": np.arange(n_layers),
            "prompt_index": ("token", owner),
            "pos": ("token", np.tile(np.arange(25), n_prompts)),
            "token_text": ("token", rng.choice(words, n_tokens).astype(object)),
            "text": ("prompt", np.array(["how do i open"] * n_prompts, dtype=object)),
            "topic": ("prompt", np.array([f"topic {i % 6}" for i in range(n_prompts)], object)),
            "harm": ("prompt", np.arange(n_prompts) % 2 == 1),
            "pair": ("prompt", np.array([f"pair {i // 2}" for i in range(n_prompts)], object)),
            "id": ("prompt", np.array([f"p{i}" for i in range(n_prompts)], dtype=object)),
        },
    )
    columns = ("effect", "low", "high", "attribution", "ablation_effect", "statistic")
    experts = [
        {"layer": layer, "expert": expert, "selected": expert == 3, "harm_routed": False}
        | {name: float(rng.normal()) for name in columns}
        | {name: float(rng.random()) for name in ("p", "p_adjusted", "q")}
        | {"selection_frequency": float(rng.random()), "null_quantile": float(rng.random())}
        for layer in range(n_layers)
        for expert in range(n_experts)
    ]
    return experts, SimpleNamespace(dataset=dataset, n_experts=n_experts)


@pytest.mark.long
def test_a_large_model_fits_into_four_megabytes(results, tmp_path):
    experts, record = big(48, 128, 600)
    results["experts"] = experts
    results["model"] |= {"n_experts": 128, "moe_layers": list(range(48))}
    rows = [row for row in results["decomposition"] if row["layer"] == 1]
    layers = [row | {"layer": layer} for row in rows for layer in range(48)]
    results["decomposition"] = layers + [r for r in results["decomposition"] if r["layer"] == "all"]
    path = write_report(results, record, tmp_path / "big.html")
    pack = data_of(path.read_text(encoding="utf-8"))["tokens"]
    assert sum(len(prompt["tokens"]) for prompt in pack["prompts"]) == 600
    assert path.stat().st_size <= 4_000_000
