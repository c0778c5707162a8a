"""From labels to a design: who takes part, what is exchanged, what the jackknife leaves out."""

import warnings
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Bool, Float, Int
from numpy import ndarray

from moe_interp.errors import DesignError
from moe_interp.stats._embedding import centred
from moe_interp.stats._jackknife import MAX_GROUPS, Jackknife, make_jackknife
from moe_interp.stats._profile import RoutingProfile
from moe_interp.stats._schemes import (
    SCHEMES,
    Exchange,
    Labels,
    choose_scheme,
    complete_pairs,
    harm_exchange,
    topic_exchange,
)
from moe_interp.stats._terms import Terms, make_terms


@dataclass(frozen=True, eq=False)
class Design:
    """The labels of the prompts that take part, as numbers.

    Attributes:
        rows: Rows of the profile that take part.
        topics: Names of the topics, in the order of their codes.
        topic: Topic code of each prompt.
        harm: +1 for harmful, -1 for harmless.
        scheme: Name of the scheme used.
        reason: Why this scheme.
        exchange: How harm labels are exchanged.
        topic_exchange: How topic labels are exchanged.
        group: Jackknife group of each prompt: its exchange unit, or a bundle of units if there
            are more than 64 of them.
    """

    rows: Int[ndarray, " prompt"]
    topics: tuple[str, ...]
    topic: Int[ndarray, " prompt"]
    harm: Float[ndarray, " prompt"]
    scheme: str
    reason: str
    exchange: Exchange
    topic_exchange: Exchange
    group: Int[ndarray, " prompt"]

    @property
    def n_prompts(self) -> int:
        """Number of prompts that take part."""
        return len(self.rows)

    @property
    def n_groups(self) -> int:
        """Number of jackknife groups."""
        return int(self.group.max()) + 1

    @cached_property
    def terms(self) -> Terms:
        """The units whose own squared length is a term of sums of squares."""
        return make_terms(self.topic, self.harm, self.exchange, self.topic_exchange)

    @cached_property
    def jackknife(self) -> Jackknife:
        """What is left out where the numbers of prompts in each cell are given."""
        return make_jackknife(self.exchange.unit, self.topic, self.harm)

    def embed(
        self, profile: RoutingProfile, shares: Float[ndarray, "prompt row expert"] | None = None
    ) -> Float[ndarray, "prompt row expert"]:
        """Return the Hellinger points of the prompts that take part.

        Args:
            profile: The profile this design was made from.
            shares: Shares of the prompts that take part over the same tokens as the profile's;
                the profile's own if None.

        Returns:
            The points, less the mean profile, which no share depends on.
        """
        return centred(profile.points(self.rows, shares))


def make_design(profile: RoutingProfile, scheme: str, *, need_topics: bool) -> Design:
    """Decide who takes part and what is exchangeable.

    Args:
        profile: Profile with its labels.
        scheme: Name of a scheme, or ``"auto"``.
        need_topics: Whether a single topic is refused.

    Returns:
        The design.

    Raises:
        ValueError: If `scheme` is not a known name.
        DesignError: If topics or harm levels are missing, or do not fit the scheme.
    """
    if scheme not in SCHEMES:
        raise ValueError(f"`scheme` must be one of {SCHEMES}, got {scheme!r}.")
    names = _topic_names(profile)
    keep = _both_levels(names, profile)
    topics = tuple(dict.fromkeys(names[keep]))
    codes = {topic: code for code, topic in enumerate(topics)}
    labels = Labels(
        topic=np.array([codes.get(name, -1) for name in names], dtype=int)[keep],
        harm=profile.harm[keep],
        pair=profile.pair[keep],
        wording=profile.wording[keep],
    )
    rows = np.flatnonzero(keep)
    paired = np.zeros(len(rows), dtype=bool)
    if scheme != "within_topic":
        paired = complete_pairs(labels)
    chosen, reason = scheme, "it was asked for"
    if scheme == "auto":
        chosen, reason = choose_scheme(labels, paired)
    if chosen == "pair" and not paired.any():
        raise DesignError(
            "Scheme 'pair' needs matched pairs: no two prompts, one harmful and one harmless, "
            "share a `pair` id. Give ids, or take scheme='within_topic'."
        )
    if chosen == "pair" or (chosen == "wording_pair" and paired.any()):
        _warn_unpaired(profile, rows[~paired])
        rows, labels, paired = rows[paired], labels.select(paired), paired[paired]
        labels, topics = _renumber(labels, topics)
    if need_topics and len(topics) < 2:
        raise DesignError(
            f"All prompts that take part have the topic {topics[0]!r}: whether routing follows "
            f"topic needs prompts of at least two topics."
        )
    exchange = harm_exchange(chosen, labels)
    return Design(
        rows=rows,
        topics=topics,
        topic=labels.topic,
        harm=np.where(labels.harm, 1.0, -1.0),
        scheme=chosen,
        reason=reason,
        exchange=exchange,
        topic_exchange=topic_exchange(chosen, labels, paired),
        group=_groups(exchange.unit, labels),
    )


def _topic_names(profile: RoutingProfile) -> ndarray:
    missing = np.array([topic is None for topic in profile.topic])
    if missing.all():
        return np.full(profile.n_prompts, "(no topic)", dtype=object)
    if missing.any():
        first = profile.name(int(np.flatnonzero(missing)[0]))
        raise DesignError(
            f"{int(missing.sum())} of {profile.n_prompts} prompts have no topic, the first is "
            f"prompt {first}. Give each a topic, or leave them out with `select`."
        )
    return profile.topic


def _both_levels(names: ndarray, profile: RoutingProfile) -> Bool[ndarray, " prompt"]:
    """Find the prompts whose topic has harmful and harmless prompts, and warn of the others."""
    if profile.harm.all() or not profile.harm.any():
        level = "harmful" if profile.harm.all() else "harmless"
        raise DesignError(
            f"All {profile.n_prompts} prompts are {level}: whether routing follows harm needs "
            f"both harmful and harmless prompts."
        )
    levels: dict[str, set[bool]] = {}
    for name, harm in zip(names, profile.harm, strict=True):
        levels.setdefault(name, set()).add(bool(harm))
    lone = [name for name, found in levels.items() if len(found) < 2]
    keep = ~np.isin(names.astype(str), lone)
    if not keep.any():
        raise DesignError(
            f"Every topic has one harm level only ({', '.join(map(repr, lone[:3]))}, ...): harm "
            f"cannot be told from topic. Each topic needs harmful and harmless prompts."
        )
    if lone:
        warnings.warn(
            f"{int((~keep).sum())} prompts of topics with one harm level only were left out: "
            f"{', '.join(map(repr, lone))}.",
            stacklevel=4,
        )
    return keep


def _warn_unpaired(profile: RoutingProfile, rows: Int[ndarray, " unpaired"]) -> None:
    if not len(rows):
        return
    shown = ", ".join(profile.name(int(row)) for row in rows[:3])
    warnings.warn(
        f"{len(rows)} of {profile.n_prompts} prompts have no partner of the other harm level "
        f"and were left out of the paired analysis: {shown}{', ...' if len(rows) > 3 else ''}.",
        stacklevel=4,
    )


def _renumber(labels: Labels, topics: tuple[str, ...]) -> tuple[Labels, tuple[str, ...]]:
    left, codes = np.unique(labels.topic, return_inverse=True)
    labels = Labels(codes.reshape(-1), labels.harm, labels.pair, labels.wording)
    return labels, tuple(topics[code] for code in left)


def _groups(units: Int[ndarray, " prompt"], labels: Labels) -> Int[ndarray, " prompt"]:
    """Bundle units into at most 64 jackknife groups, each with its part of every cell."""
    n_units = int(units.max()) + 1
    if n_units <= MAX_GROUPS:
        return units
    first = np.unique(units, return_index=True)[1]
    order = np.lexsort((labels.harm[first], labels.topic[first]))
    group = np.empty(n_units, dtype=int)
    group[order] = np.arange(n_units) % MAX_GROUPS
    return group[units]
