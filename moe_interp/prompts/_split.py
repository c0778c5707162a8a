"""Which prompts must stay together, and how to divide what may be parted."""

from collections import Counter
from collections.abc import Hashable, Sequence

import numpy as np
from jaxtyping import Bool, Int
from numpy import ndarray

from moe_interp.errors import PromptError

_LEVELS = ("auto", "wording", "pair", "prompt")


def exchange_units(
    wordings: Sequence[str | None], pairs: Sequence[str | None], *, by: str = "auto"
) -> Int[ndarray, " prompt"]:
    """Number the units of which a prompt set consists.

    Prompts that share a wording, or a pair, are in one unit. That holds along chains: a pair whose
    two members have two wordings joins all prompts of both.

    Args:
        wordings: The wording of each prompt, or None.
        pairs: The pair of each prompt, or None.
        by: ``"wording"`` (wordings and pairs bind), ``"pair"`` (pairs bind), ``"prompt"`` (nothing
            binds) or ``"auto"``: wording where a wording is shared by more than one pair or by
            more than one unpaired prompt, else pair.

    Returns:
        The number of each prompt's unit, from 0 in order of appearance.

    Raises:
        ValueError: If `by` has another value.

    Example:
        >>> exchange_units(["u", "u", "v", None], [None] * 4)
        array([0, 0, 1, 2])
    """
    if by not in _LEVELS:
        raise ValueError(f"`by` must be one of {_LEVELS}, got {by!r}.")
    if by == "auto":
        by = "wording" if _wordings_repeat(wordings, pairs) else "pair"
    binding = {"wording": (wordings, pairs), "pair": (pairs,), "prompt": ()}[by]

    root = list(range(len(wordings)))

    def find(prompt: int) -> int:
        while root[prompt] != prompt:
            root[prompt] = root[root[prompt]]
            prompt = root[prompt]
        return prompt

    for labels in binding:
        first: dict[str, int] = {}
        for prompt, label in enumerate(labels):
            if label is not None:
                root[find(prompt)] = find(first.setdefault(label, prompt))
    numbers: dict[int, int] = {}
    return np.array([numbers.setdefault(find(p), len(numbers)) for p in range(len(root))])


def split_units(
    units: Int[ndarray, " prompt"],
    topics: Sequence[str | None],
    *,
    fraction: float,
    rng: np.random.Generator,
) -> Bool[ndarray, " prompt"]:
    """Draw the units of the first part, in the same proportion from units of the same topics.

    Args:
        units: The unit of each prompt.
        topics: The topic of each prompt.
        fraction: Part of the units to draw, in (0, 1).
        rng: Source of randomness.

    Returns:
        Whether each prompt is in the first part.

    Raises:
        PromptError: If there is only one unit.
        ValueError: If `fraction` is out of range.
    """
    if not 0 < fraction < 1:
        raise ValueError(f"`fraction` must lie between 0 and 1, got {fraction!r}.")
    n_units = int(units.max()) + 1
    if n_units < 2:
        raise PromptError(
            "All prompts hang together in one exchange unit, so they cannot be split. "
            'Split by="pair" or by="prompt" if the two parts may share wordings.'
        )
    contents = [Counter() for _ in range(n_units)]
    for unit, topic in zip(units, topics, strict=True):
        contents[unit][topic] += 1
    strata: dict[Hashable, list[int]] = {}
    for unit, content in enumerate(contents):
        strata.setdefault(frozenset(content.items()), []).append(unit)

    # Strata of odd size leave a remainder; handing the units out along one shuffled line, stratum
    # after stratum, keeps every stratum within one unit of its share and the total right.
    line = np.concatenate([rng.permutation(members) for members in strata.values()])
    steps = np.floor(fraction * np.arange(n_units + 1) + rng.random())
    taken = np.diff(steps) > 0
    if taken.all() or not taken.any():
        taken[0] = not taken[0]
    return np.isin(units, line[taken])


def _wordings_repeat(wordings: Sequence[str | None], pairs: Sequence[str | None]) -> bool:
    uses = {
        (wording, ("prompt", n) if pair is None else ("pair", pair))
        for n, (wording, pair) in enumerate(zip(wordings, pairs, strict=True))
        if wording is not None
    }
    return any(count > 1 for count in Counter(wording for wording, _ in uses).values())
