"""Select experts by their scores."""

import numpy as np

from moe_interp.experts import Expert, ExpertSet
from moe_interp.scores._scores import Scores


def select_experts(
    scores: Scores, *, n: int | None = None, threshold: float | None = None
) -> ExpertSet:
    """Take the experts with the largest scores.

    Args:
        scores: The scores; negate them (``-scores``) to take the smallest, or take their
            magnitude (``abs(scores)``).
        n: How many.
        threshold: Instead of a number: all whose score is at least this.

    Returns:
        The experts; never one that was not measured.

    Raises:
        ValueError: If not exactly one of `n` and `threshold` is given, or more experts are asked
            for than were measured.

    Example:
        >>> scores = Scores.of_array("use", "fraction", np.array([[0.1, 0.9, 0.5]]), layers=(7,))
        >>> print(select_experts(scores, n=2))
        L7E1,L7E2
    """
    if (n is None) == (threshold is None):
        raise ValueError("Give either `n` or `threshold`, not both and not neither.")
    measured = int(np.isfinite(scores.mean).sum())
    if n is not None:
        if not 1 <= n <= measured:
            raise ValueError(
                f"`n` must lie between 1 and the {measured} experts with a score, got {n}."
            )
        return ExpertSet(expert for expert, _ in scores.top(n))
    with np.errstate(invalid="ignore"):
        rows, ids = np.nonzero(scores.mean >= threshold)
    return ExpertSet(
        Expert(scores.layers[row], int(expert)) for row, expert in zip(rows, ids, strict=True)
    )
