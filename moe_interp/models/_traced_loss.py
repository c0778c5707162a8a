"""How well a model foretells a text, reduced while the logits are at hand.

Plain code, for the reasons given in ``_traced_parts``.
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


def inside_loss(
    logits: 'Float[Tensor, "batch pos d_vocab"]',
    token_ids: 'Int[Tensor, "batch pos"]',
    inside: 'Bool[Tensor, "batch pos"]',
) -> 'Float[Tensor, " batch"]':
    """Give the mean negative log-likelihood of the tokens inside, in nats, row by row.

    The first token of a row is foretold by nothing and must not be inside. Row by row, so that no
    second copy of a batch's logits is ever held.
    """
    losses = []
    for row, ids, kept in zip(logits, token_ids.to(logits.device), inside, strict=True):
        place = kept.nonzero().flatten().to(logits.device)
        losses.append(torch.nn.functional.cross_entropy(row[place - 1].float(), ids[place]))
    return torch.stack(losses)
