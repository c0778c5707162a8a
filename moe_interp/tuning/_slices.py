"""Where the parameters of single experts lie: slices of fused tensors, or tensors of their own.

Most models keep the experts of a layer in fused tensors with one leading entry for each expert; a
few stack them in rows, or keep modules of their own. Training and merging work on these slices,
so that no model is ever taken apart.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor, nn

from moe_interp.errors import UnsupportedQuantityError
from moe_interp.experts import Expert, ExpertSet
from moe_interp.interventions import check_experts
from moe_interp.models import MoEModel

# A parameter of one expert's own module, such as ``expert_3.wi.weight`` or ``3.up_proj.weight``.
_OWN_MODULE = re.compile(r"^(?:expert_)?(\d+)\.")


@dataclass(frozen=True)
class Slice:
    """A part of a parameter that belongs to one expert alone.

    Attributes:
        parameter: The parameter's name in the model.
        expert: Whose it is.
        rows: First row, and the one after the last; None for a parameter of the expert alone.
        fused: Whether the rows are one entry of a fused tensor, whose axis falls away.
    """

    parameter: str
    expert: Expert
    rows: tuple[int, int] | None
    fused: bool

    @property
    def key(self) -> str:
        """A name of its own: the parameter and the expert."""
        return f"{self.parameter}|{self.expert}"

    def of(self, tensor: Float[Tensor, "*shape"]) -> Float[Tensor, "*part"]:
        """Look into the whole parameter, or its gradient.

        Args:
            tensor: The whole.

        Returns:
            A view of the expert's part.
        """
        if self.rows is None:
            return tensor
        start, stop = self.rows
        return tensor[start] if self.fused else tensor[start:stop]


def expert_slices(model: MoEModel, experts: ExpertSet) -> list[Slice]:
    """Find every parameter, or part of one, that belongs to one of the experts alone.

    Args:
        model: The model.
        experts: The experts.

    Returns:
        Their slices, in the order of the experts.

    Raises:
        ValueError: If a layer or expert does not exist.
        UnsupportedQuantityError: If an expert has no parameters, or they cannot be told from
            those of others.
    """
    check_experts(model, experts)
    root = model.nnsight._module
    found: list[Slice] = []
    for layer, ids in experts.by_layer().items():
        facts = model.moe[layer].facts
        parts = _experts_modules(root, facts["block"], facts["experts"])
        for expert in ids:
            own = list(_slices_of(parts, Expert(layer, expert), model.moe[layer].n_experts))
            if not own:
                raise UnsupportedQuantityError(
                    f"{Expert(layer, expert)} of {model.architecture.model_class!r} has no "
                    "parameters of its own: it passes tokens on, or skips them. Choose others."
                )
            found += own
    return found


def router_parameters(model: MoEModel, layers: Iterable[int]) -> list[str]:
    """Name all parameters of the routers of layers.

    Args:
        model: The model.
        layers: Absolute MoE layers.

    Returns:
        The parameters' names in the model.
    """
    root, names = model.nnsight._module, []
    for layer in layers:
        path = model.moe[layer].facts["router"]
        own = root.get_submodule(path).named_parameters()
        names += [f"{path}.{name}" for name, _ in own]
    return names


def _experts_modules(root: nn.Module, block: str, experts: str) -> dict[str, nn.Module]:
    """The modules that hold the experts' weights: one, or several of a kind in its block."""
    kind = type(root.get_submodule(experts))
    within = root.get_submodule(block).named_modules(prefix=block)
    alike = {path: module for path, module in within if type(module) is kind}
    # Where the router has experts of the same kind, those of other sizes are not meant.
    return alike if experts in alike else {experts: root.get_submodule(experts)}


def _slices_of(parts: dict[str, nn.Module], expert: Expert, n_experts: int) -> Iterable[Slice]:
    for path, module in parts.items():
        # An expert that only passes tokens on may have an entry in some tensors but not in all.
        fused = [p for p in module.parameters() if p.dim() > 2 and len(p) <= n_experts]
        if fused and expert.expert >= min(map(len, fused)):
            continue
        for name, parameter in module.named_parameters():
            place = _place(name, parameter, expert.expert, n_experts, bool(fused))
            if place is not None:
                yield Slice(f"{path}.{name}", expert, *place)


def _place(
    name: str, parameter: nn.Parameter, expert: int, n_experts: int, beside_fused: bool
) -> tuple[tuple[int, int] | None, bool] | None:
    """Rows of the expert and whether they are an entry; None if the parameter is not its own."""
    own = _OWN_MODULE.match(name)
    if own:
        return (None, False) if int(own.group(1)) == expert else None
    n_rows = len(parameter)
    if parameter.dim() > 2 or (beside_fused and parameter.dim() == 2 and n_rows == n_experts):
        return (expert, expert + 1), True
    if not beside_fused and parameter.dim() == 2 and n_rows % n_experts == 0:
        size = n_rows // n_experts
        return (expert * size, (expert + 1) * size), False
    return None
