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

# Where transformers keeps the modules that it puts in the place of a model's own.
_REPLACEMENTS = ("transformers.integrations.", "transformers.quantizers.")
# And the lists of experts that it makes for methods that quantise linear layers only.
_LISTS = "transformers.quantizers."
_UNCOMPILED = (
    "Load the model without compiling it; experts alone may be compiled beforehand, by "
    "`experts.forward = torch.compile(experts.forward)`."
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
        routers = [children[name] for name in ("router", "gate") if name in children]
        experts = [children[name] for name in ("experts",) if name in children]
        checks = (
            (_spread_over_processes, (block, *routers, *experts)),
            (_hidden_operations, (block, *routers)),
            (_hidden_experts, experts),
            (_compiled, (*routers, block, *_enclosing(modules, path))),
        )
        for check, checked in checks:
            for found in filter(None, map(check, checked)):
                raise UnsupportedArchitectureError(
                    f"{type(model).__name__!r} cannot be read exactly: {path}: {found}"
                )


def _spread_over_processes(module: nn.Module) -> str | None:
    """Whether a module's weights are split, or its forward exchanges with other processes."""
    hooked = getattr(module, "_is_hooked", False) or getattr(module, "_is_expert_parallel", False)
    kinds = {type(weight).__name__ for weight in module.parameters(recurse=False)}
    if not hooked and "DTensor" not in kinds:
        return None
    return (
        f"{type(module).__name__} is spread over processes by tensor or expert parallelism, and a "
        "call of its experts reaches one process's share. Load the model in one process, without "
        '`tp_plan` and `distributed_config`; `device_map="auto"` spreads its layers over the '
        "devices there are."
    )


def _hidden_operations(module: nn.Module) -> str | None:
    """What took the place of the operations of a router or a block."""
    kind = type(module)
    if kind.__module__.startswith(_REPLACEMENTS):
        return (
            f"{kind.__name__} of {kind.__module__} stands in the place of the model's own module "
            "and routes in a kernel, so that the router's operations do not run. Load the weights "
            "dequantised: `from_pretrained(..., quantization_config=Mxfp4Config(dequantize=True))` "
            "for gpt-oss in MXFP4, then `load_model(model, tokenizer=tokenizer)`."
        )
    replacement = _replacement(module)
    if replacement is None or _is_compiled(replacement):
        return None
    return (
        f"the forward of {kind.__name__} was replaced by {_name(replacement)} (a hub kernel?), "
        "which need not run the operations that are read. Load the model with "
        "`use_kernels=False`, and wrap it before anything else replaces a forward."
    )


def _hidden_experts(experts: nn.Module) -> str | None:
    """What keeps the experts from being called on tokens of one's own."""
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
    kind = type(experts)
    if kind.__module__.startswith(_LISTS):
        return (
            f"{kind.__name__} of {kind.__module__} stands in the place of the model's own experts "
            "and gives what they write in another layout. Load the weights unquantised or "
            "dequantised, or quantised by a method that keeps the experts one module."
        )
    if _is_compiled_module(experts):
        return f"its experts were compiled as a module. {_UNCOMPILED}"
    replacement = _replacement(experts)
    if replacement is not None and "_hf_hook" in experts.__dict__:
        return (
            f"the forward of {kind.__name__} was replaced by {_name(replacement)} below "
            "a hook of accelerate, which a trace passes by. Load the model with "
            "`use_kernels=False`, or on one device."
        )
    return None


def _compiled(module: nn.Module) -> str | None:
    """Whether a router, a block or a module around it is run by a compiler.

    The compiler would go on into the trace's own code, and that changes from trace to trace.
    """
    if not _is_compiled_module(module) and not _is_compiled(_replacement(module)):
        return None
    return (
        f"{type(module).__name__} was compiled by torch.compile, which hides the operations that "
        f"are read. {_UNCOMPILED}"
    )


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


def _is_compiled(function: Callable | None) -> bool:
    """Whether a function came out of `torch.compile`."""
    return hasattr(function, "_torchdynamo_orig_callable")


def _is_compiled_module(module: nn.Module) -> bool:
    """Whether a module was compiled together with what is called around its forward."""
    wraps = isinstance(getattr(module, "_orig_mod", None), nn.Module)
    return wraps or getattr(module, "_compiled_call_impl", None) is not None


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
