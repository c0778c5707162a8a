"""Detect what structure tells about a MoE block: its parts, and how its router chooses.

An experts module is known by its signature, its router by what transformers records, the
operations that hold the logits and make the choice by the names in the router's source. What
structure does not tell stands in `_registry`.
"""

import inspect
import re

from nnsight.intervention.source import SourceNotAvailable, compiled, decorator_chain
from torch import nn

from moe_interp.errors import UnsupportedArchitectureError
from moe_interp.models._registry import BLOCKS, ROUTERS
from moe_interp.models._site import Site
from moe_interp.models._support import known_families

_LOGITS = re.compile(r"^(router_logits|logits|expert_scores)_\d+$")
_CHOICE = re.compile(r"(^|_)topk_\d+$")
_SHARED = ("shared_expert", "shared_experts", "shared_mlp")


def experts_arguments(module: nn.Module) -> tuple[str, str, str] | None:
    """The names of (hidden states, index, weights) if the module is called like experts."""
    names = [name for name in _signature(module) if name != "self"]
    if len(names) < 3 or names[0] != "hidden_states":
        return None
    if not re.search(r"index|indices|ids|selected_experts", names[1]):
        return None
    if not re.search(r"weights|probs", names[2]):
        return None
    return names[0], names[1], names[2]


def _signature(module: nn.Module) -> tuple[str, ...]:
    try:
        return tuple(inspect.signature(type(module).forward).parameters)
    except (TypeError, ValueError):
        return ()


def _operations(module: nn.Module) -> tuple[str, ...]:
    """The names of the operations in a module's forward, as nnsight's `.source` gives them."""
    try:
        function, _ = decorator_chain(type(module).forward)
        return compiled(function).names
    except SourceNotAvailable:
        return ()


def describe_block(
    modules: dict[str, nn.Module], path: str, stack: str, recorded: set[type]
) -> Site:
    """The facts of one block: detected, then corrected by the table."""
    block, model = modules[path], modules[""]
    children = dict(block.named_children())
    router_name = next((name for name, child in children.items() if type(child) in recorded), None)
    if router_name is None:
        router_name = next((name for name in ("router", "gate") if name in children), None)
    if router_name is None:
        raise unsupported(model, f"no router stands beside the experts of {path!r}")
    router = children[router_name]
    row = BLOCKS.get(type(block).__name__, lambda _: {})(block)
    experts_name = row.get("experts") or next(
        name for name, child in children.items() if experts_arguments(child)
    )
    experts = children[experts_name]
    called = _operations(block)
    if any(f"self_{name}_0" not in called for name in (router_name, experts_name)):
        raise unsupported(
            model, f"{type(block).__name__} does not call its router and experts in the open"
        )
    facts = {
        "layer": _layer_number(model, path),
        "stack": stack,
        "block": path,
        **_router_facts(model, router, block, experts),
        **_block_facts(modules, path, row),
        "router": f"{path}.{router_name}",
        "experts": f"{path}.{experts_name}",
        "experts_arguments": experts_arguments(experts) or (),
        "runs": experts_implementation(experts),
        # Found out by the self-check, for transformers does not promise it.
        "adds_slots_up": False,
    }
    facts["reads_block_source"] = any(
        facts[name].startswith("block:") for name in ("choice", "sum")
    )
    facts["reading_order"] = _reading_order(called, facts)
    return Site(**facts)


def _router_facts(
    model: nn.Module, router: nn.Module, block: nn.Module, experts: nn.Module
) -> dict[str, object]:
    """How the router scores and chooses."""
    operations = _operations(router)
    logits = [name for name in operations if _LOGITS.search(name)]
    choice = [name for name in operations if _CHOICE.search(name)]
    facts = {
        "n_experts": _integer((experts, router), ("num_experts", "num_local_experts")),
        "top_k": _integer((router, block, experts), ("top_k", "num_experts_per_tok"))
        or _integer((getattr(router, "config", None),), ("top_k_experts", "num_experts_per_tok")),
        "logits": logits[-1] if logits else None,
        "further_logits": 0,
        "logits_in_inference": "",
        "choice": choice[-1] if choice else None,
        "choice_gives": "values",
        "choice_scores": "",
        "choice_values": "",
        "choice_index": "",
        "follows_logits": True,
        "score_function": _score_function(router, operations),
        "unselectable_score": float("-inf"),
        "sparsemixer_jitter": 0.0,
        "skips": False,
        "columns_apart": 1,
        "router_class": type(router).__name__,
        **ROUTERS.get(type(router).__name__, lambda _: {})(router),
    }
    if facts["choice"] is not None and re.match(r"^(router_)?logits_topk_", facts["choice"]):
        facts["choice_scores"] = facts["logits"]
    unknown = sorted(
        name
        for name in ("n_experts", "top_k", "logits", "choice", "score_function")
        if facts[name] is None
    )
    if unknown:
        raise unsupported(model, f"{type(router).__name__} does not tell its {', '.join(unknown)}")
    return facts


def _block_facts(
    modules: dict[str, nn.Module], path: str, row: dict[str, object]
) -> dict[str, object]:
    """What the block does around its experts; the row's paths become those of the model."""
    shared, shared_gate = _shared_expert(modules, path)
    facts = {
        "entry": path,
        "leaving": path,
        "leaves_as": "output",
        "shared": shared,
        "shared_gate": shared_gate,
        "projection": None,
        "final_norm": None,
        "dispatch": "indexed",
        "sum": "",
        "adds_bias": False,
        "sum_scale": 1.0,
        "shared_scale": 1.0,
        "refused": {},
        "block_class": type(modules[path]).__name__,
        **row,
    }
    for name in ("entry", "leaving", "shared", "projection", "final_norm"):
        if name in row:
            facts[name] = f"{path}.{row[name]}"
    shared = facts["shared"]
    facts["shared_inside"] = shared is not None and shared.startswith(f"{path}.")
    if shared is None:
        missing = "it has no shared expert; see `layer.has_shared`."
        facts["refused"] = {**facts["refused"], "shared_output": missing}
    return facts


def _layer_number(model: nn.Module, path: str) -> int:
    numbers = [part for part in path.split(".") if part.isdigit()]
    if not numbers:
        raise unsupported(model, f"its MoE block {path!r} lies outside the stack of layers")
    return int(numbers[0])


def _shared_expert(modules: dict[str, nn.Module], path: str) -> tuple[str | None, str | None]:
    """Path of the shared expert and of its gate: in the block, else beside it in the layer."""
    for parent in (path, path.rpartition(".")[0]):
        for name in _SHARED:
            shared, gate = f"{parent}.{name}", f"{parent}.{name}_gate"
            if modules.get(shared) is not None:
                return shared, gate if gate in modules else None
    return None, None


def _integer(modules: tuple[object, ...], names: tuple[str, ...]) -> int | None:
    """The first attribute that is an integer: config names differ, modules agree."""
    for module in modules:
        for name in names:
            value = getattr(module, name, None)
            if isinstance(value, int) and not isinstance(value, bool):
                return value
    return None


def _score_function(router: nn.Module, operations: tuple[str, ...]) -> str | None:
    text = " ".join(operations)
    for name in ("softmax", "sigmoid"):
        if name in text:
            return name
    function = getattr(router, "score_fn", None) or getattr(router, "scoring_function", None)
    name = getattr(function, "__name__", type(function).__name__).lower()
    return next((known for known in ("sqrtsoftplus", "softmax", "sigmoid") if known in name), None)


def _reading_order(called: tuple[str, ...], facts: dict[str, object]) -> tuple[str, ...]:
    """Quantities in the order in which the block computes them; "slots": what experts write."""

    def call(part: str) -> str:
        return f"self_{facts[part].rpartition('.')[2]}_0" if facts[part] else ""

    routing = ["expert_index", "routing_weights"]
    at_router = ["router_input", "router_logits", "router_probs"]
    at_experts = ["slots"]
    if facts["skips"] or facts["choice_gives"] == "argmax":
        # The experts are not told all of the choice, so it is read where it is made.
        at_router, routing = [*at_router, "expert_index"], ["routing_weights"]
    first = []
    if facts["entry"] == facts["block"]:
        first = ["input"]
    else:
        at_router = ["input", *at_router]
    steps = {call("router"): at_router, call("experts"): [*routing, *at_experts]}
    if facts["sum"]:
        steps[facts["sum"].removeprefix("block:")] = ["routed_output"]
    else:
        steps[call("experts")].append("routed_output")
    if call("shared") in called:
        steps[call("shared")] = ["shared"]
    inside = [name for operation in called for name in steps.get(operation, ())]
    if facts["shared"] and call("shared") not in called:
        return (*first, *inside, "output", "shared")
    return (*first, *inside, "shared_gate", "output")


def experts_implementation(experts: nn.Module) -> str:
    """How experts run: transformers' name of the implementation, or "" if they know only one."""
    known = hasattr(experts, "has_gate") and hasattr(experts, "_apply_gate")
    return str(experts.config._experts_implementation or "") if known else ""


def unsupported(model: nn.Module, reason: str) -> UnsupportedArchitectureError:
    """The error for a model whose experts cannot be read exactly."""
    return UnsupportedArchitectureError(
        f"{type(model).__name__!r} cannot be read exactly: {reason}. Tested families: "
        f"{known_families()}; others are read if their structure is the same. "
        "docs/errors/unsupported-architecture.md says how to add one."
    )
