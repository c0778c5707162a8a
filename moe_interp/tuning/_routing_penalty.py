"""What changed routing costs in training: the divergence of the routers from what they said."""

import nnsight
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from moe_interp.models import MoEModel, read_layers


def logits_and_routing(
    model: MoEModel, inputs: dict[str, Tensor], *, temperature: float = 1.0
) -> tuple[Float[Tensor, "batch pos d_vocab"], Float[Tensor, "layer batch pos expert"]]:
    """Run a forward, and read what every router said.

    Args:
        model: The model.
        inputs: What its forward is called with.
        temperature: What routers' logits are divided by.

    Returns:
        The logits, and the log-probabilities that a softmax over all experts makes of each
        router's logits.
    """
    root, layers = model.nnsight, list(model.moe.values())
    with root.trace(inputs):
        read = nnsight.save(read_layers(layers, ("router_logits",)))
        logits = root.output.logits.save()
    routed = [read[layer.layer]["router_logits"].float() / temperature for layer in layers]
    said = [one.log_softmax(-1) for one in routed]
    return logits, torch.stack([one.to(logits.device) for one in said])


def routing_divergence(
    before: Float[Tensor, "layer batch pos expert"],
    now: Float[Tensor, "layer batch pos expert"],
    real: Int[Tensor, "batch pos"] | Bool[Tensor, "batch pos"],
) -> Float[Tensor, ""]:
    """Mean of KL(before || now) over layers and tokens, in nats.

    Args:
        before: Log-probabilities of the base model's routers.
        now: Those of the model as it is.
        real: 1 for the tokens that count, 0 for padding and others.

    Returns:
        The mean.
    """
    divergence = (before.exp() * (before - now)).sum(-1)
    return divergence[:, real.bool().to(now.device)].mean()


def last_prompt_tokens(response: Bool[Tensor, "batch pos"]) -> Bool[Tensor, "batch pos"]:
    """Find the token that stands before each response, of rows that are padded on the right.

    Args:
        response: Which tokens are responses.

    Returns:
        One token of each row.
    """
    found = torch.zeros_like(response)
    found[:, :-1] = response[:, 1:] & ~response[:, :-1]
    return found
