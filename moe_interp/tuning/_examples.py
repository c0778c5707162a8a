"""Prompts with responses as batches to train on: the loss counts the response alone."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from moe_interp.errors import PromptError
from moe_interp.interventions import end_tokens, forward_arguments
from moe_interp.models import MoEModel
from moe_interp.prompts import Encoded, PromptSet, TokenizedPrompts, listed, tokenize


@dataclass(frozen=True)
class Examples:
    """Prompts and responses as tokens.

    Attributes:
        tokens: All of them, the token that ends a text behind each response.
    """

    tokens: TokenizedPrompts

    def __len__(self) -> int:
        return len(self.tokens.token_ids)

    def batches(self, batch_size: int, rng: np.random.Generator | None = None) -> Iterator[Encoded]:
        """Cut the examples into batches.

        Args:
            batch_size: Examples in each; the last may have fewer.
            rng: Source of their order; in the order given without.

        Yields:
            Each batch, padded on the right.
        """
        order = np.arange(len(self)) if rng is None else rng.permutation(len(self))
        for start in range(0, len(order), batch_size):
            chosen = order[start : start + batch_size].tolist()
            yield self.tokens.batch(chosen, padding_side="right")


def examples_of(model: MoEModel, data: PromptSet) -> Examples:
    """Read prompts and responses as the model would write them.

    Args:
        model: The model; the token that ends its texts closes each response.
        data: Prompts that all have a response.

    Returns:
        The examples.

    Raises:
        PromptError: If a prompt has no response, or an example is longer than the model reads.
    """
    if not isinstance(data, PromptSet):
        raise PromptError(
            "`data` must be a PromptSet whose prompts have a `response`, got "
            f"{type(data).__name__!r}. Build it from Prompt(text, response=...)."
        )
    without = [prompt.id for prompt in data if prompt.response is None]
    if without:
        raise PromptError(
            f"{len(without)} of {len(data)} prompts have no `response` to be trained on: "
            f"{listed(without)}. Give each one, or leave them out with `select`."
        )
    limit = None if model.max_positions is None else model.max_positions - 1
    tokens = tokenize(model.tokenizer, data, max_length=limit, spans=("response",))
    ends = end_tokens(model)
    if not ends:
        return Examples(tokens)
    responses = tuple(np.append(inside, True) for inside in tokens.spans["response"])
    return Examples(
        replace(
            tokens,
            token_ids=tuple((*ids, ends[0]) for ids in tokens.token_ids),
            token_text=tuple((*text, "") for text in tokens.token_text),
            spans={"response": responses},
        )
    )


def response_loss(
    logits: Float[Tensor, "batch pos d_vocab"],
    token_ids: Int[Tensor, "batch pos"],
    response: Bool[Tensor, "batch pos"],
) -> Float[Tensor, ""]:
    """Mean negative log-likelihood of the responses' tokens, each counting the same, in nats.

    Args:
        logits: What the model says after each token.
        token_ids: The tokens.
        response: Which of them are responses.

    Returns:
        The loss.
    """
    foretold = response[:, 1:].to(logits.device)
    # Half precision holds too few digits for a sum over a vocabulary.
    exact = logits[:, :-1][foretold].to(torch.promote_types(logits.dtype, torch.float32))
    seen = token_ids.to(logits.device)[:, 1:][foretold]
    return torch.nn.functional.cross_entropy(exact, seen)


def inputs_of(model: MoEModel, encoded: Encoded) -> dict[str, Any]:
    """What the model's forward is called with, on its device, without a cache."""
    inputs, _ = forward_arguments(model, encoded)
    return {name: tensor.to(model.device) for name, tensor in inputs.items()} | {"use_cache": False}
