"""Models whose weights are on a server: what is built here, and what is refused."""

from pathlib import Path

import numpy as np
import pytest
from hub_cache import keep

import moe_interp as mi
from moe_interp.errors import NotMoEError, UnsupportedOnServerError
from moe_interp.models._load import load_model
from moe_interp.scores._sweep import _weights

NOWHERE = "http://127.0.0.1:9"


@pytest.fixture
def cached(tiny_checkpoint, tmp_path, monkeypatch):
    keep(tmp_path, "tiny/mixtral", Path(tiny_checkpoint("mixtral")))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    return tmp_path


def test_no_weights_are_loaded_and_no_server_is_asked(cached, tiny_checkpoint):
    model = load_model("tiny/mixtral", remote=NOWHERE, check=False)
    assert all(weight.is_meta for weight in model.nnsight._module.parameters())
    here = load_model(tiny_checkpoint("mixtral"), check=False)
    assert model.sites == here.sites
    assert model.architecture.n_experts == here.architecture.n_experts
    assert model.device.type == "cpu"
    assert '"repo_id": "tiny/mixtral"' in model.connection.model_key
    assert model.connection.model_key.startswith("nnsight.modeling.transformers.")


def test_what_needs_weights_is_refused(cached):
    model = load_model("tiny/mixtral", remote=NOWHERE, check=False)
    with pytest.raises(
        UnsupportedOnServerError, match=r"Tuning needs the weights of 'tiny/mixtral'.*127.0.0.1:9"
    ):
        mi.tune_experts(model, "L0E0", mi.PromptSet([mi.Prompt("a", response="b")]), seed=0)
    with pytest.raises(UnsupportedOnServerError, match="The direction of a logit needs"):
        mi.logit_direction(model, ["the cake is good"], mi.LogitDifference(5, 6))
    assert _weights(model) == f"on {NOWHERE}"


def test_random_routers_are_named_by_their_source_alone(cached):
    from moe_interp.capture._routers import draw_routers
    from moe_interp.models._traced_record import drawn_routers

    model = load_model("tiny/mixtral", remote=NOWHERE, check=False)
    given = draw_routers(model, 3, np.random.default_rng(5))
    rng = np.random.default_rng(5)
    for layer in model.moe:
        assert set(given[layer]) == {"state", "shape"}
        expected = rng.standard_normal((3, 32, 8), dtype=np.float32).transpose(1, 0, 2)
        np.testing.assert_array_equal(drawn_routers(given[layer]).numpy(), expected)


def test_a_dense_model_is_refused_before_any_server_is_asked(cached, tmp_path):
    from transformers import LlamaConfig

    folder = tmp_path / "dense"
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2}
    LlamaConfig(num_hidden_layers=1, **sizes).save_pretrained(folder)
    keep(tmp_path, "tiny/dense", folder)
    with pytest.raises(NotMoEError):
        load_model("tiny/dense", remote=NOWHERE)


def test_only_models_of_the_hub_run_on_servers(tiny_checkpoint):
    for source in ("organism:topic", tiny_checkpoint("mixtral"), Path("x")):
        with pytest.raises(ValueError, match=r"named by their hub ids, got .*Leave `remote` out"):
            load_model(source, remote=NOWHERE)


@pytest.mark.parametrize(
    "option", [{"dtype": "float32"}, {"device": "cpu"}, {"experts_implementation": "eager"}]
)
def test_what_is_the_servers_business_is_refused(option):
    (name,) = option
    with pytest.raises(ValueError, match=f"`{name}` is set where the weights are loaded"):
        load_model("tiny/mixtral", remote=NOWHERE, **option)
