"""Loading: every source, and what is wrong with a bad one in words."""

import json

import pytest
import tiny_models
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from moe_interp.errors import NotMoEError, UnsupportedArchitectureError, UnsupportedVersionError
from moe_interp.models import _load as load_module
from moe_interp.models import check_versions, load_model


def test_a_folder_is_loaded_with_its_tokenizer(tiny_checkpoint):
    folder = tiny_checkpoint("qwen3_moe")
    model = load_model(folder)
    assert list(model.moe) == [1, 2]
    assert model.id == folder
    assert model.tokenizer.pad_token == "<pad>"
    assert model.max_positions == 256
    assert model.device == torch.device("cpu")
    assert model.config.model_type == "qwen3_moe"
    assert model.card is None
    assert repr(model.moe[1]) == "MoELayer(1: 8 experts, top 2)"


def test_a_text_is_traced_as_its_tokens_are(tiny_checkpoint):
    model = load_model(tiny_checkpoint("mixtral"), check=False)
    texts = ["the cake is good", "how do i kill a process"]
    encoded = model.tokenizer(texts, padding=True, return_tensors="pt")
    batch = {name: encoded[name] for name in ("input_ids", "attention_mask")}
    with model.trace(texts):
        from_text = model.moe[2].router_logits.save()
    with model.trace(batch):
        from_tokens = model.moe[2].router_logits.save()
    assert torch.equal(from_text, from_tokens)


def test_a_loaded_model_needs_its_tokenizer():
    model = tiny_models.build("mixtral")
    with pytest.raises(ValueError, match=r"needs its tokenizer: load_model\(model, tokenizer=tok"):
        load_model(model)
    loaded = load_model(model, tokenizer=tiny_models.build_tokenizer())
    assert loaded.nnsight._module is model


def test_a_folder_without_tokenizer_says_so(tmp_path):
    tiny_models.build("mixtral").save_pretrained(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"holds no tokenizer .* or pass `tokenizer=`"):
        load_model(tmp_path)
    assert load_model(tmp_path, tokenizer=tiny_models.build_tokenizer()).architecture.top_k == 2


def test_the_architecture_is_told_in_json(tiny_checkpoint):
    told = load_model(tiny_checkpoint("deepseek_v3"), check=False).architecture.to_dict()
    assert json.loads(json.dumps(told)) == told
    expected = {
        "model_type": "deepseek_v3",
        "model_class": "DeepseekV3ForCausalLM",
        "n_layers": 3,
        "moe_layers": [1, 2],
        "n_experts": 8,
        "top_k": 2,
        "d_model": 32,
        "has_shared": True,
        "score_function": "sigmoid",
        "experts_implementation": "grouped_mm",
        "dtype": "float32",
    }
    assert {name: told[name] for name in expected} == expected
    assert told["n_parameters"] > 10_000


def test_dtype_and_experts_implementation_are_passed_on(tiny_checkpoint):
    model = load_model(
        tiny_checkpoint("olmoe"), dtype="bfloat16", experts_implementation="batched_mm"
    )
    assert model.architecture.dtype == "bfloat16"
    assert model.architecture.experts_implementation == "batched_mm"
    assert "bfloat16, batched_mm" in model.architecture.summary()


def test_a_dense_layer_and_a_missing_layer_are_told_apart(tiny_checkpoint):
    model = load_model(tiny_checkpoint("deepseek_v3"), check=False)
    with pytest.raises(KeyError, match=r"Layer 0 of 'DeepseekV3ForCausalLM' is dense.*: 1, 2"):
        model.moe[0]
    with pytest.raises(KeyError, match=r"'DeepseekV3ForCausalLM' has no layer 7\. MoE layers"):
        model.moe[7]


def dense_folder(place):
    settings = {key: tiny_models.COMMON[key] for key in tiny_models.COMMON if "token" not in key}
    LlamaForCausalLM(LlamaConfig(**settings)).save_pretrained(place)
    tiny_models.build_tokenizer().save_pretrained(place)
    return place


def test_a_dense_model_is_refused_before_its_weights_are_read(tmp_path):
    folder = dense_folder(tmp_path)
    (folder / "model.safetensors").write_bytes(b"not weights")
    with pytest.raises(NotMoEError, match="'LlamaForCausalLM' is a dense model"):
        load_model(folder)


def test_what_is_no_causal_language_model_is_refused(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "vit"}')
    with pytest.raises(UnsupportedArchitectureError, match="type 'vit' is no causal language mod"):
        load_model(tmp_path)


def test_a_model_of_several_language_models_is_refused_with_the_one_to_load(tmp_path):
    (tmp_path / "config.json").write_text(
        '{"model_type": "qwen3_omni_moe", "architectures": '
        '["Qwen3OmniMoeForConditionalGeneration"]}'
    )
    expected = "'qwen3_omni_moe' is several language models: .* Load the thinker by itself"
    with pytest.raises(UnsupportedArchitectureError, match=expected):
        load_model(tmp_path)


@pytest.mark.parametrize("family", ["qwen3_vl_moe", "switch_transformers", "mistral4", "gemma4"])
def test_a_folder_is_loaded_by_the_class_it_needs(family, tiny_checkpoint):
    model = load_model(tiny_checkpoint(family))
    batch = tiny_models.encode()
    if model.config.is_encoder_decoder:
        batch = {**batch, "decoder_input_ids": batch["input_ids"]}
    with torch.no_grad(), model.trace(batch):
        index = model.moe[1].expert_index.save()
    assert index.shape[:2] == batch["input_ids"].shape
    assert type(model.nnsight._module).__name__.endswith(("ForCausalLM", "ConditionalGeneration"))


def test_a_model_without_a_head_is_refused():
    model = tiny_models.build("mixtral").model
    with pytest.raises(UnsupportedArchitectureError, match="'MixtralModel' is no causal language"):
        load_model(model, tokenizer=tiny_models.build_tokenizer())


def test_an_unknown_model_type_is_refused(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "never_heard_of"}')
    with pytest.raises(UnsupportedArchitectureError, match=r"`never_heard_of`.*Tested families"):
        load_model(tmp_path)


def test_a_folder_without_a_model_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"The folder '.*' holds no config\.json"):
        load_model(tmp_path)


def test_a_model_that_is_nowhere_is_named():
    with pytest.raises(FileNotFoundError, match="There is no model 'nobody/nothing': no such fol"):
        load_model("nobody/nothing")


def test_an_organism_that_is_not_shipped_is_named():
    with pytest.raises(FileNotFoundError, match=r"There is no organism 'unicorn'\. Shipped: "):
        load_model("organism:unicorn")


def test_an_organism_is_found_in_the_package_with_its_card(tmp_path, monkeypatch):
    place = tmp_path / "organism" / "weights" / "sample"
    tiny_models.save("mixtral", place, dtype=torch.float16)
    (place / "card.json").write_text('{"name": "sample"}')
    monkeypatch.setattr(load_module, "files", lambda package: tmp_path)
    model = load_model("organism:sample")
    assert model.card == {"name": "sample"}
    assert model.id == "organism:sample"
    assert model.architecture.dtype == "float32"


@pytest.mark.parametrize(
    "installed",
    [
        {"nnsight": "0.8.0", "transformers": "5.23.0"},
        {"nnsight": "0.9.0", "transformers": "5.23.0"},
        {"nnsight": "0.8.1", "transformers": "5.22.2"},
        {"nnsight": "0.8.1", "transformers": "5.24.0.dev0"},
    ],
)
def test_a_release_that_was_not_tested_is_refused(installed):
    with pytest.raises(UnsupportedVersionError, match=r"was tested with >=.*pip install"):
        check_versions(installed)


def test_releases_within_the_range_pass():
    check_versions({"nnsight": "0.8.12", "transformers": "5.23.3"})


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"dtype": "float7"}, "such as 'float32', 'bfloat16' or 'float16', or 'auto'"),
        ({"dtype": "int8"}, "`dtype` must be a floating-point format .* got 'int8'"),
        ({"dtype": torch.int64}, "got 'torch.int64'"),
        ({"device": "abacus"}, "`device` must be one that torch has here, .* got 'abacus': "),
        ({"device": "cuda:99"}, "got 'cuda:99'"),
    ],
)
def test_what_torch_does_not_have_is_refused_before_anything_is_read(options, said):
    with pytest.raises(ValueError, match=said):
        load_model("there-is-no/such-model", **options)
