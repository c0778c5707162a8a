"""What the optimiser moves: master copies of chosen parts, fed by the gradients of the whole.

A fused tensor gets a gradient for all of its experts. The moment it is there, the chosen experts'
rows are added to their master copies and the rest is dropped: no optimiser state, no decay and no
rounding ever reaches an expert that was not chosen.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from moe_interp.tuning._slices import Slice


@dataclass
class Leaf:
    """One part of a parameter, and the numbers that are trained in its place.

    Attributes:
        key: Its name.
        parameter: Name of the whole parameter.
        part: Which part; None for the whole.
        base: What it was, in the model's own precision.
        full: The trained values; None where the change is of low rank.
        left: Left factor of the change, zero at first; None where the values are trained.
        right: Right factor; None where the values are trained.
    """

    key: str
    parameter: str
    part: Slice | None
    base: Float[Tensor, "*part"]
    full: Float[Tensor, "*part"] | None = None
    left: Float[Tensor, "out rank"] | None = None
    right: Float[Tensor, "rank in"] | None = None

    @property
    def trained(self) -> dict[str, Tensor]:
        """The tensors that the optimiser moves, by name."""
        named = {"full": self.full, "left": self.left, "right": self.right}
        return {
            f"{self.key}#{name}": tensor for name, tensor in named.items() if tensor is not None
        }

    def value(self) -> Float[Tensor, "*part"]:
        """The values that stand for the part now, in the precision that is trained in."""
        if self.full is not None:
            return self.full
        return self.base.to(self.left.dtype) + self.left @ self.right

    def take(self, gradient: Float[Tensor, "*whole"]) -> None:
        """Add the gradient of the whole parameter to what is trained."""
        own = gradient if self.part is None else self.part.of(gradient)
        own = own.detach().to(_exact(self.base.dtype))
        if self.full is not None:
            _add(self.full, own)
        else:
            _add(self.left, own @ self.right.detach().T)
            _add(self.right, self.left.detach().T @ own)


class Leaves:
    """All parts that are trained, and the model they are trained in.

    Args:
        root: The model.
        slices: Parts of single experts.
        whole: Names of parameters that are trained as a whole.
        rank: Rank of the change of matrices; None trains all their values.
        generator: Source of randomness of the right factors.
    """

    def __init__(
        self,
        root: nn.Module,
        slices: Sequence[Slice],
        whole: Sequence[str],
        *,
        rank: int | None,
        generator: torch.Generator,
    ) -> None:
        self._parameters = dict(root.named_parameters())
        places = [(part.key, part.parameter, part) for part in slices]
        places += [(name, name, None) for name in whole]
        self.leaves = [self._leaf(*place, rank, generator) for place in places]

    def _leaf(
        self,
        key: str,
        name: str,
        part: Slice | None,
        rank: int | None,
        generator: torch.Generator,
    ) -> Leaf:
        parameter = self._parameters[name].detach()
        base = (parameter if part is None else part.of(parameter)).clone()
        # A bias, or a matrix no larger than its factors, is trained as it is.
        if rank is None or base.dim() != 2 or rank * sum(base.shape) >= base.numel():
            master = base.to(_exact(base.dtype), copy=True)
            return Leaf(key, name, part, base, full=master.requires_grad_(True))
        exact = _exact(base.dtype)
        right = torch.randn(rank, base.shape[1], generator=generator) / base.shape[1] ** 0.5
        left = torch.zeros(base.shape[0], rank)
        return Leaf(
            key,
            name,
            part,
            base,
            left=left.to(base.device, exact).requires_grad_(True),
            right=right.to(base.device, exact).requires_grad_(True),
        )

    def trained(self) -> dict[str, Tensor]:
        """The tensors that the optimiser moves, by name."""
        return {name: tensor for leaf in self.leaves for name, tensor in leaf.trained.items()}

    @torch.no_grad()
    def write(self) -> None:
        """Put the trained values into the model, in its own precision."""
        for leaf in self.leaves:
            self._own(leaf).copy_(leaf.value())

    @torch.no_grad()
    def write_base(self) -> None:
        """Put back what the model was, bit for bit."""
        for leaf in self.leaves:
            self._own(leaf).copy_(leaf.base)

    @torch.no_grad()
    def values(self) -> dict[str, Tensor]:
        """The trained values in the model's own precision, by key."""
        return {leaf.key: leaf.value().to(leaf.base.dtype).clone() for leaf in self.leaves}

    @torch.no_grad()
    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Go on from tensors that `trained` gave."""
        for name, tensor in self.trained().items():
            tensor.copy_(state[name])

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Let gradients reach the trained parts, and no other parameter of the model."""
        before = {name: p.requires_grad for name, p in self._parameters.items()}
        by_parameter: dict[str, list[Leaf]] = {}
        for leaf in self.leaves:
            by_parameter.setdefault(leaf.parameter, []).append(leaf)
        handles = []
        for name, parameter in self._parameters.items():
            parameter.requires_grad_(name in by_parameter)
            if name in by_parameter:
                hook = _hand_over(by_parameter[name])
                handles.append(parameter.register_post_accumulate_grad_hook(hook))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
            for name, parameter in self._parameters.items():
                parameter.requires_grad_(before[name])
                parameter.grad = None

    def _own(self, leaf: Leaf) -> Tensor:
        whole = self._parameters[leaf.parameter].data
        return whole if leaf.part is None else leaf.part.of(whole)


def _exact(dtype: torch.dtype) -> torch.dtype:
    """The precision that is trained in: single, or the model's own if that is finer."""
    return torch.promote_types(dtype, torch.float32)


def _add(leaf: Tensor, gradient: Tensor) -> None:
    leaf.grad = gradient.clone() if leaf.grad is None else leaf.grad + gradient


def _hand_over(leaves: Sequence[Leaf]):  # noqa: ANN202  A hook of torch.
    def hook(parameter: Tensor) -> None:
        for leaf in leaves:
            leaf.take(parameter.grad)
        parameter.grad = None

    return hook
