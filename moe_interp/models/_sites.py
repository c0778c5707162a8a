"""Where the routers and experts of a model are: plain facts, read off its module tree.

Nothing here needs weights, so a model on the meta device is described as well. What cannot be
read exactly is refused here, by name, before anything of it is read.
"""

import re
from collections.abc import Iterator

from torch import nn

from moe_interp.errors import NotMoEError
from moe_interp.models._describe import describe_block, experts_arguments, unsupported
from moe_interp.models._kernels import refuse_kernels
from moe_interp.models._registry import BLOCKS, NOT_OFFERED, REFUSED
from moe_interp.models._site import Site
from moe_interp.models._support import known_families

_HINT = re.compile(r"moe|router|sparse_?mixture|mixture_?of_?experts", re.IGNORECASE)


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
            sites.append(describe_block(modules, path, stack, recorded))
    if not sites:
        _refuse_without_experts(model, recorded)
    _refuse_left_out(model, recorded, sites, stacks)
    layers = [(site.stack, site.layer) for site in sites]
    if len(set(layers)) != len(layers):
        raise unsupported(model, "several of its MoE blocks lie in the same decoder layer")
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
    return any(experts_arguments(child) for child in children.values())


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


def _refuse_known(model: nn.Module, recorded: set[type]) -> None:
    present = {type(module).__name__: module for module in model.modules()}
    for name, reason in sorted(REFUSED.items()):
        found = reason(present[name]) if name in present else None
        if found is not None:
            raise unsupported(model, f"{name}: {found}")


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
            raise unsupported(model, f"the router {path!r} of a {block} block is not understood")


def _refuse_without_experts(model: nn.Module, recorded: set[type]) -> None:
    present = {type(module) for module in model.modules()} & recorded
    hints = sorted(kind.__name__ for kind in present) or _hints(model)
    if hints:
        raise unsupported(model, f"the experts behind {hints[0]!r} are not known")
    raise NotMoEError(
        f"{type(model).__name__!r} is a dense model: none of its layers has routed experts. "
        f"Give a Mixture-of-Experts model. Tested families: {known_families()}."
    )


def _hints(model: nn.Module) -> list[str]:
    """Classes whose name says that they route, though nothing could be made of them."""
    names: Iterator[str] = (type(module).__name__ for module in model.modules())
    own = type(model).__name__.removesuffix("ForCausalLM").removesuffix("Model")
    return sorted({name for name in names if _HINT.search(name.replace(own, ""))})
