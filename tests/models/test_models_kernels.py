"""Kernels, quantised weights and number formats: what is read exactly, and what is refused."""

import re

import kernel_doubles
import nnsight
import pytest
import tiny_models
import torch
import zoo
from safetensors.torch import save_file
from tiny_models import FAMILIES, build, build_tokenizer, encode
from transformers import AutoModelForCausalLM, Mxfp4Config
from transformers.integrations.moe import ExpertsInterface, batched_mm_experts_forward
from transformers.quantizers.base import SequentialLlama4TextExperts

from moe_interp.errors import RoutingMismatchError, UnsupportedArchitectureError
from moe_interp.models import load_model
from moe_interp.models._kernels import refuse_kernels

# Largest distance of the contributions' sum from the experts' output, and of the rebuilt block from
# its output, relative to the largest entry. What a half-precision model writes is rounded once for
# each contribution and once for each partial sum; over all families the largest distances
# measured are 0.0082 of that in float64, and 0.09, 0.43 and 0.71 in the other formats.
ALLOWED = {
    torch.float64: 1e-12,
    torch.float32: 1e-6,
    torch.float16: 2e-3,
    torch.bfloat16: 1e-2,
}
IMPLEMENTATIONS = ("eager", "batched_mm", "grouped_mm")
FORMATS = [
    (implementation, dtype)
    for implementation in IMPLEMENTATIONS
    for dtype in ALLOWED
    # torch has no grouped product of float64 matrices.
    if (implementation, dtype) != ("grouped_mm", torch.float64)
]
# Widths that blocks of 16 or 32 weights fit into.
EVEN = {"intermediate_size": 64, "moe_intermediate_size": 64}


def plain_run(model, batch):
    """What the experts receive and return in a plain forward, by PyTorch's own hooks."""
    seen, hooks = {}, []
    for path, module in model.named_modules():
        if path.endswith(".experts"):
            layer = int(re.search(r"\.(\d+)\.", path)[1])

            def keep(module, args, output, layer=layer):
                seen[layer] = (*args, output)

            hooks.append(module.register_forward_hook(keep))
    with torch.no_grad():
        logits = model(**batch).logits
    for hook in hooks:
        hook.remove()
    return seen, logits


def slot_by_slot(experts, hidden, index, weights):
    """Contributions by a way of their own: all slots run, all but one of them with weight 0."""
    slots = torch.eye(index.shape[-1], dtype=weights.dtype).split(1)
    with torch.no_grad():
        return torch.stack([experts(hidden, index, weights * slot) for slot in slots], 1)


def distance(found, expected):
    """Largest difference relative to the largest entry, in float64."""
    found, expected = found.detach().double(), expected.detach().double()
    return float((found - expected).abs().max() / expected.abs().max())


def check_reading(model, allowed, batch=None):
    """Compare what a trace reads with a plain forward, and return the model for more."""
    batch = batch or encode(side="right")
    seen, expected = plain_run(model, batch)
    experts = {
        int(re.search(r"\.(\d+)\.", path)[1]): module
        for path, module in model.named_modules()
        if path.endswith(".experts")
    }
    apart = {layer: slot_by_slot(experts[layer], *values[:3]) for layer, values in seen.items()}
    moe = load_model(model, tokenizer=build_tokenizer())
    names = ("expert_index", "routing_weights", "expert_contributions", "routed_output")
    with torch.no_grad(), moe.trace(batch):
        found = nnsight.save({layer: moe.moe[layer].read(*names) for layer in moe.moe})
        logits = nnsight.save(moe.nnsight.output.logits)
    assert torch.equal(logits, expected)
    assert set(found) == set(seen)
    for layer, (_, index, weights, written) in seen.items():
        read = {name: value.flatten(0, 1) for name, value in found[layer].items()}
        assert torch.equal(read["expert_index"], index)
        assert torch.equal(read["routing_weights"], weights)
        assert torch.equal(read["routed_output"], written)
        assert distance(read["expert_contributions"], apart[layer]) <= allowed
        assert distance(read["expert_contributions"].double().sum(1), written) <= allowed
    return moe


def check_ban(moe):
    """Ban the expert that a layer chooses most: it is gone, and the logits have moved."""
    batch = encode(side="right")
    layer = next(iter(moe.moe))
    with torch.no_grad():
        before = moe.nnsight._module(**batch).logits
        with moe.trace(batch):
            index = nnsight.save(moe.moe[layer].expert_index)
        banned = int(index.flatten().mode().values)
        with moe.trace(batch):
            moe.moe[layer].ban([banned])
            after = nnsight.save(moe.moe[layer].expert_index)
            logits = nnsight.save(moe.nnsight.output.logits)
    assert banned in index
    assert banned not in after
    assert distance(logits, before) > 1e-3


@pytest.mark.parametrize(("implementation", "dtype"), FORMATS)
@pytest.mark.parametrize("family", ["qwen2_moe", "gpt_oss"])
def test_every_implementation_and_format_is_read_exactly(family, implementation, dtype):
    model = build(family, dtype=dtype)
    model.set_experts_implementation(implementation)
    check_ban(check_reading(model, ALLOWED[dtype]))


@pytest.mark.conformance
@pytest.mark.parametrize(("implementation", "dtype"), FORMATS)
@pytest.mark.parametrize("family", FAMILIES)
def test_the_stated_tolerances_hold_on_every_family(family, implementation, dtype):
    model = build(family, dtype=dtype, seed=1)
    model.set_experts_implementation(implementation)
    moe = check_reading(model, ALLOWED[dtype])
    with torch.no_grad(), moe.trace(encode()):
        pairs = nnsight.save([])
        for layer in moe.moe.values():
            names = ["expert_contributions", "output"]
            read = layer.read(*names, *(["shared_output"] if layer.has_shared else []))
            rebuilt = layer.output_from(read["expert_contributions"], read.get("shared_output"))
            pairs.append((rebuilt, read["output"]))
    assert max(distance(*pair) for pair in pairs) <= ALLOWED[dtype]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_the_three_implementations_agree(dtype):
    read = {}
    for implementation in IMPLEMENTATIONS:
        model = build("qwen2_moe", dtype=dtype)
        model.set_experts_implementation(implementation)
        moe = load_model(model, tokenizer=build_tokenizer(), check=False)
        first = moe.moe[next(iter(moe.moe))]
        with torch.no_grad(), moe.trace(encode()):
            read[implementation] = nnsight.save(first.expert_contributions)
    for implementation in IMPLEMENTATIONS[1:]:
        assert distance(read[implementation], read["eager"]) <= ALLOWED[dtype]


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_experts_of_another_format_than_the_rest_are_read_exactly(implementation):
    # The router of deepseek_v3 stays in float32; experts round to the hidden states' format.
    model = build("deepseek_v3", dtype=torch.bfloat16)
    for name, module in model.named_modules():
        if name.endswith(".gate"):
            module.float()
    model.set_experts_implementation(implementation)
    check_ban(check_reading(model, ALLOWED[torch.bfloat16]))


@pytest.fixture
def implement():
    """Register experts implementations for one test."""
    known = ExpertsInterface._global_mapping
    before = dict(known)
    yield ExpertsInterface.register
    known.clear()
    known.update(before)


def test_an_experts_implementation_of_a_user_is_read_through_the_call(implement):
    calls = []

    def every_expert_on_every_token(experts, hidden, index, weights):
        calls.append(len(hidden))
        gate, up = torch.einsum("td,eod->teo", hidden, experts.gate_up_proj).chunk(2, -1)
        each = torch.einsum("teo,edo->ted", experts.act_fn(gate) * up, experts.down_proj)
        chosen = each.gather(1, index[..., None].expand(-1, -1, hidden.shape[-1]))
        return (chosen * weights[..., None]).sum(1)

    implement("every_expert", every_expert_on_every_token)
    model = build("mixtral")
    model.set_experts_implementation("every_expert")
    check_ban(check_reading(model, ALLOWED[torch.float32]))
    assert calls


def test_an_experts_implementation_that_mixes_tokens_is_caught(implement):
    def neighbours(experts, hidden, index, weights):
        mixed = hidden + 0.1 * hidden.roll(1, 0)
        return batched_mm_experts_forward(experts, mixed, index, weights)

    implement("neighbours", neighbours)
    model = build("mixtral")
    model.set_experts_implementation("neighbours")
    with pytest.raises(RoutingMismatchError, match="are not what the model computes"):
        load_model(model, tokenizer=build_tokenizer())


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_fp8_experts_are_read_exactly(monkeypatch, implementation, dtype):
    model = kernel_doubles.quantise_experts_to_fp8(
        build("qwen2_moe", dtype=dtype, **EVEN), monkeypatch
    )
    model.set_experts_implementation(implementation)
    kinds = {type(module).__name__ for module in model.modules()}
    assert "FP8Experts" in kinds
    check_ban(check_reading(model, ALLOWED[dtype]))


@pytest.mark.parametrize("family", ["qwen3_moe", "gpt_oss"])
def test_deepgemm_is_read_exactly(monkeypatch, family):
    kernel_doubles.put_deepgemm(monkeypatch)
    model = build(family, dtype=torch.bfloat16)
    model.set_experts_implementation("deepgemm")
    check_ban(check_reading(model, ALLOWED[torch.bfloat16]))


def test_sonicmoe_is_read_exactly(monkeypatch):
    kernel_doubles.put_sonicmoe(monkeypatch)
    model = build("qwen3_moe", dtype=torch.bfloat16)
    model.set_experts_implementation("sonicmoe")
    check_ban(check_reading(model, ALLOWED[torch.bfloat16]))


def test_gpt_oss_dequantised_from_mxfp4_is_read_exactly(tmp_path, monkeypatch):
    plain = build("gpt_oss", **EVEN)
    state = plain.state_dict()
    for name in [name for name in state if re.search(r"experts\.(gate_up|down)_proj$", name)]:
        state[f"{name}_blocks"], state[f"{name}_scales"] = kernel_doubles.pack_mxfp4(
            state.pop(name)
        )
    plain.config.quantization_config = {"quant_method": "mxfp4"}
    plain.config.save_pretrained(tmp_path)
    save_file(
        {name: value.contiguous() for name, value in state.items()},
        tmp_path / "model.safetensors",
        {"format": "pt"},
    )
    model = AutoModelForCausalLM.from_pretrained(
        tmp_path, dtype=torch.float32, quantization_config=Mxfp4Config(dequantize=True)
    ).eval()
    experts = "model.layers.0.mlp.experts"
    original = plain.get_submodule(experts).gate_up_proj
    loaded = model.get_submodule(experts).gate_up_proj
    assert 0.01 < distance(loaded, original) < 0.2
    check_ban(check_reading(model, ALLOWED[torch.float32]))


def test_a_kernel_over_the_experts_alone_is_read_through_the_call():
    model = build("mixtral")
    calls = []

    def kernel(self, hidden_states, top_k_index, top_k_weights):
        calls.append(hidden_states.shape)
        return batched_mm_experts_forward(self, hidden_states, top_k_index, top_k_weights)

    for layer in model.model.layers:
        kernel_doubles.put_kernel(layer.mlp.experts, kernel)
    check_ban(check_reading(model, ALLOWED[torch.float32]))
    calls.clear()
    with torch.no_grad():
        model(**encode())
    assert len(calls) == 3


def test_hooks_of_accelerate_are_no_replacement():
    model = build("qwen2_moe")
    hooks = [
        kernel_doubles.put_accelerate_hook(module)
        for name, module in model.named_modules()
        if name.endswith((".mlp", ".gate", ".experts"))
    ]
    check_ban(check_reading(model, ALLOWED[torch.float32]))
    assert all(hook.calls for hook in hooks)


def test_the_wrapping_of_nnsight_is_no_replacement():
    moe = tiny_models.wrapped("mixtral")
    with moe.trace(encode()):
        moe.moe[0].router_logits.save()
    refuse_kernels(moe.nnsight._module)


def test_experts_with_a_compiled_forward_are_read_exactly():
    model = build("mixtral")
    for layer in model.model.layers:
        layer.mlp.experts.forward = torch.compile(layer.mlp.experts.forward, backend="eager")
    check_ban(check_reading(model, ALLOWED[torch.float32]))


def refusal(model):
    with pytest.raises(UnsupportedArchitectureError) as caught:
        load_model(model, tokenizer=build_tokenizer())
    return str(caught.value)


def test_mxfp4_blocks_are_refused_with_the_way_to_dequantise(monkeypatch):
    model = kernel_doubles.put_mxfp4_experts(build("gpt_oss", **EVEN), monkeypatch)
    text = refusal(model)
    assert text.startswith(
        "'GptOssForCausalLM' cannot be read exactly: model.layers.0.mlp: Mxfp4GptOssMLP"
    )
    assert "Mxfp4Config(dequantize=True)" in text


def test_only_the_blocks_left_in_mxfp4_are_refused(monkeypatch):
    model = build("gpt_oss", **EVEN)
    first = model.model.layers[0].mlp
    kernel_doubles.put_mxfp4_experts(model, monkeypatch)
    model.model.layers[0].mlp = first
    assert "model.layers.1.mlp: Mxfp4GptOssMLP" in refusal(model)


def test_experts_put_into_a_list_are_refused():
    # As bitsandbytes and compressed-tensors have it made of Llama 4's experts.
    model = zoo.build("llama4_text")
    block = model.model.layers[1].feed_forward
    block.experts = SequentialLlama4TextExperts(model.config)
    text = refusal(model)
    assert "model.layers.1.feed_forward: SequentialLlama4TextExperts of transformers" in text
    assert "Load the weights unquantised or dequantised" in text


@pytest.mark.parametrize(
    ("part", "kind"), [("mlp", "GptOssMLP"), ("mlp.router", "GptOssTopKRouter")]
)
@pytest.mark.parametrize("wrapped", [False, True])
@pytest.mark.parametrize("hooked", [False, True])
def test_a_hub_kernel_over_block_or_router_is_refused(part, kind, wrapped, hooked):
    model = build("gpt_oss")
    module = model.model.layers[1].get_submodule(part)
    own = type(module).forward

    def fused_kernel(self, hidden_states):
        return own(self, hidden_states)

    kernel_doubles.put_kernel(module, fused_kernel)
    if hooked:
        kernel_doubles.put_accelerate_hook(module)
    if wrapped:
        nnsight.NNsight(model)
    text = refusal(model)
    assert f"model.layers.1.mlp: the forward of {kind} was replaced by" in text
    assert "fused_kernel" in text
    assert "`use_kernels=False`" in text


def test_a_kernel_over_the_experts_below_a_hook_is_refused():
    model = build("gpt_oss")
    experts = model.model.layers[1].mlp.experts
    own = type(experts).forward
    kernel_doubles.put_kernel(experts, lambda self, *args: own(self, *args))
    kernel_doubles.put_accelerate_hook(experts)
    text = refusal(model)
    assert "the forward of GptOssExperts was replaced" in text
    assert "below a hook of accelerate" in text


@pytest.mark.parametrize("part", ["mlp", "mlp.experts", "mlp.gate"])
def test_parts_spread_over_processes_are_refused(part):
    model = build("mixtral")
    model.model.layers[2].get_submodule(part)._is_hooked = True
    text = refusal(model)
    assert re.search(r"model\.layers\.2\.mlp: Mixtral\w+ is spread over processes", text)
    assert "without `tp_plan` and `distributed_config`" in text


def test_experts_split_over_processes_are_refused():
    model = build("mixtral")
    model.model.layers[0].mlp.experts._is_expert_parallel = True
    assert "MixtralExperts is spread over processes" in refusal(model)


class DTensor(torch.nn.Parameter):
    """By its name and place a weight that torch has split over processes."""


def test_weights_split_over_processes_are_refused():
    model = build("mixtral")
    experts = model.model.layers[0].mlp.experts
    experts.down_proj = DTensor(experts.down_proj.detach())
    assert "MixtralExperts is spread over processes" in refusal(model)


def test_the_kernel_that_exchanges_tokens_between_processes_is_refused():
    model = build("mixtral", experts_implementation="deepgemm_megamoe")
    assert model.config._experts_implementation == "deepgemm_megamoe"
    text = refusal(model)
    assert "'deepgemm_megamoe' exchanges tokens between processes" in text
    assert '`experts_implementation="deepgemm"`' in text


def test_float64_is_refused_where_there_is_no_such_product():
    model = build("mixtral", dtype=torch.float64)
    assert model.config._experts_implementation == "grouped_mm"
    text = refusal(model)
    assert "'grouped_mm' has no float64" in text
    assert '`experts_implementation="eager"`' in text


def compile_forward(parent, name):
    module = parent.get_submodule(name)
    module.forward = torch.compile(module.forward, backend="eager")


def compile_in_place(parent, name):
    parent.get_submodule(name).compile(backend="eager")


def wrap_compiled(parent, name):
    parent.set_submodule(name, torch.compile(parent.get_submodule(name), backend="eager"))


@pytest.mark.parametrize("way", [compile_forward, compile_in_place, wrap_compiled])
@pytest.mark.parametrize("part", ["layers.1", "layers.1.mlp", "layers.1.mlp.gate"])
def test_what_is_compiled_around_the_operations_is_refused(part, way):
    model = build("mixtral")
    way(model.model, part)
    text = refusal(model)
    assert re.search(r"model\.layers\.1\S*\.mlp\S*: \w+ was compiled by torch.compile", text)
    assert "Load the model without compiling it" in text


@pytest.mark.parametrize("way", [compile_in_place, wrap_compiled])
def test_experts_compiled_as_a_module_are_refused(way):
    model = build("mixtral")
    way(model.model, "layers.1.mlp.experts")
    text = refusal(model)
    assert "model.layers.1.mlp: its experts were compiled as a module" in text
    assert "`experts.forward = torch.compile(experts.forward)`" in text


def test_a_kernel_elsewhere_is_nobodys_business():
    model = build("mixtral")
    norm = model.model.layers[0].input_layernorm
    own = type(norm).forward
    kernel_doubles.put_kernel(norm, lambda self, hidden: own(self, hidden))
    check_reading(model, ALLOWED[torch.float32])


def test_float64_passes_where_experts_have_a_way_of_their_own():
    experts = torch.nn.Linear(2, 2, dtype=torch.float64)
    experts.config = build("mixtral").config
    assert experts.config._experts_implementation == "grouped_mm"
    refuse_kernels(torch.nn.ModuleDict({"experts": experts}))


def test_a_dense_model_passes():
    refuse_kernels(torch.nn.Sequential(torch.nn.Linear(2, 2)))
