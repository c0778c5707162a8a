"""Where the routers and experts of a model are: plain facts, read off its module tree.

Nothing here needs weights, so a model on the meta device is described as well. Facts are detected
from structure: an experts module is known by its signature, its router by what transformers
records, the operations that hold the logits and make the choice by the names in the router's
source. What structure does not tell stands in `_registry`.
"""

import inspect
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass

from nnsight.intervention.source import Controller, SourceNotAvailable, compiled, decorator_chain
from torch import nn

from moe_interp.errors import NotMoEError, UnsupportedArchitectureError
from moe_interp.models._registry import BLOCKS, REFUSED, ROUTERS, SUPPORTED

_LOGITS = re.compile(r"^(router_logits|logits|expert_scores)_\d+$")
_CHOICE = re.compile(r"(^|_)topk_\d+$")
_SHARED = ("shared_expert", "shared_experts", "shared_mlp")
_HINT = re.compile(r"moe|router|sparse_?mixture|mixture_?of_?experts", re.IGNORECASE)


@dataclass(frozen=True)
class Site:
    """One MoE block of a model.

    Attributes:
        layer: Absolute decoder layer.
        block: Path of the block that holds router and experts.
        router: Path of the router.
        experts: Path of the experts module.
        shared: Path of the shared expert, if there is one.
        shared_gate: Path of the linear map whose sigmoid multiplies the shared expert's output.
        n_experts: Number of routed experts.
        top_k: Experts chosen per token.
        logits: Operation of the router's source that holds the logits.
        choice: Operation that makes the choice, or "sparsemixer".
        choice_scores: "argument" if the choice is called with its scores, "logits" if it is a
            method of the logits.
        score_function: "softmax", "sigmoid" or "sqrtsoftplus".
        experts_arguments: The names under which the experts take hidden states, index, weights.
        reading_order: Readable quantities in the order in which the layer computes them.
        unselectable_score: Score of experts that a group limit has ruled out.
        sparsemixer_jitter: The router's jitter, which sets the window of sparsemixer's softmax.
        block_scale: Factor of the block on the experts' sum; 0 if it does more than scale it.
        router_class: Name of the router's class.
    """

    layer: int
    block: str
    router: str
    experts: str
    shared: str | None
    shared_gate: str | None
    n_experts: int
    top_k: int
    logits: str
    choice: str
    choice_scores: str
    score_function: str
    experts_arguments: tuple[str, str, str]
    reading_order: tuple[str, ...]
    unselectable_score: float
    sparsemixer_jitter: float
    block_scale: float
    router_class: str

    def facts(self) -> dict[str, object]:
        """The fields as a plain dict, which can enter a trace."""
        return asdict(self)


def find_sites(model: nn.Module) -> tuple[Site, ...]:
    """Describe every MoE block of a Hugging Face model, in order of depth.

    Args:
        model: The model; its weights are not read.

    Returns:
        One site per MoE layer.

    Raises:
        NotMoEError: If the model has no routed experts.
        UnsupportedArchitectureError: If it has, but they cannot be read exactly.
    """
    recorded = _recorded_routers(model)
    _refuse_known(model, recorded)
    modules = dict(model.named_modules())
    sites = [
        _describe(modules, path, name, recorded)
        for path, block in modules.items()
        for name, child in block.named_children()
        if _experts_arguments(child) is not None
    ]
    if not sites:
        _refuse_without_experts(model, recorded)
    layers = [site.layer for site in sites]
    if len(set(layers)) != len(layers):
        raise _unsupported(model, "several of its MoE blocks lie in the same decoder layer")
    return tuple(sorted(sites, key=lambda site: site.layer))


def _recorded_routers(model: nn.Module) -> set[type]:
    """The router classes whose logits transformers says it records."""
    found = set()
    for module in model.modules():
        recorders = (getattr(module, "_can_record_outputs", None) or {}).get("router_logits")
        for recorder in recorders if isinstance(recorders, list) else [recorders]:
            target = getattr(recorder, "target_class", recorder)
            if isinstance(target, type):
                found.add(target)
    return found


def _experts_arguments(module: nn.Module) -> tuple[str, str, str] | None:
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


def _describe(
    modules: dict[str, nn.Module], path: str, experts_name: str, recorded: set[type]
) -> Site:
    """The facts of one block."""
    block, model = modules[path], modules[""]
    children = dict(block.named_children())
    router_name = next((name for name, child in children.items() if type(child) in recorded), None)
    if router_name is None:
        router_name = next((name for name in ("router", "gate") if name in children), None)
    if router_name is None:
        raise _unsupported(model, f"no router stands beside the experts of {path!r}")
    router, experts = children[router_name], children[experts_name]
    exception = ROUTERS.get(type(router).__name__, lambda _: {})(router)
    for part in (block, router):
        _refuse_replaced(model, part)
    called = _operations(block)
    order = {name: f"self_{name}_0" for name in (router_name, experts_name)}
    if any(operation not in called for operation in order.values()):
        raise _unsupported(
            model, f"{type(block).__name__} does not call its router and experts in the open"
        )
    shared, shared_gate = _shared_expert(modules, path)
    operations = _operations(router)
    logits = [name for name in operations if _LOGITS.search(name)]
    choice = [name for name in operations if _CHOICE.search(name)]
    facts = {
        "layer": _layer_number(model, path),
        "block": path,
        "router": f"{path}.{router_name}",
        "experts": f"{path}.{experts_name}",
        "shared": shared,
        "shared_gate": shared_gate,
        "n_experts": _integer((experts, router), ("num_experts", "num_local_experts")),
        "top_k": _integer((router, block, experts), ("top_k", "num_experts_per_tok")),
        "logits": logits[-1] if logits else None,
        "choice": choice[-1] if choice else None,
        "choice_scores": "argument",
        "score_function": _score_function(router, operations),
        "experts_arguments": _experts_arguments(experts),
        "reading_order": _reading_order(called, order[router_name], order[experts_name], shared),
        "unselectable_score": float("-inf"),
        "sparsemixer_jitter": 0.0,
        "block_scale": _block_scale(block),
        "router_class": type(router).__name__,
        **exception,
    }
    if facts["choice"] is not None and re.match(r"^(router_)?logits_topk_", facts["choice"]):
        facts["choice_scores"] = "logits"
    unknown = sorted(
        name
        for name in ("n_experts", "top_k", "logits", "choice", "score_function")
        if facts[name] is None
    )
    if unknown:
        raise _unsupported(model, f"{type(router).__name__} does not tell its {', '.join(unknown)}")
    return Site(**facts)


def _layer_number(model: nn.Module, path: str) -> int:
    numbers = [part for part in path.split(".") if part.isdigit()]
    if not numbers:
        raise _unsupported(model, f"its MoE block {path!r} lies outside the stack of layers")
    return int(numbers[0])


def _shared_expert(modules: dict[str, nn.Module], path: str) -> tuple[str | None, str | None]:
    """Path of the shared expert and of its gate: in the block, else beside it in the layer."""
    for parent in (path, path.rpartition(".")[0]):
        for name in _SHARED:
            shared, gate = f"{parent}.{name}", f"{parent}.{name}_gate"
            if modules.get(shared) is not None:
                return shared, gate if gate in modules else None
    return None, None


def _integer(modules: tuple[nn.Module, ...], names: tuple[str, ...]) -> int | None:
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


def _reading_order(
    called: tuple[str, ...], router: str, experts: str, shared: str | None
) -> tuple[str, ...]:
    """Quantities in the order in which the block computes them."""
    steps = {
        router: ("router_input", "router_logits", "router_probs"),
        experts: (
            "expert_index",
            "routing_weights",
            "expert_outputs",
            "expert_contributions",
            "routed_output",
        ),
    }
    shared_call = f"self_{shared.rpartition('.')[2]}_0" if shared else ""
    if shared_call in called:
        steps[shared_call] = ("shared",)
    inside = [name for call in called if call in steps for name in steps[call]]
    if shared and shared_call not in called:
        return ("input", *inside, "output", "shared")
    return ("input", *inside, "shared_gate", "output")


def _block_scale(block: nn.Module) -> float:
    attribute = BLOCKS.get(type(block).__name__, "one")
    return {"one": 1.0, "": 0.0}.get(attribute) or float(getattr(block, attribute, 0.0) or 0.0)


def _refuse_known(model: nn.Module, recorded: set[type]) -> None:
    names = {type(module).__name__ for module in model.modules()}
    for name in sorted(names | {router.__name__ for router in recorded}):
        if name in REFUSED and name in names:
            raise _unsupported(model, f"{name}: {REFUSED[name]}")


def _refuse_replaced(model: nn.Module, module: nn.Module) -> None:
    """A kernel put over a module's forward would bypass the operations that are read."""
    replaced = module.__dict__.get("forward")
    if replaced is None or isinstance(replaced, Controller) or "_hf_hook" in module.__dict__:
        return
    raise _unsupported(
        model,
        f"the forward of {type(module).__name__} was replaced (a hub kernel?); load the model "
        "with `use_kernels=False`, or quantised gpt-oss with `Mxfp4Config(dequantize=True)`",
    )


def _refuse_without_experts(model: nn.Module, recorded: set[type]) -> None:
    present = {type(module) for module in model.modules()} & recorded
    hints = sorted(kind.__name__ for kind in present) or _hints(model)
    if hints:
        raise _unsupported(model, f"the experts behind {hints[0]!r} are not known")
    raise NotMoEError(
        f"{type(model).__name__!r} is a dense model: none of its layers has routed experts. "
        f"Give a Mixture-of-Experts model, for instance of type {', '.join(SUPPORTED)}."
    )


def _hints(model: nn.Module) -> list[str]:
    """Classes whose name says that they route, though nothing could be made of them."""
    names: Iterator[str] = (type(module).__name__ for module in model.modules())
    own = type(model).__name__.removesuffix("ForCausalLM").removesuffix("Model")
    return sorted({name for name in names if _HINT.search(name.replace(own, ""))})


def _unsupported(model: nn.Module, reason: str) -> UnsupportedArchitectureError:
    return UnsupportedArchitectureError(
        f"{type(model).__name__!r} cannot be read exactly: {reason}. Tested families: "
        f"{', '.join(SUPPORTED)}; others are read if their structure is the same. "
        "A new family takes a row in moe_interp/models/_registry.py."
    )
