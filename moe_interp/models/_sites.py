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

from nnsight.intervention.source import SourceNotAvailable, compiled, decorator_chain
from torch import nn

from moe_interp.errors import NotMoEError, UnsupportedArchitectureError
from moe_interp.models._kernels import refuse_kernels
from moe_interp.models._registry import BLOCKS, NOT_OFFERED, REFUSED, ROUTERS
from moe_interp.models._support import known_families

_LOGITS = re.compile(r"^(router_logits|logits|expert_scores)_\d+$")
_CHOICE = re.compile(r"(^|_)topk_\d+$")
_SHARED = ("shared_expert", "shared_experts", "shared_mlp")
_HINT = re.compile(r"moe|router|sparse_?mixture|mixture_?of_?experts", re.IGNORECASE)


@dataclass(frozen=True)
class Site:
    """One MoE block of a model; paths are those of the model's modules.

    Attributes:
        layer: Absolute layer of the decoder, or of the encoder.
        stack: "decoder" or "encoder".
        block: The block that holds router and experts.
        router: The router.
        experts: The experts module.
        entry: The module whose input is the block's input.
        leaving: The module where the block's output is read.
        leaves_as: Whether that is the module's "output" or "input".
        shared: The shared expert, if there is one.
        shared_gate: The linear map whose sigmoid multiplies the shared expert's output.
        reads_block_source: Whether operations of the block's source are read.
        shared_inside: Whether the block's output contains the shared expert's.
        projection: The module applied to the experts' sum, if there is one.
        final_norm: The norm applied to the sum of everything, if there is one.
        n_experts: Number of experts that the router chooses among.
        top_k: Experts chosen per token.
        dispatch: How tokens get to experts: "indexed", "input_scaled", "sorted" or "one_hot".
        logits: Operation of the router's source that holds the logits.
        further_logits: Entries after those of the experts that the router's logits have.
        logits_in_inference: The one that does where no gradient is wanted, if it is another.
        choice: Operation that makes the choice.
        choice_gives: What it holds: "values" and index, an "index", the scores of an "argmax", or
            "sparsemixer".
        choice_scores: Operation that holds the scores chosen by; "" if they are its argument.
        choice_values: Operation that the chosen weights are taken from; "" if it is the same.
        choice_index: Operation that holds the index where the choice is an "argmax".
        follows_logits: Whether the choice depends on the logits.
        score_function: "softmax", "sigmoid" or "sqrtsoftplus".
        experts_arguments: The names under which the experts take hidden states, index, weights.
        reading_order: Readable quantities in the order in which the layer computes them.
        unselectable_score: Score of experts that a group limit has ruled out.
        sparsemixer_jitter: The router's jitter, which sets the window of sparsemixer's softmax.
        skips: Whether the last expert is none: tokens that choose it skip the experts.
        columns_apart: Slots that a call of the experts needs, at least.
        sum: Operation of the block that holds the experts' sum; "" if the experts return it.
        adds_bias: Whether the block adds a bias, which is what it makes of nothing.
        sum_scale: Factor of the block on the experts' sum.
        shared_scale: Factor of the block on the shared expert's output.
        runs: How the experts run: transformers' name of the implementation, or "".
        adds_slots_up: Whether the slots' products add up to the experts' output bit for bit.
        refused: Quantities that are not offered, and why.
        router_class: Name of the router's class.
        block_class: Name of the block's class.
    """

    layer: int
    stack: str
    block: str
    router: str
    experts: str
    entry: str
    leaving: str
    leaves_as: str
    shared: str | None
    shared_gate: str | None
    reads_block_source: bool
    shared_inside: bool
    projection: str | None
    final_norm: str | None
    n_experts: int
    top_k: int
    dispatch: str
    logits: str
    further_logits: int
    logits_in_inference: str
    choice: str
    choice_gives: str
    choice_scores: str
    choice_values: str
    choice_index: str
    follows_logits: bool
    score_function: str
    experts_arguments: tuple[str, ...]
    reading_order: tuple[str, ...]
    unselectable_score: float
    sparsemixer_jitter: float
    skips: bool
    columns_apart: int
    sum: str
    adds_bias: bool
    sum_scale: float
    shared_scale: float
    runs: str
    adds_slots_up: bool
    refused: dict[str, str]
    router_class: str
    block_class: str

    def facts(self) -> dict[str, object]:
        """The fields as a plain dict, which can enter a trace."""
        return asdict(self)


def find_sites(model: nn.Module) -> tuple[Site, ...]:
    """Describe every MoE block of a Hugging Face model, in the order in which they run.

    Args:
        model: The model; its weights are not read.

    Returns:
        One site per MoE layer.

    Raises:
        NotMoEError: If the model has no routed experts.
        UnsupportedArchitectureError: If it has, but they cannot be read exactly.
    """
    refuse_kernels(model)
    recorded = _recorded_routers(model)
    _refuse_known(model, recorded)
    modules = dict(model.named_modules())
    stacks = _stacks(model, modules)
    sites = []
    for path, block in modules.items():
        stack = next((name for name, root in stacks.items() if _lies_in(path, root)), None)
        if stack is not None and _holds_experts(block):
            sites.append(_describe(modules, path, stack, recorded))
    if not sites:
        _refuse_without_experts(model, recorded)
    _refuse_left_out(model, recorded, sites, stacks)
    layers = [(site.stack, site.layer) for site in sites]
    if len(set(layers)) != len(layers):
        raise _unsupported(model, "several of its MoE blocks lie in the same decoder layer")
    return tuple(sorted(sites, key=lambda site: (site.stack == "decoder", site.layer)))


def _stacks(model: nn.Module, modules: dict[str, nn.Module]) -> dict[str, str]:
    """Paths of the text decoder and, if there is one, of the encoder before it.

    Vision or speech towers may route as well; they lie outside.
    """
    paths = {id(module): path for path, module in reversed(list(modules.items()))}
    decoder = model.get_decoder() if hasattr(model, "get_decoder") else model
    stacks = {"decoder": paths.get(id(decoder), "")}
    if getattr(getattr(model, "config", None), "is_encoder_decoder", False):
        stacks["encoder"] = paths[id(model.get_encoder())]
    return stacks


def _lies_in(path: str, root: str) -> bool:
    return not root or path == root or path.startswith(f"{root}.")


def _holds_experts(block: nn.Module) -> bool:
    children = dict(block.named_children())
    row = BLOCKS.get(type(block).__name__)
    if row is not None and row(block).get("experts") in children:
        return True
    return any(_experts_arguments(child) for child in children.values())


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


def _describe(modules: dict[str, nn.Module], path: str, stack: str, recorded: set[type]) -> Site:
    """The facts of one block: detected, then corrected by the table."""
    block, model = modules[path], modules[""]
    children = dict(block.named_children())
    router_name = next((name for name, child in children.items() if type(child) in recorded), None)
    if router_name is None:
        router_name = next((name for name in ("router", "gate") if name in children), None)
    if router_name is None:
        raise _unsupported(model, f"no router stands beside the experts of {path!r}")
    router = children[router_name]
    row = BLOCKS.get(type(block).__name__, lambda _: {})(block)
    experts_name = row.get("experts") or next(
        name for name, child in children.items() if _experts_arguments(child)
    )
    experts = children[experts_name]
    called = _operations(block)
    if any(f"self_{name}_0" not in called for name in (router_name, experts_name)):
        raise _unsupported(
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
        "experts_arguments": _experts_arguments(experts) or (),
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
        raise _unsupported(model, f"{type(router).__name__} does not tell its {', '.join(unknown)}")
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


def _refuse_known(model: nn.Module, recorded: set[type]) -> None:
    present = {type(module).__name__: module for module in model.modules()}
    for name, reason in sorted(REFUSED.items()):
        found = reason(present[name]) if name in present else None
        if found is not None:
            raise _unsupported(model, f"{name}: {found}")


def _refuse_left_out(
    model: nn.Module, recorded: set[type], sites: list[Site], stacks: dict[str, str]
) -> None:
    """No router of these stacks may go unseen: what is read would seem to be all there is."""
    known = {site.router for site in sites}
    for path, module in model.named_modules():
        inside = any(_lies_in(path, root) for root in stacks.values())
        if not (inside and isinstance(module, tuple(recorded)) and path not in known):
            continue
        block = type(model.get_submodule(path.rpartition(".")[0])).__name__
        if NOT_OFFERED.keys().isdisjoint((block, type(module).__name__)):
            raise _unsupported(model, f"the router {path!r} of a {block} block is not understood")


def _refuse_without_experts(model: nn.Module, recorded: set[type]) -> None:
    present = {type(module) for module in model.modules()} & recorded
    hints = sorted(kind.__name__ for kind in present) or _hints(model)
    if hints:
        raise _unsupported(model, f"the experts behind {hints[0]!r} are not known")
    raise NotMoEError(
        f"{type(model).__name__!r} is a dense model: none of its layers has routed experts. "
        f"Give a Mixture-of-Experts model. Tested families: {known_families()}."
    )


def _hints(model: nn.Module) -> list[str]:
    """Classes whose name says that they route, though nothing could be made of them."""
    names: Iterator[str] = (type(module).__name__ for module in model.modules())
    own = type(model).__name__.removesuffix("ForCausalLM").removesuffix("Model")
    return sorted({name for name in names if _HINT.search(name.replace(own, ""))})


def _unsupported(model: nn.Module, reason: str) -> UnsupportedArchitectureError:
    return UnsupportedArchitectureError(
        f"{type(model).__name__!r} cannot be read exactly: {reason}. Tested families: "
        f"{known_families()}; others are read if their structure is the same. "
        "docs/errors/unsupported-architecture.md says how to add one."
    )
