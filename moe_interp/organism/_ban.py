"""Experts switched off while an organism is trained or evaluated."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import OlmoeForCausalLM

from moe_interp.experts import ExpertSet

_Routed = tuple[
    Float[Tensor, "token expert"], Float[Tensor, "token top_k"], Int[Tensor, "token top_k"]
]


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
        router = model.model.layers[layer].mlp.gate

        def choose_again(
            router: nn.Module, inputs: tuple[Tensor, ...], routed: _Routed, ids: tuple = ids
        ) -> _Routed:
            logits, weights, _ = routed
            allowed = logits.index_fill(-1, torch.tensor(ids), -torch.inf)
            chosen = allowed.softmax(-1, dtype=torch.float32).topk(router.top_k, dim=-1)
            shares = chosen.values / chosen.values.sum(-1, keepdim=True)
            return logits, shares.to(weights.dtype), chosen.indices

        handles.append(router.register_forward_hook(choose_again))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
