"""At which prompt tokens an intervention holds: everywhere, in a span, or where a mask says."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from moe_interp.errors import SpanError

#: A span's name, or one boolean for each real token of each prompt, padding not counted.
Tokens = (
    str | Sequence[Sequence[bool]] | Bool[np.ndarray, "prompt pos"] | Bool[Tensor, "prompt pos"]
)


def frozen_tokens(tokens: Tokens | None) -> str | tuple[tuple[bool, ...], ...] | None:
    """The same choice of tokens as a value that cannot change and can be compared.

    Raises:
        ValueError: If a mask is empty.
    """
    if tokens is None or isinstance(tokens, str):
        return tokens
    rows = tokens.tolist() if isinstance(tokens, np.ndarray | Tensor) else tokens
    frozen = tuple(tuple(bool(kept) for kept in row) for row in rows)
    if not frozen:
        raise ValueError("`tokens` is an empty mask; give one row of booleans for each prompt.")
    return frozen


def token_mask(
    tokens: str | tuple[tuple[bool, ...], ...],
    spans: Mapping[str, Bool[Tensor, "batch pos"]],
    prompt_index: Int[np.ndarray, " batch"],
) -> Bool[Tensor, "batch pos"]:
    """Lay the chosen tokens over a padded batch.

    Args:
        tokens: A span's name, or one row of booleans for each prompt.
        spans: The spans of the batch; ``"prompt"`` marks its real tokens.
        prompt_index: Which prompt each row of the batch is.

    Returns:
        True at the chosen tokens, False elsewhere and at padding.

    Raises:
        SpanError: If there is no span of that name.
        ValueError: If the mask does not fit the prompts.
    """
    if isinstance(tokens, str):
        if tokens not in spans:
            raise SpanError(
                f"There is no span {tokens!r}. Spans are {', '.join(map(repr, spans))}; or give a "
                "mask with one boolean for each token of each prompt."
            )
        return spans[tokens]
    if len(tokens) <= int(prompt_index.max()):
        raise ValueError(
            f"The `tokens` mask has {len(tokens)} rows, but there are at least "
            f"{int(prompt_index.max()) + 1} prompts. Give one row for each prompt."
        )
    laid = torch.zeros_like(spans["prompt"])
    for row, prompt in enumerate(prompt_index):
        real = spans["prompt"][row].nonzero().squeeze(-1)
        given = tokens[prompt]
        if len(given) < len(real) or any(given[len(real) :]):
            raise ValueError(
                f"The `tokens` mask of prompt {prompt} has {len(given)} entries, but the prompt "
                f"has {len(real)} tokens. Give one boolean for each, and False beyond."
            )
        laid[row, real] = torch.tensor(given[: len(real)])
    return laid
