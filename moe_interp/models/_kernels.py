"""Which replaced routers and experts can be read, and a refusal by name of the others.

transformers replaces parts of a MoE block: it quantises weights, puts kernels over forwards,
spreads experts over processes. What stands behind the call ``experts(hidden, index, weights)`` does
not matter here, for an expert's output is had by that very call: every experts implementation
(transformers' own or registered by a user), quantised weights and a kernel over the experts alone
are read as they are, and the self-check has the last word. What breaks that call, or takes the
place of the router's and the block's own operations, is refused before any of it is read.
"""

from collections.abc import Callable, Iterator

import torch
from nnsight.intervention.source import Controller
from torch import nn

from moe_interp.errors import UnsupportedArchitectureError

_PARTS = ("router", "gate", "experts")
# Where transformers keeps the modules that it puts in the place of a model's own.
_REPLACEMENTS = ("transformers.integrations.", "transformers.quantizers.")
_UNCOMPILED = (
    "Load the model without compiling it, or compile modules in place by `module.compile()`, "
    "which leaves their forward in sight."
)


def refuse_kernels(model: nn.Module) -> None:
    """Refuse a model in which something hides what its routers or experts compute.

    Neither nnsight's own wrapping nor the hooks by which accelerate places a model on several
    devices count as replacements. Weights are not read, only their kind.

    Args:
        model: The Hugging Face model.

    Raises:
        UnsupportedArchitectureError: If a router, its block or its experts were replaced by
            something that cannot be read exactly; the message names it, and the way around it.
    """
    modules = dict(model.named_modules())
    for path, block in modules.items():
        children = dict(block.named_children())
        if "experts" not in children and "router" not in children:
            continue
        parts = {name: children[name] for name in _PARTS if name in children}
        found = _hidden_in_block(block, parts)
        for outer in _enclosing(modules, path):
            found = found or _compiled_around(outer)
        if found is not None:
            raise UnsupportedArchitectureError(
                f"{type(model).__name__!r} cannot be read exactly: {path}: {found}"
            )


def _hidden_in_block(block: nn.Module, parts: dict[str, nn.Module]) -> str | None:
    """What hides the routing of one block, why that matters and what to do; None if nothing."""
    for part in (block, *parts.values()):
        if _is_distributed(part):
            return (
                f"{type(part).__name__} is spread over processes by tensor or expert parallelism, "
                "and a call of its experts reaches one process's share. Load the model in one "
                'process, without `tp_plan` and `distributed_config`; `device_map="auto"` spreads '
                "its layers over the devices there are."
            )
    for part in (block, parts.get("router"), parts.get("gate")):
        found = None if part is None else _hidden_operations(part)
        if found is not None:
            return found
    return _hidden_experts(parts["experts"]) if "experts" in parts else None


def _hidden_operations(module: nn.Module) -> str | None:
    """What took the place of the operations of a router or a block."""
    kind = type(module)
    if _is_compiled_wrapper(module):
        return f"its router was wrapped by `torch.compile(module)`. {_UNCOMPILED}"
    if kind.__module__.startswith(_REPLACEMENTS):
        return (
            f"{kind.__name__} of {kind.__module__} stands in the place of the model's own module "
            "and routes in a kernel, so that the router's operations do not run. Load the weights "
            "dequantised: `from_pretrained(..., quantization_config=Mxfp4Config(dequantize=True))` "
            "for gpt-oss in MXFP4, then `load_model(model, tokenizer=tokenizer)`."
        )
    replacement = _replacement(module)
    if replacement is None:
        return None
    if _is_compiled(replacement):
        return f"the forward of {kind.__name__} was compiled. {_UNCOMPILED}"
    return (
        f"the forward of {kind.__name__} was replaced by {_name(replacement)} (a hub kernel?), "
        "which need not run the operations that are read. Load the model with "
        "`use_kernels=False`, and wrap it before anything else replaces a forward."
    )


def _hidden_experts(experts: nn.Module) -> str | None:
    """What keeps the experts from being called on tokens of one's own."""
    if _is_compiled_wrapper(experts):
        return f"its experts were wrapped by `torch.compile(module)`. {_UNCOMPILED}"
    implementation = _implementation(experts)
    if implementation == "deepgemm_megamoe":
        return (
            "the experts implementation 'deepgemm_megamoe' exchanges tokens between processes "
            'inside its kernel. Load the model with `experts_implementation="deepgemm"` or '
            '`"grouped_mm"`.'
        )
    if implementation == "grouped_mm" and _has_float64(experts):
        return (
            "the experts implementation 'grouped_mm' has no float64. Load the model with "
            '`experts_implementation="eager"` or `"batched_mm"`, or in float32.'
        )
    replacement = _replacement(experts)
    if replacement is not None and "_hf_hook" in experts.__dict__:
        return (
            f"the forward of {type(experts).__name__} was replaced by {_name(replacement)} below "
            "a hook of accelerate, which a trace passes by. Load the model with "
            "`use_kernels=False`, or on one device."
        )
    return None


def _compiled_around(module: nn.Module) -> str | None:
    """A compiled forward around a block: its compiler cannot follow the operations inside.

    A module wrapped or compiled as a whole can be read: its compiler gives way to nnsight.
    """
    replacement = None if _is_compiled_wrapper(module) else _replacement(module)
    if replacement is None or not _is_compiled(replacement):
        return None
    return f"the forward of {type(module).__name__} around it was compiled. {_UNCOMPILED}"


def _enclosing(modules: dict[str, nn.Module], path: str) -> Iterator[nn.Module]:
    """The modules that a module lies in, from the innermost to the model."""
    while path:
        path = path.rpartition(".")[0]
        yield modules[path]


def _replacement(module: nn.Module) -> Callable | None:
    """What was put over a module's forward; None where the forward of its class runs."""
    attributes = vars(module)
    if "_hf_hook" in attributes:
        # accelerate puts its wrapper in the instance, and what was there before beside it.
        found = attributes.get("_old_forward")
    else:
        found = attributes.get("forward")
    if isinstance(found, Controller):
        found = found.state.original
    own = type(module).forward
    if found is None or found is own or getattr(found, "__func__", None) is own:
        return None
    return found


def _is_distributed(module: nn.Module) -> bool:
    """Whether a module's weights are split over processes, or its forward exchanges with others."""
    hooked = getattr(module, "_is_hooked", False) or getattr(module, "_is_expert_parallel", False)
    kinds = {type(weight).__name__ for weight in module.parameters(recurse=False)}
    return bool(hooked) or "DTensor" in kinds


def _is_compiled(function: Callable) -> bool:
    """Whether a function came out of `torch.compile`."""
    return hasattr(function, "_torchdynamo_orig_callable")


def _is_compiled_wrapper(module: nn.Module) -> bool:
    """Whether a module came out of `torch.compile`, which hides the module's class and children."""
    return isinstance(getattr(module, "_orig_mod", None), nn.Module)


def _implementation(experts: nn.Module) -> str | None:
    """The experts implementation of a module that transformers lets choose one."""
    if not hasattr(experts, "is_concatenated"):
        return None
    return getattr(experts.config, "_experts_implementation", None)


def _has_float64(module: nn.Module) -> bool:
    return any(weight.dtype == torch.float64 for weight in module.parameters(recurse=False))


def _name(function: Callable) -> str:
    """How a function is called, for people."""
    return repr(getattr(function, "__qualname__", type(function).__name__))
