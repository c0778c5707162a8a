"""freeze_except: train with one's own loop, and let the gradient reach chosen experts alone."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from moe_interp.experts import Expert, ExpertSet
from moe_interp.interventions import as_expert_set
from moe_interp.models import MoEModel
from moe_interp.tuning._slices import Slice, expert_slices, router_parameters
from moe_interp.tuning._untouched import check_untouched, untouched_digests


@contextmanager
def freeze_except(
    model: MoEModel,
    experts: ExpertSet | Iterable[Expert | tuple[int, int] | str] | str,
    *,
    routers: bool = False,
) -> Iterator[list[nn.Parameter]]:
    """Freeze everything but chosen experts while a training loop of one's own runs.

    Experts share fused tensors, so that the optimiser gets whole tensors whose gradient is 0 for
    experts that were not chosen. An optimiser that decays weights, or that moves what has no
    gradient, still changes those: that is found out at the end, and refused. `tune_experts` has
    no such problem.

    Args:
        model: The model.
        experts: The experts to train.
        routers: Whether the routers of all MoE layers are trained as well.

    Yields:
        The parameters to give to an optimiser; frozen again at the end as they were before.

    Raises:
        ValueError: If an expert does not exist.
        TuningError: If something changed that was not chosen.

    Example:
        >>> import moe_interp as mi
        >>> model = mi.load_model("organism:topic")
        >>> with freeze_except(model, "L3E8") as parameters:
        ...     optimiser = torch.optim.SGD(parameters, lr=0.01)
        ...     ids = torch.tensor([[1, 2, 60, 61]])
        ...     model.nnsight._module(input_ids=ids, labels=ids).loss.backward()
        ...     optimiser.step()
    """
    root = model.nnsight._module
    slices = expert_slices(model, as_expert_set(experts))
    whole = router_parameters(model, model.moe) if routers else []
    named = dict(root.named_parameters())
    chosen: dict[str, list[Slice]] = {}
    for part in slices:
        chosen.setdefault(part.parameter, []).append(part)
    before = {name: parameter.requires_grad for name, parameter in named.items()}
    digests = untouched_digests(root, slices, whole)
    handles = [named[name].register_hook(_only(parts)) for name, parts in chosen.items()]
    for name, parameter in named.items():
        parameter.requires_grad_(name in chosen or name in whole)
        parameter.grad = None
    try:
        yield [named[name] for name in (*chosen, *whole)]
    finally:
        for handle in handles:
            handle.remove()
        for name, parameter in named.items():
            parameter.requires_grad_(before[name])
    check_untouched(root, digests, untouched_digests(root, slices, whole))


def _only(parts: list[Slice]):  # noqa: ANN202  A hook of torch.
    def hook(gradient: Tensor) -> Tensor:
        kept = torch.zeros_like(gradient)
        for part in parts:
            part.of(kept).copy_(part.of(gradient))
        return kept

    return hook
