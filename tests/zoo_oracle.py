"""What the modules of a plain Hugging Face run receive and return, for every family of `zoo`.

The oracle of the conformance tests: plain PyTorch hooks that share no code with the package. It
says for itself where each family keeps its routers, experts and shared experts, and what a family
that dispatches in a way of its own means by each quantity. Every tensor is ``[batch pos ...]``.
"""

import dataclasses
import re
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Place:
    """Where a family keeps the parts of a MoE block, as paths from the block.

    Attributes:
        block: Name of the block in the decoder layer; "" where the layer itself is the block.
        core: Path from the block to what holds router and experts.
        router: Name of the router.
        logits: Position of the logits in what the router returns; None if it returns them alone.
        shared: Path of the shared expert, from the block, or from the layer after "layer.".
        shared_gate: Path of the linear map whose sigmoid multiplies it.
        shared_scale: Factor on the shared expert's output in the block's output.
        score: What turns the logits into scores.
        kind: How tokens are dispatched to experts.
    """

    block: str = "mlp"
    core: str = ""
    router: str = "gate"
    logits: int | None = 0
    shared: str | None = None
    shared_gate: str | None = None
    shared_scale: Callable[[nn.Module], float] = lambda block: 1.0
    score: Callable[[nn.Module, Tensor], Tensor] = lambda router, logits: logits.softmax(-1)
    kind: str = "indexed"


def _sigmoid(router: nn.Module, logits: Tensor) -> Tensor:
    return logits.sigmoid()


def _sqrt_softplus(router: nn.Module, logits: Tensor) -> Tensor:
    return nn.functional.softplus(logits).sqrt()


def _as_configured(router: nn.Module, logits: Tensor) -> Tensor:
    return logits.softmax(-1) if router.expert_selection_fn == "softmax" else logits.sigmoid()


def _half_if_averaged(block: nn.Module) -> float:
    return 0.5 if block.shared_expert_combination_strategy == "average" else 1.0


_SHARED = Place(shared="shared_experts")
_SIGMOID = Place(score=_sigmoid)
_DEEPSEEK = Place(shared="shared_experts", score=_sigmoid)
_QWEN = Place(shared="shared_expert", shared_gate="shared_expert_gate")
_GRANITE = Place(block="block_sparse_moe", router="router", shared="layer.shared_mlp")

# Model type of the text configuration -> where its parts are; `Place()` for all others.
PLACES: dict[str, Place] = {
    "afmoe": dataclasses.replace(_DEEPSEEK, router="router"),
    "aria_text": Place(router="router", shared="shared_experts"),
    "axk1": _DEEPSEEK,
    "axk2": _DEEPSEEK,
    "bailing_hybrid": _DEEPSEEK,
    "beam": _SIGMOID,
    "cohere2_moe": Place(
        shared="shared_experts", shared_scale=_half_if_averaged, score=_as_configured
    ),
    "dbrx": Place(block="ffn", router="router", logits=None),
    "deepseek_ocr2_text": _SHARED,
    "deepseek_v2": _SHARED,
    "deepseek_v3": _DEEPSEEK,
    "deepseek_v32": _DEEPSEEK,
    "deepseek_v4": Place(shared="shared_experts", score=_sqrt_softplus),
    "diffusion_gemma_text": Place(block="", router="router", kind="beside_dense"),
    "dots1": _DEEPSEEK,
    "dots3_note_text": _DEEPSEEK,
    "ernie4_5_moe": _SHARED,
    "ernie4_5_vl_moe_text": Place(core="text_moe", shared="shared_experts"),
    "exaone_moe": _DEEPSEEK,
    "flint": Place(shared="shared_expert", score=_sigmoid),
    "gemma4_text": Place(block="", router="router", kind="beside_dense"),
    "glm4_moe": _DEEPSEEK,
    "glm4_moe_lite": _DEEPSEEK,
    "glm4v_moe_text": _DEEPSEEK,
    "glm5_next_text": _DEEPSEEK,
    "glm_moe_dsa": _DEEPSEEK,
    "gpt_oss": Place(router="router"),
    "granitemoe": dataclasses.replace(_GRANITE, shared=None),
    "granitemoe_swa": _GRANITE,
    "granitemoehybrid": _GRANITE,
    "granitemoeshared": _GRANITE,
    "hunyuan_v1_moe": Place(shared="shared_mlp"),
    "hy_v3": _DEEPSEEK,
    "hy_v4": _DEEPSEEK,
    "inkling2_text": _SIGMOID,
    "inkling_text": _DEEPSEEK,
    "jamba": Place(block="feed_forward", router="router"),
    "jetmoe": Place(router="router", logits=4, kind="sorted"),
    "kimi_linear": _DEEPSEEK,
    "kolibri1": _DEEPSEEK,
    "laguna": _DEEPSEEK,
    "lfm2_moe": Place(block="feed_forward", score=_sigmoid),
    "llama4_text": Place(
        block="feed_forward",
        router="router",
        logits=1,
        shared="shared_expert",
        score=_sigmoid,
        kind="input_scaled",
    ),
    "longcat_flash": Place(router="router"),
    "mimo_v2_flash": _SIGMOID,
    "minimax_m2": _SIGMOID,
    "minimax_m3_vl_text": _DEEPSEEK,
    "mistral4": _SHARED,
    "mistral_large4_text": _SHARED,
    "muse_spark_text": _SIGMOID,
    "nemotron_h": Place(block="mixer", shared="shared_experts", score=_sigmoid),
    "openai_privacy_filter": Place(router="router"),
    "phimoe": Place(router="router"),
    "qwen2_moe": _QWEN,
    "qwen3_5_moe_text": _QWEN,
    "qwen3_next": _QWEN,
    "qwen4_exp_text": _QWEN,
    "solar_open": _DEEPSEEK,
    "step3p5": _DEEPSEEK,
    "switch_transformers": Place(router="router", logits=2, kind="one_hot"),
    "unlimited_ocr_text": _SHARED,
    "zaya": Place(kind="with_skip"),
}


@dataclass
class Call:
    """One call of one MoE layer.

    Attributes:
        taken: What the hooks saw, as the modules have it.
        n_batch: Rows of the batch.
        values: The quantities by name, ``[batch pos ...]``.
    """

    taken: dict[str, object] = field(default_factory=dict)
    n_batch: int = 0
    values: dict[str, Tensor] = field(default_factory=dict)


@dataclass
class Observation:
    """What a run showed.

    Attributes:
        calls: The calls of each MoE layer, in order; the decoder's of an encoder-decoder.
        encoder_calls: The same of an encoder's.
        result: What the model returned.
    """

    calls: dict[int, list[Call]] = field(default_factory=dict)
    encoder_calls: dict[int, list[Call]] = field(default_factory=dict)
    result: object = None

    def all_calls(self) -> dict[object, list[Call]]:
        """All calls by layer; an encoder's layers are called "encoder 1"."""
        encoder = {f"encoder {layer}": calls for layer, calls in self.encoder_calls.items()}
        return {**self.calls, **encoder}


def place_of(model: nn.Module) -> Place:
    """Where the parts of a model's MoE blocks are."""
    return PLACES.get(model.config.get_text_config(decoder=True).model_type, Place())


def find_blocks(model: nn.Module) -> list[tuple[str, int, nn.Module, nn.Module]]:
    """Path, number, decoder layer and MoE block of each layer that has one."""
    place = place_of(model)
    found = []
    for path, module in model.named_modules():
        block = module
        if not re.search(r"(layers|blocks|block)\.\d+(\.layer\.\d+)?$", path):
            continue
        block = getattr(module, place.block, None) if place.block else module
        core = getattr(block, place.core, None) if place.core else block
        if core is not None and hasattr(core, place.router):
            found.append((path, int(re.findall(r"\d+", path)[0]), module, block))
    return found


def _first(args: tuple, kwargs: dict) -> Tensor:
    return (args or tuple(kwargs.values()))[0]


def _clone(value: object) -> object:
    if torch.is_tensor(value):
        return value.clone()
    return tuple(map(_clone, value)) if isinstance(value, tuple) else value


def _watch(module: nn.Module, name: str, calls: list[Call], *, opens: bool = False) -> list:
    """Keep what a module receives as ``NAME.in`` and returns as ``NAME.out``."""

    def enters(_: nn.Module, args: tuple, kwargs: dict) -> None:
        if opens:
            calls.append(Call())
        calls[-1].taken[f"{name}.in"] = tuple(map(_clone, (*args, *kwargs.values())))

    def leaves(_: nn.Module, args: tuple, kwargs: dict, output: object) -> None:
        calls[-1].taken[f"{name}.out"] = _clone(output)

    return [
        module.register_forward_pre_hook(enters, with_kwargs=True),
        module.register_forward_hook(leaves, with_kwargs=True),
    ]


def _parts(place: Place, layer: nn.Module, block: nn.Module) -> dict[str, nn.Module]:
    """The modules to watch beside the block."""
    core = getattr(block, place.core) if place.core else block
    parts = {"router": getattr(core, place.router)}
    if place.kind == "sorted":
        parts["experts"] = core.output_linear
    else:
        parts["experts"] = core.experts
    if place.kind == "beside_dense":
        parts["projection"] = core.router.proj
        parts["shared"] = core.post_feedforward_layernorm_1
        parts["after"] = core.post_feedforward_layernorm
    for name in ("shared", "shared_gate"):
        path = getattr(place, name)
        if path is not None:
            owner = layer if path.startswith("layer.") else block
            module = getattr(owner, path.removeprefix("layer."), None)
            if module is not None:
                parts[name] = module
    return parts


def observe(model: nn.Module, run: Callable[[nn.Module], object]) -> Observation:
    """Run ``run(model)`` under hooks on every MoE layer of a plain Hugging Face model."""
    place, observation, handles, watched = place_of(model), Observation(), [], []
    for path, number, layer, block in find_blocks(model):
        encoder = re.search(r"(^|\.)encoder\.", path) is not None
        table = observation.encoder_calls if encoder else observation.calls
        calls = table.setdefault(number, [])
        handles += _watch(block, "block", calls, opens=True)
        parts = _parts(place, layer, block)
        for name, module in parts.items():
            handles += _watch(module, name, calls)
        watched.append((calls, block, parts))
    with torch.no_grad():
        observation.result = run(model)
    for handle in handles:
        handle.remove()
    for calls, block, parts in watched:
        for call in calls:
            with torch.no_grad():
                _interpret(place, call, block, parts)
    return observation


def _interpret(place: Place, call: Call, block: nn.Module, parts: dict[str, nn.Module]) -> None:
    """Name what the hooks saw."""
    taken, values = call.taken, call.values
    entered = taken["block.in"][0]
    n_batch = entered.shape[0]

    def grid(value: Tensor) -> Tensor:
        flat = value.dim() == 2 or (value.dim() == 3 and value.shape[0] != n_batch)
        return value.unflatten(0, (n_batch, -1)) if flat else value

    router = taken["router.out"]
    logits = router if place.logits is None else router[place.logits]
    output = taken["block.out"]
    values["input"] = entered
    values["router_input"] = grid(taken["router.in"][0])
    values["router_logits"] = grid(logits)
    values["output"] = grid(output[0] if isinstance(output, tuple) else output)
    if "shared.out" in taken:
        shared = taken["shared.out"]
        if "shared_gate.out" in taken:
            shared = taken["shared_gate.out"].sigmoid() * shared
        values["shared_output"] = grid(shared * place.shared_scale(block))
    if place.kind == "beside_dense":
        values["input"] = values["router_input"]
        values["router_logits"] = grid(taken["projection.out"])
        values["output"] = taken["after.in"][0]
    values["router_probs"] = place.score(parts["router"], values["router_logits"].float())
    found = DISPATCH[place.kind](taken, parts)
    values.update({name: grid(value) for name, value in found.items() if value.dim() == 2})
    rows = values["expert_index"].shape[:2]
    values.update(
        {name: value.unflatten(0, rows) for name, value in found.items() if value.dim() == 3}
    )


def _by_slot(experts: nn.Module, hidden: Tensor, index: Tensor, weights: Tensor) -> Tensor:
    """What each slot alone adds to the experts' output, ``[token top_k d_model]``."""
    slots = []
    for slot in range(index.shape[-1]):
        only = torch.zeros_like(weights)
        only[:, slot] = weights[:, slot]
        slots.append(experts(hidden, index, only).flatten(0, -2))
    return torch.stack(slots, 1)


def _indexed(taken: dict, parts: dict[str, nn.Module]) -> dict[str, Tensor]:
    """The experts are called with the index and the weights of the chosen ones."""
    hidden, index, weights = taken["experts.in"]
    experts = parts["experts"]
    return {
        "expert_index": index,
        "routing_weights": weights,
        "routed_output": taken["experts.out"].flatten(0, -2),
        "expert_outputs": _by_slot(experts, hidden, index, torch.ones_like(weights)),
        "expert_contributions": _by_slot(experts, hidden, index, weights),
    }


def _with_skip(taken: dict, parts: dict[str, nn.Module]) -> dict[str, Tensor]:
    """One class beyond the experts means that the token skips them: nothing with weight 0."""
    found = _indexed(taken, parts)
    logits = taken["router.out"][0]
    chosen = (logits.softmax(-1).float() + parts["router"].balancing_biases).argmax(-1)[:, None]
    skipped = chosen == logits.shape[-1] - 1
    if not torch.equal(chosen.masked_fill(skipped, 0), found["expert_index"]):
        raise AssertionError("The oracle does not know how this router chooses.")
    outputs = found["expert_outputs"].masked_fill(skipped[..., None], 0.0)
    return {**found, "expert_index": chosen, "expert_outputs": outputs}


def _input_scaled(taken: dict, parts: dict[str, nn.Module]) -> dict[str, Tensor]:
    """All experts run on the token times its score, which is 0 for those not chosen."""
    scores, logits = taken["router.out"]
    index = logits.topk(parts["router"].top_k, dim=1).indices
    by_expert = taken["experts.out"].unflatten(0, (logits.shape[1], -1))
    each = by_expert.transpose(0, 1)
    return {
        "expert_index": index,
        "routing_weights": scores.gather(1, index),
        "routed_output": by_expert.sum(0),
        "expert_contributions": each.gather(1, index[..., None].expand(-1, -1, each.shape[-1])),
    }


def _sorted(taken: dict, parts: dict[str, nn.Module]) -> dict[str, Tensor]:
    """Tokens are copied once a slot and sorted by expert; `order` is the slot each row is of."""
    order, token, weights, _, logits = taken["router.out"]
    top_k = parts["router"].top_k
    outputs = taken["experts.out"]
    contributions = outputs * weights[:, None]
    zeros = contributions.new_zeros(len(token) // top_k, contributions.shape[-1])

    def put_back(rows: Tensor) -> Tensor:
        back = torch.empty_like(rows)
        back[order] = rows
        return back.unflatten(0, (-1, top_k))

    return {
        "expert_index": logits.topk(top_k, dim=1).indices,
        "routing_weights": put_back(weights),
        "routed_output": zeros.index_add(0, token, contributions),
        "expert_outputs": put_back(outputs),
        "expert_contributions": put_back(contributions),
    }


def _one_hot(taken: dict, parts: dict[str, nn.Module]) -> dict[str, Tensor]:
    """One expert a token; a token beyond an expert's capacity is dropped, its weight is 0."""
    hidden, one_hot, weights = taken["experts.in"]
    logits = taken["router.out"][2].flatten(0, 1)
    index = logits.argmax(-1, keepdim=True)
    undropped = nn.functional.one_hot(index, logits.shape[-1])
    outputs = parts["experts"](hidden, undropped, torch.ones_like(weights))
    return {
        "expert_index": index,
        "routing_weights": weights * one_hot.sum(-1),
        "routed_output": taken["experts.out"],
        "expert_outputs": outputs[:, None],
        "expert_contributions": taken["experts.out"][:, None],
    }


DISPATCH: dict[str, Callable] = {
    "indexed": _indexed,
    "beside_dense": _indexed,
    "with_skip": _with_skip,
    "input_scaled": _input_scaled,
    "sorted": _sorted,
    "one_hot": _one_hot,
}
