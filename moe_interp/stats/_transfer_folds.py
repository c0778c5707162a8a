"""Which prompts a decoder learns from and which it is tested on, for each way of holding out.

Prompts that share a pair or a wording are one *unit* and never stand on both sides, whatever
else is held out. Folds are dealt without a look at harm, so that relabelling leaves them alone.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from math import ceil

import numpy as np
from jaxtyping import Int
from numpy import ndarray
from numpy.random import Generator

from moe_interp.errors import DesignError

SPLITS = ("within_topic", "leave_topic_out", "leave_wording_out")
_MAX_TOPIC_FOLDS = 10
# A unit with one harm level needs others in its fold to be compared with.
_PURE_UNITS_A_FOLD = 4

# Rows to learn from and rows to test on.
_Sides = tuple[Int[ndarray, " train"], Int[ndarray, " test"]]


@dataclass(frozen=True, eq=False)
class Fold:
    """One decoder's prompts.

    Attributes:
        train: Prompts it is fitted to.
        test: Prompts it is tested on.
    """

    train: Int[ndarray, " train"]
    test: Int[ndarray, " test"]


@dataclass(frozen=True, eq=False)
class Split:
    """All folds of one way of holding out, and which of the tested prompts are compared.

    Only prompts of one fold and one topic are: decoders of different folds score on different
    scales, and topics may lie higher or lower as a whole.

    Attributes:
        name: The way of holding out.
        folds: The folds; their test prompts are in order of topic.
        tested: Test prompts of all folds, fold after fold.
        group: Group of each of them, from 0, in order.
        group_topic: Topic code of each group.
    """

    name: str
    folds: list[Fold]
    tested: Int[ndarray, " tested"]
    group: Int[ndarray, " tested"]
    group_topic: Int[ndarray, " group"]


@dataclass(frozen=True, eq=False)
class HoldOut:
    """What folds are made from, one row a prompt.

    Attributes:
        topics: Names of the topics, in the order of their codes.
        topic: Topic code.
        unit: Prompts that stand on one side together, because they share a pair or a wording.
        has_wording: Whether wordings are known.
        pure: Whether a unit may have one harm level only.
    """

    topics: tuple[str, ...]
    topic: Int[ndarray, " prompt"]
    unit: Int[ndarray, " prompt"]
    has_wording: bool
    pure: bool

    def select(self, rows: Int[ndarray, " chosen"]) -> "HoldOut":
        """Keep some of the prompts.

        Args:
            rows: Which.

        Returns:
            Their rows; codes stay as they are.
        """
        return HoldOut(self.topics, self.topic[rows], self.unit[rows], self.has_wording, self.pure)


def make_split(
    name: str,
    design: HoldOut,
    *,
    n_folds: int,
    max_topic_folds: int = _MAX_TOPIC_FOLDS,
    rng: Generator,
) -> Split:
    """Deal prompts into folds.

    Args:
        name: One of ``"within_topic", "leave_topic_out", "leave_wording_out"``.
        design: Topics and units of the prompts.
        n_folds: Largest number of parts that units are dealt into.
        max_topic_folds: Largest number of parts that topics are dealt into.
        rng: Source of randomness.

    Returns:
        The folds; each prompt is tested at most once.

    Raises:
        DesignError: If the prompts allow no such fold.
    """
    if name == "within_topic":
        dealt = _within_topic(design, n_folds, rng)
    elif name == "leave_topic_out":
        dealt = _leave_topic_out(design, n_folds, max_topic_folds, rng)
    else:
        dealt = _leave_wording_out(design, n_folds, rng)
    folds = []
    for train, test in dealt:
        if len(train) and len(test):
            order = np.argsort(design.topic[test], kind="stable")
            folds.append(Fold(train=train, test=test[order]))
    if not folds:
        raise DesignError(
            "Shared wordings and pairs tie every topic to all the others: nothing is left to "
            "learn from without them."
        )
    tested = np.concatenate([fold.test for fold in folds])
    number = np.repeat(np.arange(len(folds)), [len(fold.test) for fold in folds])
    code = number * len(design.topics) + design.topic[tested]
    distinct, group = np.unique(code, return_inverse=True)
    return Split(name, folds, tested, group.reshape(-1), distinct % len(design.topics))


def _within_topic(design: HoldOut, n_folds: int, rng: Generator) -> Iterator[_Sides]:
    topics = [np.flatnonzero(design.topic == topic) for topic in np.unique(design.topic)]
    if all(len(np.unique(design.unit[members])) < 2 for members in topics):
        raise DesignError(
            "Every topic has a single unit of prompts that share pairs or wordings: nothing is "
            "left to learn from inside it. A topic needs at least two units."
        )
    for members in topics:
        part = _deal(design.select(members), n_folds, rng)
        for number in range(part.max() + 1):
            yield members[part != number], members[part == number]


def _leave_wording_out(design: HoldOut, n_folds: int, rng: Generator) -> Iterator[_Sides]:
    if not design.has_wording:
        raise DesignError(
            "No prompt has a `wording`: name the phrase that carries the intent, so that prompts "
            "which share it can be held out together."
        )
    part = _deal(design, n_folds, rng)
    if not part.any():
        raise DesignError(
            "All prompts are tied together by shared wordings and pairs: no wording can be held "
            "out. At least two wordings that no pair connects are needed."
        )
    for number in range(part.max() + 1):
        yield np.flatnonzero(part != number), np.flatnonzero(part == number)


def _leave_topic_out(
    design: HoldOut, n_folds: int, max_topic_folds: int, rng: Generator
) -> Iterator[_Sides]:
    """Hold out topics, and with them, part by part, the wordings that other topics use too."""
    present = np.unique(design.topic)
    if len(present) < 2:
        raise DesignError(
            f"All prompts have the topic {design.topics[present[0]]!r}: no other topic is left to "
            f"learn from. At least two topics are needed."
        )
    part = _deal(design, n_folds, rng)
    if not part.any():
        raise DesignError(
            "All prompts are tied together by shared wordings and pairs: no topic can be held out "
            "together with its wordings."
        )
    n_bundles = min(len(present), max_topic_folds)
    bundle = np.empty(len(design.topics), dtype=int)
    bundle[rng.permutation(present)] = np.arange(len(present)) % n_bundles
    for number in range(n_bundles):
        held = bundle[design.topic] == number
        crosses = np.isin(design.unit[held], design.unit[~held]).any()
        for block in range(part.max() + 1) if crosses else (None,):
            test = held if block is None else held & (part == block)
            learns = ~held & ~np.isin(design.unit, design.unit[test])
            yield np.flatnonzero(learns), np.flatnonzero(test)


def _deal(design: HoldOut, n_folds: int, rng: Generator) -> Int[ndarray, " prompt"]:
    """Deal units into parts, those of the same topics evenly; the part of each prompt."""
    units, first, code = np.unique(design.unit, return_index=True, return_inverse=True)
    n_units = len(units)
    n_parts = min(n_folds, n_units)
    if design.pure:
        n_parts = min(n_parts, max(2, ceil(n_units / _PURE_UNITS_A_FOLD)), n_units)
    order = rng.permutation(n_units)
    order = order[np.argsort(design.topic[first][order], kind="stable")]
    part = np.empty(n_units, dtype=int)
    part[order] = np.arange(n_units) % n_parts
    return part[code.reshape(-1)]
