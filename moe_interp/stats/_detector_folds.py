"""Which prompts a detector learns from and is tested on, when whole groups are left out."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int, Shaped
from numpy import ndarray
from numpy.random import Generator

from moe_interp.errors import DesignError
from moe_interp.stats._design import Design
from moe_interp.stats._profile import RoutingProfile
from moe_interp.stats._transfer_folds import Fold

# Parts that a training fold is dealt into, to get scores that the calibration is fitted to.
_INNER_PARTS = 3


@dataclass(frozen=True, eq=False)
class Folds:
    """The folds, and which of the tested prompts are compared: those of one fold and topic.

    Attributes:
        folds: The folds; their test prompts are in order of topic.
        names: What each of them leaves out.
        tested: Test prompts of all folds, fold after fold.
        group: Group of each of them, from 0, in order.
        group_fold: Fold of each group.
    """

    folds: list[Fold]
    names: list[str]
    tested: Int[ndarray, " tested"]
    group: Int[ndarray, " tested"]
    group_fold: Int[ndarray, " group"]


def group_names(
    held_out: Sequence[object] | Shaped[ndarray, " prompt"],
    name: str,
    profile: RoutingProfile,
    design: Design,
) -> Shaped[ndarray, " taking_part"]:
    """Name the group of each prompt that takes part.

    Args:
        held_out: The group of each prompt of the profile.
        name: What the groups are, in a word.
        profile: The profile.
        design: Who takes part.

    Returns:
        The names.

    Raises:
        ValueError: If there are too many or too few names.
        DesignError: If a prompt has none, there are fewer than two groups, or one cuts a pair.
    """
    if len(held_out) != profile.n_prompts:
        raise ValueError(f"`held_out` has {len(held_out)} names for {profile.n_prompts} prompts.")
    given = np.array(held_out, dtype=object)[design.rows]
    missing = sum(own is None for own in given)
    if missing:
        raise DesignError(
            f"{missing} of {len(given)} prompts have no {name}, so that it cannot be left out. "
            f"Give each prompt its {name}."
        )
    found = given.astype(str)
    distinct = np.unique(found)
    if len(distinct) < 2:
        raise DesignError(
            f"All prompts have the {name} {str(distinct[0])!r}: none is left to learn from. "
            "At least two are needed."
        )
    homes: dict[str, str] = {}
    for pair, own in zip(profile.pair[design.rows], found.tolist(), strict=True):
        if pair is not None and homes.setdefault(pair, own) != own:
            raise DesignError(
                f"Pair {pair!r} has prompts of the {name} {homes[pair]!r} and {own!r}: one would "
                "be learnt from and the other tested. Keep pairs in one."
            )
    return found


def deal_folds(groups: ndarray, design: Design, n_folds: int, rng: Generator) -> Folds:
    """Leave every group out once, several at a time if there are more than `n_folds`.

    Args:
        groups: The group of each prompt that takes part.
        design: Their topics.
        n_folds: Largest number of folds.
        rng: Source of randomness.

    Returns:
        The folds.
    """
    part = _deal(groups, n_folds, rng)
    folds, names = [], []
    for number in range(part.max() + 1):
        test = np.flatnonzero(part == number)
        train = np.flatnonzero(part != number)
        folds.append(Fold(train, test[np.argsort(design.topic[test], kind="stable")]))
        names.append(", ".join(np.unique(groups[test])))
    tested = np.concatenate([fold.test for fold in folds])
    number = np.repeat(np.arange(len(folds)), [len(fold.test) for fold in folds])
    n_topics = int(design.topic.max()) + 1
    distinct, group = np.unique(number * n_topics + design.topic[tested], return_inverse=True)
    return Folds(folds, names, tested, group.reshape(-1), distinct // n_topics)


def require_both_levels(folds: Folds, design: Design, name: str) -> None:
    """Refuse folds without anything to learn from or to compare.

    Args:
        folds: The folds.
        design: The labels.
        name: What the groups are, in a word.

    Raises:
        DesignError: If one harm level is missing in a training fold, or in every test.
    """
    harmful = design.harm > 0
    for fold, own in zip(folds.folds, folds.names, strict=True):
        if len(set(harmful[fold.train])) < 2:
            level = "harmful" if harmful[fold.train].all() else "harmless"
            raise DesignError(
                f"With the {name} {own!r} left out, only {level} prompts are left to learn from. "
                f"Every {name} needs prompts of both levels, or others that have them."
            )
    cells = [set(harmful[folds.tested][folds.group == own]) for own in np.unique(folds.group)]
    if all(len(levels) < 2 for levels in cells):
        raise DesignError(
            f"No prompts of one {name} and topic have both harm levels, so none can be compared: "
            "give harmless prompts beside the harmful ones."
        )


def inner_parts(
    groups: ndarray, units: Int[ndarray, " prompt"], train: Int[ndarray, " train"], rng: Generator
) -> Int[ndarray, " train"] | None:
    """Deal a training fold into parts: its groups or, if there is one only, its units.

    Args:
        groups: The group of each prompt.
        units: Prompts that share a pair or a wording.
        train: Prompts of the training fold.
        rng: Source of randomness.

    Returns:
        The part of each training prompt; None if all of them are one unit.
    """
    for own in (groups[train], units[train]):
        if len(np.unique(own)) > 1:
            return _deal(own, _INNER_PARTS, rng)
    return None


def _deal(groups: ndarray, n_parts: int, rng: Generator) -> Int[ndarray, " prompt"]:
    distinct, code = np.unique(groups, return_inverse=True)
    part = np.empty(len(distinct), dtype=int)
    part[rng.permutation(len(distinct))] = np.arange(len(distinct)) % min(n_parts, len(distinct))
    return part[code.reshape(-1)]


def seen(codes: ndarray, folds: Folds) -> float:
    """Share of the tested prompts whose code stands among the training prompts too.

    Args:
        codes: A name or number of each prompt.
        folds: The folds.

    Returns:
        The share, between 0 and 1.
    """
    return float(
        np.concatenate([np.isin(codes[f.test], codes[f.train]) for f in folds.folds]).mean()
    )


def wordings_seen(profile: RoutingProfile, design: Design, folds: Folds) -> float | None:
    """`seen` for wordings.

    Args:
        profile: The profile.
        design: Who takes part.
        folds: The folds.

    Returns:
        The share; None if no prompt has a wording.
    """
    wording = profile.wording[design.rows]
    if all(own is None for own in wording):
        return None
    # A prompt without a wording shares none.
    named = [str(own) if own is not None else f"only {row}" for row, own in enumerate(wording)]
    return seen(np.array(named), folds)
