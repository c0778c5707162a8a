"""Prompts that stand twice in a file: counted once, and not at all where their labels differ."""

import warnings
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

from moe_interp.errors import PromptError
from moe_interp.prompts._layout import Placed
from moe_interp.prompts._prompt import Prompt, listed


@dataclass(frozen=True)
class Repeats:
    """Which of many items stand for the others.

    Attributes:
        kept: The first of each kind, in order.
        repeated: Later ones with the same label.
        contradicted: All of a kind whose labels differ.
    """

    kept: list[int]
    repeated: list[int]
    contradicted: list[int]


def first_and_repeated(keys: Sequence[Hashable], labels: Sequence[Hashable]) -> Repeats:
    """Sort out items that are the same.

    Args:
        keys: What makes two items the same.
        labels: What must not differ between items that are the same.

    Returns:
        Positions of those to keep and of the others.

    Example:
        >>> first_and_repeated(["a", "b", "a", "c", "c"], [1, 1, 1, 0, 1])
        Repeats(kept=[0, 1], repeated=[2], contradicted=[3, 4])
    """
    known: dict[Hashable, set[Hashable]] = {}
    for key, label in zip(keys, labels, strict=True):
        known.setdefault(key, set()).add(label)
    found = Repeats([], [], [])
    seen: set[Hashable] = set()
    for n, key in enumerate(keys):
        if len(known[key]) > 1:
            found.contradicted.append(n)
        elif key in seen:
            found.repeated.append(n)
        else:
            seen.add(key)
            found.kept.append(n)
    return found


def without_repeats(placed: Sequence[Placed], *, source: str) -> list[Placed]:
    """Leave out, with a warning, what stands twice in a set.

    A pair whose two prompts both repeat those of an earlier pair is left out, and so is an
    unpaired prompt that repeats an earlier one: counted twice, it would pass for evidence. A
    single member that two pairs share is kept, with a warning that the pairs are not independent.
    Words that are harmful in one row and harmless in another are refused.

    Args:
        placed: The prompts of the set.
        source: The set's name, for messages.

    Returns:
        The prompts that stay.

    Raises:
        PromptError: If the same text and response are both harmful and harmless.
    """
    _check_labels(placed)
    units: dict[str | int, list[int]] = {}
    for n, one in enumerate(placed):
        units.setdefault(n if one.prompt.pair is None else one.prompt.pair, []).append(n)
    members = list(units.values())
    keys = [
        frozenset((_words(placed[n].prompt), placed[n].prompt.topic) for n in unit)
        for unit in members
    ]
    found = first_and_repeated(keys, [None] * len(keys))
    out = sorted(n for unit in found.repeated for n in members[unit])
    if out:
        warnings.warn(
            f"{len(out)} of {len(placed)} prompts of {source} repeat earlier ones word for word "
            f"and were left out: {listed(placed[n].place for n in out)}.",
            stacklevel=4,
        )
    left = set(out)
    kept = [one for n, one in enumerate(placed) if n not in left]
    _warn_shared(kept, source)
    return kept


def _words(prompt: Prompt) -> tuple[str, str | None]:
    return prompt.text, prompt.response


def _check_labels(placed: Sequence[Placed]) -> None:
    first: dict[tuple[str, str | None], Placed] = {}
    for one in placed:
        if one.prompt.harm is None:
            continue
        other = first.setdefault(_words(one.prompt), one)
        if other.prompt.harm != one.prompt.harm:
            raise PromptError(
                f"{other.place} and {one.place} hold the same words, but one is harmful and the "
                "other is not. Mend the label, or leave both out."
            )


def _warn_shared(placed: Sequence[Placed], source: str) -> None:
    """Warn of members that several pairs share, unless a wording already binds the pairs."""
    unbound: dict[tuple[str, str | None], list[Placed]] = {}
    for one in placed:
        if one.prompt.pair is not None:
            unbound.setdefault(_words(one.prompt), []).append(one)
    shared = [
        users
        for users in unbound.values()
        if len(users) > 1 and len({one.prompt.wording or one.prompt.pair for one in users}) > 1
    ]
    if shared:
        places = listed(one.place for users in shared for one in users)
        warnings.warn(
            f"{len(shared)} prompts of {source} are members of several pairs: {places}. These "
            "pairs are not independent; give them one `wording`, so that tests exchange them "
            "together.",
            stacklevel=5,
        )
