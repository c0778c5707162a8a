"""How a long capture is divided: blocks of prompts that are committed whole, and chunks on disk.

A block is what a kill can cost. Its prompts follow each other, so that what is known by prompt
fills chunks of its own. Tokens do not come in equal numbers: the few rows in which two blocks
meet in one chunk are kept beside the arrays until both are there.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from jaxtyping import Int
from numpy import ndarray

#: Batches in a block, and the tokens and bytes that it may have.
BATCHES_PER_BLOCK = 8
_BLOCK_TOKENS = 4 * 4096
_BLOCK_BYTES = 64 * 2**20
_CHUNK_BYTES = 4 * 2**20
_CHUNK_TOKENS = (16, 4096)


@dataclass(frozen=True)
class BlockPlan:
    """Which prompts are committed together, and how arrays are cut on disk.

    Attributes:
        n_prompts: All prompts.
        n_tokens: All tokens.
        block: Prompts in a block; the last one may have fewer.
        rows: Tokens in a chunk.
        draws: Random routers in a chunk.
    """

    n_prompts: int
    n_tokens: int
    block: int
    rows: int
    draws: int

    @property
    def n_blocks(self) -> int:
        """Number of blocks."""
        return -(-self.n_prompts // self.block)

    def prompts(self, block: int) -> tuple[int, int]:
        """The prompts of a block.

        Args:
            block: Which block.

        Returns:
            Position of its first prompt, and that after its last.
        """
        return block * self.block, min((block + 1) * self.block, self.n_prompts)

    def inner(self, first: int, end: int) -> tuple[int, int]:
        """The rows of a block that fill chunks which no other block has a part in.

        Args:
            first: The first row of the block.
            end: The row after its last.

        Returns:
            The same for the rows inside; equal if there are none.
        """
        start = -(-first // self.rows) * self.rows
        stop = end if end == self.n_tokens else end // self.rows * self.rows
        return (start, stop) if start < stop else (first, first)

    def edges(self, first: int, end: int) -> list[tuple[int, int]]:
        """The other rows of a block, cut where chunks end.

        Args:
            first: The first row of the block.
            end: The row after its last.

        Returns:
            Where each part begins and ends.
        """
        start, stop = self.inner(first, end)
        if start == stop:
            start = stop = min(-(-first // self.rows) * self.rows, end)
        return [(low, high) for low, high in ((first, start), (stop, end)) if low < high]

    def to_dict(self) -> dict[str, int]:
        """The plan as JSON-safe values."""
        return asdict(self)


def plan_store(
    lengths: Int[ndarray, " prompt"],
    sizes: Mapping[str, int],
    dtypes: Mapping[str, Any],
    dims: Mapping[str, tuple[str, ...]],
    *,
    batch_size: int | str,
) -> BlockPlan:
    """Divide a capture so that a block and a chunk stay small, whatever the model and prompts.

    Args:
        lengths: Number of tokens of each prompt.
        sizes: Length of every dimension.
        dtypes: What is recorded, and in which format.
        dims: The dimensions of each quantity.
        batch_size: Prompts in a batch, or ``"auto"``.

    Returns:
        The plan.
    """

    def cost(axis: str) -> int:
        """Bytes that one token, or one prompt, takes."""
        shapes = {name: dims[name] for name in dtypes if axis in dims[name]}
        return sum(
            int(np.prod([sizes[dim] for dim in shape if dim != axis]))
            * np.dtype(dtypes[name]).itemsize
            for name, shape in shapes.items()
        )

    mean = max(1.0, float(lengths.mean()))
    by_token, by_prompt = cost("token"), cost("prompt")
    n_tokens = min(_BLOCK_TOKENS, _BLOCK_BYTES / max(1, by_token))
    fits = max(1, int(min(n_tokens / mean, _BLOCK_BYTES / max(1, by_prompt))))
    if batch_size != "auto":
        whole = max(1, fits // int(batch_size))
        fits = int(batch_size) * min(BATCHES_PER_BLOCK, whole)
    block = min(fits, len(lengths))
    low, high = _CHUNK_TOKENS
    rows = min(high, _CHUNK_BYTES // max(1, by_token), int(block * mean / 8))
    rows = 2 ** int(np.log2(max(low, rows)))
    draws = max(1, sizes["draw"])
    one_draw = block * sizes["layer"] * sizes["expert"] * 4
    return BlockPlan(
        n_prompts=len(lengths),
        n_tokens=int(lengths.sum()),
        block=block,
        rows=rows,
        draws=int(np.clip(_CHUNK_BYTES // one_draw, 1, draws)),
    )


def checked_shard(shard: tuple[int, int] | None) -> tuple[int, int]:
    """The part of the work that is this process's.

    Args:
        shard: Its number, from 0, and the number of all; None for all of it.

    Returns:
        The two numbers.

    Raises:
        ValueError: If the number is none of them.
    """
    if shard is None:
        return 0, 1
    number, n_shards = shard
    if n_shards < 1 or not 0 <= number < n_shards:
        raise ValueError(
            f"`shard` must be (i, n) with 0 <= i < n, got {tuple(shard)!r}. The first of four "
            "processes is (0, 4), the last (3, 4)."
        )
    return int(number), int(n_shards)
