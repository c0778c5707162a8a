"""Where the tokens of two prompts are the same: before they part, between changes, and after.

Tokens after the point where the two part have the same ids but another context. What differs in
their routing cannot come from which tokens they are.
"""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Alignment:
    """Two token sequences laid side by side.

    Attributes:
        n_prefix: How many tokens they share before the first that differs.
        n_suffix: How many they share after the last that differs; none is part of the prefix.
        lengths: How many tokens each of them has.
        matches: Positions in the first and in the second of the tokens that both have from where
            they part, in one order for both: a longest common subsequence. The suffix is its end.
    """

    n_prefix: int
    n_suffix: int
    lengths: tuple[int, int]
    matches: tuple[tuple[int, int], ...]

    @property
    def divergence(self) -> tuple[slice, slice]:
        """In each of the two, the tokens from the first that differs to the last."""
        first, second = (slice(self.n_prefix, n - self.n_suffix) for n in self.lengths)
        return first, second

    @property
    def is_same(self) -> bool:
        """Whether the two are the same throughout."""
        return self.lengths == (self.n_prefix, self.n_prefix)


def align_tokens(first: Sequence[int], second: Sequence[int]) -> Alignment:
    """Lay two token sequences side by side.

    Args:
        first: Token ids of one prompt.
        second: Token ids of the other.

    Returns:
        Their shared prefix, their shared suffix, and what they share between.

    Example:
        >>> found = align_tokens([1, 2, 3, 4, 5, 6], [1, 7, 3, 8, 9, 5, 6])
        >>> found.n_prefix, found.n_suffix, found.matches
        (1, 2, ((2, 2), (4, 5), (5, 6)))
    """
    shorter = min(len(first), len(second))
    n_prefix = _shared(first[:shorter], second[:shorter])
    rest = shorter - n_prefix
    n_suffix = _shared(first[::-1][:rest], second[::-1][:rest])
    ends = len(first) - n_suffix, len(second) - n_suffix
    between = _common_subsequence(first[n_prefix : ends[0]], second[n_prefix : ends[1]])
    matches = [(n_prefix + a, n_prefix + b) for a, b in between]
    matches += [(ends[0] + n, ends[1] + n) for n in range(n_suffix)]
    return Alignment(n_prefix, n_suffix, (len(first), len(second)), tuple(matches))


def _shared(first: Sequence[int], second: Sequence[int]) -> int:
    """How many tokens of two equally long sequences are the same from their start."""
    differ = (n for n, (a, b) in enumerate(zip(first, second, strict=True)) if a != b)
    return next(differ, len(first))


def _common_subsequence(first: Sequence[int], second: Sequence[int]) -> list[tuple[int, int]]:
    """Positions of a longest common subsequence; among several, the one that starts earliest."""
    # best[a][b] is its length in first[a:] and second[b:].
    best = [[0] * (len(second) + 1) for _ in range(len(first) + 1)]
    for a in range(len(first) - 1, -1, -1):
        for b in range(len(second) - 1, -1, -1):
            if first[a] == second[b]:
                best[a][b] = best[a + 1][b + 1] + 1
            else:
                best[a][b] = max(best[a + 1][b], best[a][b + 1])
    matches, a, b = [], 0, 0
    while a < len(first) and b < len(second):
        if first[a] == second[b]:
            matches.append((a, b))
            a, b = a + 1, b + 1
        elif best[a + 1][b] >= best[a][b + 1]:
            a += 1
        else:
            b += 1
    return matches
