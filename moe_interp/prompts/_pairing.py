"""pair_prompts: give harmful prompts a harmless partner of the same topic and about their length.

Matching replaces pairs that were written as pairs only in part: topic and length are alike, words
are not. The tests on matched pairs are as good as what was matched on.
"""

import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
from jaxtyping import Float
from numpy import ndarray
from scipy.optimize import linear_sum_assignment

from moe_interp.errors import PromptError
from moe_interp.prompts._lengths import prompt_lengths
from moe_interp.prompts._prompt import Prompt, listed
from moe_interp.prompts._promptset import PromptSet

_FIELDS = ("topic", "wording")
# The costs of one group are held in full: 200 MB of doubles.
_MAX_CHOICES = 25_000_000


def pair_prompts(
    prompts: PromptSet,
    *,
    by: Sequence[str] = ("topic",),
    length: str | Sequence[float | int] | ndarray = "words",
    caliper: float | int | None = None,
) -> PromptSet:
    r"""Pair harmful with harmless prompts of the same topic and of like length.

    Pairs that are whole already stay. Among the others the matching is optimal [1]: no other one
    has more pairs, and of those with as many none has a smaller sum of differences in length,
    :math:`\sum |l_\text{harmful} - l_\text{harmless}|`. Each prompt is in one pair at most, and
    the same set gives the same pairs in whatever order its prompts come.

    Args:
        prompts: The prompts; those whose harm or topic is unknown stay unpaired.
        by: What both members of a pair must share: ``"topic"``, and ``"wording"`` if wanted.
        length: What is made alike: ``"words"``, ``"characters"``, or one number for each prompt,
            such as ``tokenize(tokenizer, prompts).lengths``.
        caliper: The largest difference in length that two members may have; None allows any.

    Returns:
        The same prompts in the same order, paired. A warning says how many stayed unpaired and
        why; `PromptSet.unpaired` lists them.

    Raises:
        PromptError: If no pair can be made, or a topic has too many prompts to match.
        ValueError: If an option has another value.

    References:
        [1] Rosenbaum (1989), "Optimal Matching for Observational Studies".

    Example:
        >>> prompts = PromptSet([
        ...     Prompt("Bake a cake.", topic="food", harm=False),
        ...     Prompt("Poison my cake.", topic="food", harm=True),
        ...     Prompt("Bake two loaves of bread.", topic="food", harm=False),
        ...     Prompt("Spoil their loaves of bread.", topic="food", harm=True),
        ... ])
        >>> pair_prompts(prompts).pairs
        ('food-01', 'food-01', 'food-02', 'food-02')
    """
    by = _checked_fields(prompts, by)
    if caliper is not None and not caliper >= 0:
        raise ValueError(f"`caliper` must be a number from 0, or None, got {caliper!r}.")
    lengths = prompt_lengths(prompts, length)
    names = _free_names(prompts)
    paired = list(prompts)
    whole = {n for pair in prompts.pair_positions for n in pair}
    lone: list[tuple[int, str]] = []
    for n, prompt in enumerate(prompts):
        reason = _no_candidate(prompt, by)
        if n not in whole and reason:
            lone.append((n, reason))
    taken = whole | {n for n, _ in lone}
    for members in _groups(prompts, by, taken).values():
        sides = [_ordered(prompts, lengths, members, harm=harm) for harm in (False, True)]
        if len(sides[0]) * len(sides[1]) > _MAX_CHOICES:
            raise PromptError(
                f"{len(sides[0])} harmless and {len(sides[1])} harmful prompts of "
                f"{_group_name(prompts[members[0]], by)} are too many to match. Choose among them "
                "with `PromptSet.select` first."
            )
        matches = match_lengths(lengths[sides[0]], lengths[sides[1]], caliper=caliper)
        for a, b in matches:
            label = next(names[prompts[members[0]].topic])
            for n in (sides[0][a], sides[1][b]):
                paired[n] = replace(prompts[n], pair=label)
        matched = {sides[side][match[side]] for match in matches for side in (0, 1)}
        reason = "no prompt of the other harm level was left within reach"
        lone += [(n, reason) for n in members if n not in matched]
    found = PromptSet(paired, source=prompts.source, card=prompts.card)
    _tell_unpaired(found, lone)
    return found


def match_lengths(
    first: Float[ndarray, " a"], second: Float[ndarray, " b"], *, caliper: float | int | None = None
) -> list[tuple[int, int]]:
    """Match two groups one to one, as many as may be, with the smallest total difference.

    Args:
        first: Length of each member of one group.
        second: Length of each member of the other.
        caliper: The largest difference that two matched members may have; None allows any.

    Returns:
        Positions in the first and in the second group, in the order of the first.

    Example:
        >>> match_lengths(np.array([3.0, 9.0]), np.array([8.0, 30.0, 5.0]), caliper=10)
        [(0, 2), (1, 0)]
    """
    cost = np.abs(first[:, None] - second[None, :])
    allowed = np.ones(cost.shape, dtype=bool) if caliper is None else cost <= caliper
    if not allowed.any():
        return []
    # Dearer than all allowed matches together: one more of them is always worth it.
    forbidden = (cost[allowed].max() + 1.0) * (min(cost.shape) + 1)
    rows, columns = linear_sum_assignment(np.where(allowed, cost, forbidden))
    chosen = zip(rows.tolist(), columns.tolist(), strict=True)
    return [(a, b) for a, b in chosen if allowed[a, b]]


def _checked_fields(prompts: PromptSet, by: Sequence[str]) -> tuple[str, ...]:
    by = (by,) if isinstance(by, str) else tuple(by)
    unknown = [name for name in by if name not in _FIELDS]
    if unknown:
        raise ValueError(f"`by` is among {_FIELDS}, got {unknown[0]!r}.")
    if "topic" not in by and any(topic is not None for topic in prompts.topics):
        raise ValueError(
            f"Both members of a pair share their topic, so `by` must hold 'topic', got {by!r}."
        )
    return by


def _no_candidate(prompt: Prompt, by: Sequence[str]) -> str:
    """Why a prompt cannot be matched at all; empty if it can."""
    if prompt.harm is None:
        return "its harm is unknown"
    missing = [name for name in by if getattr(prompt, name) is None]
    return f"its {missing[0]} is unknown" if missing else ""


def _groups(
    prompts: PromptSet, by: Sequence[str], taken: set[int]
) -> dict[tuple[str | None, ...], list[int]]:
    groups: dict[tuple[str | None, ...], list[int]] = {}
    for n, prompt in enumerate(prompts):
        if n not in taken:
            groups.setdefault(tuple(getattr(prompt, name) for name in by), []).append(n)
    # Pairs are numbered in this order, which must not depend on that of the prompts.
    return {key: groups[key] for key in sorted(groups, key=repr)}


def _ordered(
    prompts: PromptSet, lengths: Float[ndarray, " prompt"], members: Sequence[int], *, harm: bool
) -> list[int]:
    """The members of one harm level in an order of their own: ties must not hang on the file's."""
    level = [n for n in members if prompts[n].harm is harm]
    return sorted(level, key=lambda n: (lengths[n], prompts[n].text, prompts[n].response or ""))


def _group_name(prompt: Prompt, by: Sequence[str]) -> str:
    return ", ".join(f"{name} {getattr(prompt, name)!r}" for name in by) or "the set"


def _free_names(prompts: PromptSet) -> dict[str | None, Iterator[str]]:
    """For each topic, names of pairs that no prompt has yet."""
    taken = set(prompts.pairs)

    def names(topic: str | None) -> Iterator[str]:
        stem = "match" if topic is None else topic
        for n in range(1, len(prompts) + len(taken) + 1):
            if f"{stem}-{n:02d}" not in taken:
                taken.add(f"{stem}-{n:02d}")
                yield f"{stem}-{n:02d}"

    return {topic: names(topic) for topic in set(prompts.topics)}


def _tell_unpaired(found: PromptSet, lone: Sequence[tuple[int, str]]) -> None:
    if not lone:
        return
    reasons = Counter(reason for _, reason in lone)
    why = "; ".join(f"{count}: {reason}" for reason, count in reasons.most_common())
    if not found.n_pairs:
        levels = {prompt.harm for prompt in found} - {None}
        only = {True: "All are harmful.", False: "All are harmless."}
        told = only[levels.pop()] if len(levels) == 1 else f"Of {len(found)} prompts, {why}."
        raise PromptError(
            f"No harmful prompt of {found.source!r} can be paired with a harmless one. {told} "
            "Add prompts of the other harm level in the same topics, or widen `caliper`."
        )
    names = listed(found.ids[n] for n, _ in sorted(lone))
    warnings.warn(
        f"{len(lone)} of {len(found)} prompts stay without a partner ({why}): {names} "
        "(PromptSet.unpaired lists them).",
        stacklevel=3,
    )
