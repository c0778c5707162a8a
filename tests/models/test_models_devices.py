"""Models that accelerate spreads over devices, and models that are split over processes."""

import os
import subprocess
import sys
from pathlib import Path

import accelerate
import numpy as np
import pytest
import torch
from tiny_models import build_tokenizer
from zoo import build

import moe_interp as mi
from moe_interp.errors import MissingPackageError
from moe_interp.models import load_model

TEXTS = ["how do i bake bread", "how do i open the lock to start an attack ?"]


def test_a_model_spread_over_devices_records_the_same(tmp_path):
    spread, plain = (
        load_model("organism:topic", device=device, check=device == "auto")
        for device in ("auto", "cpu")
    )
    found = mi.record_routing(spread, TEXTS, store=tmp_path / "a.zarr", progress=False)
    expected = mi.record_routing(plain, TEXTS, progress=False)
    for name in ("expert_index", "routing_weights", "router_logits"):
        assert np.array_equal(found.dataset[name], expected.dataset[name]), name


@pytest.mark.parametrize("family", ["mixtral", "qwen2_moe", "deepseek_v3", "gpt_oss"])
def test_hooks_of_accelerate_itself_are_passed_through(family):
    model, plain = build(family), build(family)
    n_layers = model.config.num_hidden_layers
    # On one device accelerate leaves its hooks out unless it is told to put them everywhere.
    places = {"model.embed_tokens": "cpu", "model.norm": "cpu", "lm_head": "cpu"}
    places |= {f"model.layers.{layer}": "cpu" for layer in range(n_layers)}
    if hasattr(model.model, "rotary_emb"):
        places["model.rotary_emb"] = "cpu"
    model = accelerate.dispatch_model(model, places, main_device="cpu", force_hooks=True)
    assert hasattr(model.model.layers[0], "_hf_hook")
    ids = torch.arange(20, 32).reshape(2, 6)
    found, expected = (
        load_model(one, tokenizer=build_tokenizer()).run_with_cache(ids)[1]
        for one in (model, plain)
    )
    assert set(found) == set(expected)
    for name, value in expected.items():
        assert torch.equal(found[name], value), name


def test_without_accelerate_it_is_told_how_to_get_it(monkeypatch):
    monkeypatch.setattr("moe_interp.models._load.find_spec", lambda name: None)
    told = r"`device='auto'` needs accelerate. Install it: pip install 'moe-interp\[devices\]'"
    with pytest.raises(MissingPackageError, match=told):
        load_model("organism:topic", device="auto")


SPLIT = """
import sys
from transformers import AutoModelForCausalLM, AutoTokenizer
from moe_interp.errors import UnsupportedArchitectureError
from moe_interp.models import load_model

model = AutoModelForCausalLM.from_pretrained(sys.argv[1], tp_plan="auto")
kinds = {type(weight).__name__ for weight in model.model.layers[0].mlp.experts.parameters()}
assert kinds == {"DTensor"}, kinds
try:
    load_model(model, tokenizer=AutoTokenizer.from_pretrained(sys.argv[1]))
except UnsupportedArchitectureError as error:
    print(f"refused: {error}")
"""


@pytest.mark.long
def test_a_model_that_transformers_splits_over_two_processes_is_refused(tmp_path):
    model = load_model("organism:topic", check=False)
    model.nnsight._module.save_pretrained(tmp_path / "model")
    model.tokenizer.save_pretrained(tmp_path / "model")
    script = tmp_path / "split.py"
    script.write_text(SPLIT, encoding="utf-8")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", "2", script, tmp_path / "model"]
    root = Path(mi.__file__).parents[1]
    done = subprocess.run(
        list(map(str, command)),
        env={**os.environ, "PYTHONPATH": str(root), "GLOO_SOCKET_IFNAME": "lo"},
        check=False,
        capture_output=True,
        text=True,
        timeout=300,
    )
    told = [line for line in done.stdout.splitlines() if line.startswith("refused: ")]
    assert len(told) == 2, done.stderr
    for line in told:
        assert "is spread over processes by tensor or expert parallelism" in line
        assert "without `tp_plan` and `distributed_config`" in line
