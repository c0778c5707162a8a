"""What may be exchanged under the null hypothesis, chosen from how the prompts were made.

A permutation test is right only if its relabellings could have happened. Two kinds suffice:

* **flip**: a unit holds equally many harmful and harmless prompts of each of its topics, and
  swapping "harmful" and "harmless" in the whole unit changes nothing but a sign;
* **permute**: a unit carries one label (its harm level or its topic), and the labels are dealt
  anew among units alike in everything else (a *stratum*).
"""

from dataclasses import dataclass
from itertools import count
from math import ceil, comb, exp, lgamma, log2
from typing import Literal

import numpy as np
from jaxtyping import Bool, Int, Shaped
from numpy import ndarray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from moe_interp.errors import DesignError

SCHEMES = ("auto", "wording_pair", "wording", "pair", "within_topic")


@dataclass(frozen=True, eq=False)
class Exchange:
    """One way of relabelling the prompts.

    Attributes:
        kind: Whether units are sign-flipped or their labels are permuted.
        unit: Unit of each prompt, from 0.
        stratum: Stratum of each unit; labels never leave it. All 0 for flips.
        label: Code of the label each unit carries; unused (0) for flips.
        words: The scheme in words, for reports.
    """

    kind: Literal["flip", "permute"]
    unit: Int[ndarray, " prompt"]
    stratum: Int[ndarray, " unit"]
    label: Int[ndarray, " unit"]
    words: str

    @property
    def n_units(self) -> int:
        """Number of units."""
        return len(self.stratum)

    def smallest_p(self) -> float:
        """Return the smallest p-value any data could give under this scheme.

        Relabellings with the same statistic count together: flipping every unit, or renaming
        labels that are equally frequent in every stratum.
        """
        if self.kind == "flip":
            return 2.0 ** (1 - self.n_units)
        table = np.zeros((self.stratum.max() + 1, self.label.max() + 1), dtype=int)
        np.add.at(table, (self.stratum, self.label), 1)
        log_count = sum(
            lgamma(row.sum() + 1) - sum(lgamma(size + 1) for size in row) for row in table
        )
        _, alike = np.unique(table, axis=1, return_counts=True)
        return min(1.0, exp(sum(lgamma(size + 1) for size in alike) - log_count))

    def require(self, alpha: float, factor: str) -> None:
        """Refuse a design that cannot give a p-value as small as the level asked for.

        Args:
            alpha: The level.
            factor: What is tested, for the message.

        Raises:
            DesignError: If even the most extreme data would give a p-value above `alpha`.
        """
        smallest = self.smallest_p()
        if smallest <= alpha:
            return
        if self.kind == "flip":
            needed = 1 + ceil(log2(1 / alpha))
        else:
            # Two halves of equal size may swap names, which gives the same statistic again.
            needed = next(n for n in count(2) if (2 - n % 2) / comb(n, n // 2) <= alpha)
        raise DesignError(
            f"The test of {factor} exchanges {self.words}: {self.n_units} such units allow no "
            f"p-value below {smallest:.3g}, so the level {alpha:g} cannot be reached. About "
            f"{needed} units that differ in {factor} are needed; add prompts, or name another "
            f"`scheme` if the prompts are independent after all."
        )


@dataclass(frozen=True, eq=False)
class Labels:
    """The labels a scheme is chosen from, one row a prompt.

    Attributes:
        topic: Code of the topic, from 0.
        harm: Whether the prompt is harmful.
        pair: Pair id or None.
        wording: Wording id or None.
    """

    topic: Int[ndarray, " prompt"]
    harm: Bool[ndarray, " prompt"]
    pair: Shaped[ndarray, " prompt"]
    wording: Shaped[ndarray, " prompt"]

    def select(self, mask: Bool[ndarray, " prompt"]) -> "Labels":
        """Keep the prompts where `mask` is True.

        Args:
            mask: Which prompts to keep.

        Returns:
            Their labels.
        """
        return Labels(self.topic[mask], self.harm[mask], self.pair[mask], self.wording[mask])


def choose_scheme(labels: Labels, paired: Bool[ndarray, " prompt"]) -> tuple[str, str]:
    """Choose the exchange unit: wording if wordings repeat, else pairs, else single prompts.

    Args:
        labels: Labels of the prompts.
        paired: Whether the prompt is in a complete pair.

    Returns:
        The name of the scheme, and why it was chosen.
    """
    if wording_repeats(labels):
        units = wording_units(labels)
        mixed = float((_levels_per_unit(units, labels.harm) == 2).mean())
        repeated = f"{int(units.max()) + 1} wordings are shared by {len(units)} prompts"
        if mixed >= 0.5:
            return "wording_pair", f"{repeated}, and {mixed:.0%} of them are used on both sides"
        return "wording", f"{repeated}, and {1 - mixed:.0%} of them on one side only"
    part = float(paired.mean())
    if part >= 0.5:
        return "pair", f"no wording is shared and {part:.0%} of the prompts are in matched pairs"
    return (
        "within_topic",
        f"no wording is shared and {part:.0%} of the prompts are in matched pairs",
    )


def wording_repeats(labels: Labels) -> bool:
    """Tell whether prompts of different pairs share a wording.

    Args:
        labels: Labels of the prompts.

    Returns:
        True if some wording id occurs outside a single pair.
    """
    homes: dict[str, set] = {}
    for row, (pair, wording) in enumerate(zip(labels.pair, labels.wording, strict=True)):
        if wording is not None:
            homes.setdefault(wording, set()).add(row if pair is None else pair)
    return any(len(found) > 1 for found in homes.values())


def complete_pairs(labels: Labels) -> Bool[ndarray, " prompt"]:
    """Find the prompts whose pair has its harmful and its harmless member.

    Args:
        labels: Labels of the prompts.

    Returns:
        True for the prompts of complete pairs.

    Raises:
        DesignError: If a pair has more than two prompts, one harm level, or two topics.
    """
    members: dict[str, list[int]] = {}
    for row, pair in enumerate(labels.pair):
        if pair is not None:
            members.setdefault(pair, []).append(row)
    paired = np.zeros(len(labels.harm), dtype=bool)
    for pair, rows in members.items():
        if len(rows) == 1:
            continue
        if len(rows) > 2 or labels.harm[rows].sum() != 1:
            n_harmful = int(labels.harm[rows].sum())
            raise DesignError(
                f"Pair {pair!r} has {n_harmful} harmful and {len(rows) - n_harmful} harmless "
                f"prompts; a pair is one of each. Give every pair an id of its own."
            )
        if len(set(labels.topic[rows])) > 1:
            raise DesignError(
                f"The two prompts of pair {pair!r} have different topics; a pair shares its topic."
            )
        paired[rows] = True
    return paired


def wording_units(labels: Labels) -> Int[ndarray, " prompt"]:
    """Group prompts that share a wording or a pair, directly or through others.

    A pair whose two sides are worded differently joins the two wordings in one unit.

    Args:
        labels: Labels of the prompts.

    Returns:
        The unit of each prompt, from 0.
    """
    n_prompts = len(labels.harm)
    codes, nodes = {}, []
    for row in range(n_prompts):
        for kind, value in (("wording", labels.wording[row]), ("pair", labels.pair[row])):
            if value is not None:
                nodes.append((row, n_prompts + codes.setdefault((kind, value), len(codes))))
    size = n_prompts + len(codes)
    edges = np.array(nodes or np.empty((0, 2)), dtype=int)
    graph = coo_array((np.ones(len(edges)), (edges[:, 0], edges[:, 1])), shape=(size, size))
    _, component = connected_components(graph, directed=False)
    return _compact(component[:n_prompts])


def harm_exchange(scheme: str, labels: Labels) -> Exchange:
    """Build the relabelling of harm.

    Args:
        scheme: One of ``"wording_pair", "wording", "pair", "within_topic"``.
        labels: Labels of the prompts that take part.

    Returns:
        The exchange of harm labels.

    Raises:
        DesignError: If the units do not have the form that the scheme needs.
    """
    if scheme == "pair":
        units = _compact(_codes(labels.pair))
        return _flip(units, "the two labels within a matched pair")
    if scheme == "wording_pair":
        units = wording_units(labels)
        _require_balance(units, labels)
        return _flip(units, "the labels of all prompts of a wording at once")
    units = np.arange(len(labels.harm)) if scheme == "within_topic" else _singles(labels)
    if scheme == "wording" and (_levels_per_unit(units, labels.harm) == 2).any():
        raise DesignError(
            "Scheme 'wording' needs wordings that are either harmful or harmless throughout; "
            "where a wording has both sides take 'wording_pair'."
        )
    topics = _composition(units, labels.topic)
    words = {
        "within_topic": "prompts of one topic",
        "wording": "whole wordings that are used in the same topics",
    }[scheme]
    first = _first(units)
    return Exchange("permute", units, topics, labels.harm[first].astype(int), words)


def topic_exchange(scheme: str, labels: Labels, paired: Bool[ndarray, " prompt"]) -> Exchange:
    """Build the relabelling of topics that goes with a relabelling of harm.

    What is dealt anew is a pair with both its prompts (or a prompt among those of its harm
    level). A wording that occurs in several topics is a block: topics are exchanged inside it
    only. A wording that lives in one topic is itself the unit.

    Args:
        scheme: The scheme of harm.
        labels: Labels of the prompts that take part.
        paired: Whether the prompt is in a complete pair.

    Returns:
        The exchange of topic labels.
    """
    n_prompts = len(labels.harm)
    if scheme == "within_topic":
        units = np.arange(n_prompts)
        return Exchange(
            "permute", units, labels.harm.astype(int), labels.topic, "prompts of one harm level"
        )
    if scheme == "pair":
        units = _compact(_codes(labels.pair))
        first = _first(units)
        return Exchange(
            "permute", units, np.zeros(len(first), dtype=int), labels.topic[first], "whole pairs"
        )
    wording = wording_units(labels) if scheme == "wording_pair" else _singles(labels)
    crossed = _levels_per_unit(wording, labels.topic)[wording] > 1
    base = np.where(paired, _codes(labels.pair), n_prompts + np.arange(n_prompts))
    units = _compact(np.where(crossed, base, 2 * n_prompts + wording))
    first = _first(units)
    block = np.where(crossed[first], wording[first], -1)
    stratum = _rows_to_codes(
        np.stack([block, _composition(units, labels.harm.astype(int))], axis=1)
    )
    words = {
        (True, True): "pairs or prompts within a wording, and wordings of one topic",
        (True, False): "pairs or prompts within a wording",
        (False, True): "whole wordings, each of one topic",
    }[bool(crossed.any()), bool((~crossed).any())]
    return Exchange("permute", units, stratum, labels.topic[first], words)


def _flip(units: Int[ndarray, " prompt"], words: str) -> Exchange:
    zeros = np.zeros(units.max() + 1, dtype=int)
    return Exchange("flip", units, zeros, zeros, words)


def _require_balance(units: Int[ndarray, " prompt"], labels: Labels) -> None:
    difference = np.zeros((units.max() + 1, labels.topic.max() + 1), dtype=int)
    np.add.at(difference, (units, labels.topic), np.where(labels.harm, 1, -1))
    if difference.any():
        unit, topic = (int(i) for i in np.argwhere(difference)[0])
        rows = (units == unit) & (labels.topic == topic)
        wording = next((w for w in labels.wording[rows] if w is not None), None)
        raise DesignError(
            f"Wording {wording!r} has {int(labels.harm[rows].sum())} harmful and "
            f"{int((~labels.harm[rows]).sum())} harmless prompts in one topic; the labels of a "
            f"wording can be swapped only if each topic has as many of both. Give `pair` ids, so "
            f"that prompts without a partner can be left out."
        )


def _singles(labels: Labels) -> Int[ndarray, " prompt"]:
    """Units by wording alone; a prompt without a wording is a unit of its own."""
    return wording_units(
        Labels(labels.topic, labels.harm, np.full(len(labels.harm), None), labels.wording)
    )


def _levels_per_unit(
    units: Int[ndarray, " prompt"], values: Shaped[ndarray, " prompt"]
) -> Int[ndarray, " unit"]:
    pairs = np.unique(np.stack([units, values.astype(int)], axis=1), axis=0)
    return np.bincount(pairs[:, 0], minlength=units.max() + 1)


def _composition(
    units: Int[ndarray, " prompt"], values: Int[ndarray, " prompt"]
) -> Int[ndarray, " unit"]:
    """Code of how many prompts of each value a unit has: equal codes, exchangeable units."""
    counts = np.zeros((units.max() + 1, values.max() + 1), dtype=int)
    np.add.at(counts, (units, values), 1)
    return _rows_to_codes(counts)


def _rows_to_codes(rows: Int[ndarray, "unit column"]) -> Int[ndarray, " unit"]:
    return np.unique(rows, axis=0, return_inverse=True)[1].reshape(-1)


def _compact(codes: Int[ndarray, " prompt"]) -> Int[ndarray, " prompt"]:
    return np.unique(codes, return_inverse=True)[1].reshape(-1)


def _codes(names: Shaped[ndarray, " prompt"]) -> Int[ndarray, " prompt"]:
    seen: dict[str | None, int] = {}
    return np.array([seen.setdefault(name, len(seen)) for name in names], dtype=int)


def _first(units: Int[ndarray, " prompt"]) -> Int[ndarray, " unit"]:
    return np.unique(units, return_index=True)[1]
