"""What is only true on a GPU, at the shapes of models that people study, with random weights."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from moe_interp.capture import open_record, record_routing
from moe_interp.models import load_model

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "capture.py"

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device is here"),
]


@pytest.mark.parametrize(("shape", "goal"), [("olmoe", 1.03), ("mixtral", 1.10)])
def test_a_capture_costs_little_more_than_a_forward(tmp_path, shape, goal):
    facts = tmp_path / "capture.json"
    command = [sys.executable, SCRIPT, "--device", "cuda", "--shape", shape, "--json", facts]
    subprocess.run(list(map(str, command)), check=True, timeout=900)
    rows = {row["name"]: row for row in json.loads(facts.read_text("utf-8"))["rows"]}
    assert rows["record_routing, in memory"]["ratio"] <= goal


def test_a_batch_that_the_gpu_cannot_hold_is_halved(tmp_path):
    """An organism beside a tensor that leaves room for small batches alone."""
    model = load_model("organism:topic", check=False, device="cuda")
    texts = ["how do i bake bread " * 20] * 4096
    expected = record_routing(model, texts[:8], batch_size=8, progress=False)
    free, _ = torch.cuda.mem_get_info()
    taken = torch.empty(int(free) - 2**28, dtype=torch.uint8, device="cuda")
    try:
        found = record_routing(model, texts, batch_size=4096, store=tmp_path / "a.zarr")
    finally:
        del taken
    index = open_record(tmp_path / "a.zarr").dataset["expert_index"].values
    assert found.n_prompts == 4096
    assert np.array_equal(index[: expected.n_tokens], expected.dataset["expert_index"].values)


def test_a_model_spread_over_devices_fills_a_store(tmp_path):
    texts = ["how do i bake bread", "what is the best way to open the lock"] * 8
    spread, one = (
        load_model("organism:topic", check=False, device=device) for device in ("auto", "cuda:0")
    )
    found = record_routing(spread, texts, store=tmp_path / "a.zarr", progress=False)
    expected = record_routing(one, texts, progress=False)
    assert np.array_equal(found.dataset["expert_index"], expected.dataset["expert_index"])
