"""What changed routing costs in training: the divergence of the routers from what they said."""

import nnsight
import torch
from jaxtyping import Float, Int
from torch import Tensor

from moe_interp.models import MoEModel, read_layers


def logits_and_routing(
    model: MoEModel, inputs: dict[str, Tensor]
) -> tuple[Float[Tensor, "batch pos d_vocab"], Float[Tensor, "layer batch pos expert"]]:
    """Run a forward, and read what every router said.

    Args:
        model: The model.
        inputs: What its forward is called with.

    Returns:
        The logits, and the log-probabilities that a softmax over all experts makes of each
        router's logits.
    """
    root, layers = model.nnsight, list(model.moe.values())
    with root.trace(inputs):
        read = nnsight.save(read_layers(layers, ("router_logits",)))
        logits = root.output.logits.save()
    said = [read[layer.layer]["router_logits"].float().log_softmax(-1) for layer in layers]
    return logits, torch.stack([one.to(logits.device) for one in said])


def routing_divergence(
    before: Float[Tensor, "layer batch pos expert"],
    now: Float[Tensor, "layer batch pos expert"],
    real: Int[Tensor, "batch pos"],
) -> Float[Tensor, ""]:
    """Mean of KL(before || now) over layers and real tokens, in nats.

    Args:
        before: Log-probabilities of the base model's routers.
        now: Those of the model as it is.
        real: 1 for real tokens, 0 for padding.

    Returns:
        The mean.
    """
    divergence = (before.exp() * (before - now)).sum(-1)
    return divergence[:, real.bool().to(now.device)].mean()
