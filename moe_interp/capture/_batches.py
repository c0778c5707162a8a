"""Which prompts share a batch: those of like length, so that little of it is padding."""

import numpy as np
from jaxtyping import Int
from numpy import ndarray

AUTO_TOKENS = 4096


def plan_batches(
    lengths: Int[ndarray, " prompt"], *, batch_size: int | str = "auto"
) -> list[list[int]]:
    """Divide prompts into batches of like length.

    Args:
        lengths: Number of tokens of each prompt.
        batch_size: Prompts in a batch, or ``"auto"``: as many as make 4,096 tokens with padding.

    Returns:
        The prompts of each batch, longest first: what does not fit into memory fails at once.

    Raises:
        ValueError: If `batch_size` is neither a positive integer nor ``"auto"``.

    Example:
        >>> plan_batches(np.array([3, 9, 4, 8]), batch_size=2)
        [[1, 3], [2, 0]]
    """
    if batch_size != "auto" and (isinstance(batch_size, str) or batch_size < 1):
        raise ValueError(f"`batch_size` must be a positive integer or 'auto', got {batch_size!r}.")
    order = np.argsort(-lengths, kind="stable").tolist()
    batches: list[list[int]] = []
    while order:
        longest = int(lengths[order[0]])
        size = max(1, AUTO_TOKENS // longest) if batch_size == "auto" else int(batch_size)
        batches.append(order[:size])
        order = order[size:]
    return batches
