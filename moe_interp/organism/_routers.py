"""Changes to the routers while an organism is trained or evaluated: bans, noise, fresh draws."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import OlmoeForCausalLM

from moe_interp.experts import ExpertSet

_Logits = Float[Tensor, "token expert"]
_Routed = tuple[_Logits, Float[Tensor, "token top_k"], Int[Tensor, "token top_k"]]


@contextmanager
def banned(model: OlmoeForCausalLM, experts: ExpertSet) -> Iterator[None]:
    """Take experts out of the routers' choice inside the ``with`` block.

    The next best experts are chosen instead and share the weight. Kept apart from
    ``moe_interp.interventions``, so that the truth on an organism's card does not rest on the
    code that is tested against it.

    Args:
        model: The organism.
        experts: The experts that must not be chosen.

    Yields:
        Nothing; the routers are as before on leaving.
    """
    handles = []
    for layer, ids in experts.by_layer().items():
        excluded = torch.tensor(ids)
        handles.append(
            _choose_by(
                model.model.layers[layer].mlp.gate,
                lambda logits, excluded=excluded: logits.index_fill(-1, excluded, -torch.inf),
            )
        )
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def noisy(model: OlmoeForCausalLM, std: float) -> Iterator[None]:
    """Add Gaussian noise to the logits that the routers choose by, inside the ``with`` block.

    Noisy top-k gating. Words are then routed apart only where the routers mean it.

    Args:
        model: The organism.
        std: Standard deviation of the noise; nothing is drawn if it is 0.

    Yields:
        Nothing; the routers are as before on leaving.

    References:
        Shazeer et al. (2017), "Outrageously large neural networks: the sparsely-gated
        mixture-of-experts layer", section 2.1.
    """
    handles = [
        _choose_by(layer.mlp.gate, lambda logits: logits + std * torch.randn_like(logits))
        for layer in (model.model.layers if std > 0 else ())
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def draw_routers(model: OlmoeForCausalLM, *, std: float) -> None:
    """Fill every router with independent Gaussian entries from torch's generator.

    Args:
        model: The model to change.
        std: Standard deviation of an entry.
    """
    with torch.no_grad():
        for layer in model.model.layers:
            layer.mlp.gate.weight.normal_(std=std)


def _choose_by(router: nn.Module, change: Callable[[_Logits], _Logits]) -> RemovableHandle:
    """Let a router choose by changed logits; those it reports stay as they are."""

    def choose_again(router: nn.Module, inputs: tuple[Tensor, ...], routed: _Routed) -> _Routed:
        logits, weights, _ = routed
        chosen = change(logits).softmax(-1, dtype=torch.float32).topk(router.top_k, dim=-1)
        shares = chosen.values / chosen.values.sum(-1, keepdim=True)
        return logits, shares.to(weights.dtype), chosen.indices

    return router.register_forward_hook(choose_again)
