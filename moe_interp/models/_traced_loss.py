"""How well a model foretells a text, reduced while the logits are at hand.

Plain code, for the reasons given in ``_traced_parts``.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor


def text_loss(
    logits: 'Float[Tensor, "batch pos d_vocab"]',
    token_ids: 'Int[Tensor, "batch pos"]',
    real: 'Int[Tensor, "batch pos"]',
) -> 'Float[Tensor, " batch"]':
    """Give each text's mean negative log-likelihood, in nats per token but its first.

    Row by row, so that no second copy of a batch's logits is ever held.
    """
    losses = []
    for row, ids, kept in zip(logits, token_ids.to(logits.device), real, strict=True):
        # The token at a place is foretold by the logits of the place before it.
        place = kept.nonzero().flatten().to(logits.device)
        foretold, seen = row[place[:-1]].float(), ids[place[1:]]
        losses.append(torch.nn.functional.cross_entropy(foretold, seen))
    return torch.stack(losses)
