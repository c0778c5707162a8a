from itertools import permutations, product

import numpy as np
import pytest

from moe_interp.errors import DesignError
from moe_interp.stats._design import MAX_GROUPS, make_design
from moe_interp.stats._relabel import draw_labels, is_exhaustive
from moe_interp.stats._schemes import Exchange


def design_of(simulate, labels, rng, scheme="auto"):
    profile = simulate.profile(labels, simulate.shares(labels, rng))
    return make_design(profile, scheme, need_topics=True)


def with_labels(labels, **changes):
    return type(labels)(**{**vars(labels), **changes})


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("wording_pair", "4 wordings are shared by 24 prompts, and 100% of them are used on both"),
        ("wording", "8 wordings are shared by 24 prompts, and 100% of them on one side only"),
        ("pair", "no wording is shared and 100% of the prompts are in matched pairs"),
        ("within_topic", "no wording is shared and 0% of the prompts are in matched pairs"),
    ],
)
def test_auto_says_why_it_chose(simulate, rng, name, reason):
    assert design_of(simulate, simulate.labels(name), rng).reason.startswith(reason)
    assert design_of(simulate, simulate.labels(name), rng, scheme=name).reason == "it was asked for"


def test_auto_finds_the_unit_that_the_labels_call_for(simulate, scheme, rng):
    design = design_of(simulate, simulate.labels(scheme), rng)
    assert design.scheme == scheme


@pytest.mark.parametrize(
    ("name", "kind", "n_units", "n_topic_units"),
    [
        ("wording_pair", "flip", 4, 12),
        ("wording", "permute", 8, 24),
        ("pair", "flip", 12, 12),
        ("within_topic", "permute", 24, 24),
    ],
)
def test_units_are_counted_as_exchanged(simulate, rng, name, kind, n_units, n_topic_units):
    design = design_of(simulate, simulate.labels(name), rng)
    assert design.exchange.kind == kind
    assert design.exchange.n_units == n_units
    assert design.topic_exchange.n_units == n_topic_units


def test_a_wording_used_by_one_pair_only_leaves_pairs_the_unit(simulate, rng):
    labels = simulate.labels("pair")
    assert design_of(simulate, with_labels(labels, wording=labels.pair), rng).scheme == "pair"


def test_a_pair_worded_differently_joins_its_two_wordings(simulate, rng):
    labels = simulate.labels("wording_pair", n_wordings=8)
    sided = [f"{w}-{h}" for w, h in zip(labels.wording, labels.harm, strict=True)]
    design = design_of(simulate, with_labels(labels, wording=sided), rng)
    assert design.scheme == "wording_pair"
    assert design.exchange.n_units == 8


def test_topics_of_a_wording_that_crosses_topics_are_exchanged_inside_it(simulate, rng):
    labels = simulate.labels("wording_pair")
    exchange = design_of(simulate, labels, rng).topic_exchange
    strata = exchange.stratum[exchange.unit]
    assert len(set(strata.tolist())) == 4
    assert len(set(zip(strata.tolist(), labels.wording, strict=True))) == 4


def test_wordings_that_live_in_one_topic_exchange_topics_whole(simulate, rng):
    labels = simulate.labels("wording_pair", per_cell=2)
    own = [f"{t}-{w}" for t, w in zip(labels.topic, labels.wording, strict=True)]
    design = design_of(simulate, with_labels(labels, wording=own), rng)
    assert design.exchange.n_units == 12
    assert design.topic_exchange.n_units == 12
    assert design.topic_exchange.words == "whole wordings, each of one topic"


@pytest.mark.parametrize("pairs", ["with pair ids", "without pair ids"])
def test_relabelling_keeps_the_counts_of_topic_by_harm(simulate, scheme, rng, pairs):
    labels = simulate.labels(scheme)
    if pairs == "without pair ids" and scheme == "wording_pair":
        labels = with_labels(labels, pair=None)
    design = design_of(simulate, labels, rng)

    def counts(topic, harm):
        table = np.zeros((3, 2), dtype=int)
        np.add.at(table, (topic, (harm > 0).astype(int)), 1)
        return table.tolist()

    expected = counts(design.topic, design.harm)
    drawn = next(draw_labels(design.exchange, 20, rng, width=1))
    for label in drawn[:, design.exchange.unit]:
        harm = design.harm * label if design.exchange.kind == "flip" else 2 * label - 1
        assert counts(design.topic, harm) == expected
    for label in next(draw_labels(design.topic_exchange, 20, rng, width=1)):
        assert counts(label[design.topic_exchange.unit], design.harm) == expected


def test_few_sign_patterns_are_each_taken_once(rng):
    zeros = np.zeros(4, dtype=int)
    exchange = Exchange("flip", np.arange(4), zeros, zeros, "units")
    assert is_exhaustive(exchange, 8)
    assert not is_exhaustive(exchange, 7)
    patterns = np.concatenate(list(draw_labels(exchange, 8, rng, width=1)))
    with_their_negatives = {tuple(p) for p in [*patterns.tolist(), *(-patterns).tolist()]}
    assert len(patterns) == 8
    assert with_their_negatives == set(product((-1, 1), repeat=4))


def test_all_chunks_together_hold_as_many_relabellings_as_asked_for(rng):
    zeros = np.zeros(30, dtype=int)
    exchange = Exchange("flip", np.arange(30), zeros, zeros, "units")
    chunks = list(draw_labels(exchange, 1001, rng, width=2**21 // 100))
    assert len(chunks) == 11
    assert sum(map(len, chunks)) == 1001


def test_permutations_stay_in_their_stratum(rng):
    stratum = np.array([0, 0, 0, 1, 1, 2])
    label = np.array([0, 1, 1, 2, 3, 4])
    exchange = Exchange("permute", np.arange(6), stratum, label, "units")
    drawn = next(draw_labels(exchange, 500, rng, width=1))
    for number in range(3):
        own = np.sort(drawn[:, stratum == number], axis=1)
        assert (own == np.sort(label[stratum == number])).all()
    seen = {tuple(row) for row in drawn.tolist()}
    assert len(seen) == 3 * 2


@pytest.mark.parametrize("label", [[0, 0, 1, 1], [0, 1, 1, 1], [0, 1, 2, 2], [0, 0, 0, 0]])
def test_smallest_p_counts_relabellings_that_cannot_differ(label):
    exchange = Exchange("permute", np.arange(4), np.zeros(4, dtype=int), np.array(label), "units")

    def partition(labels):
        # Labels of equal frequency may swap names without a change of any sum of squares.
        blocks = [tuple(i for i, own in enumerate(labels) if own == k) for k in set(labels)]
        return tuple(sorted(blocks))

    distinct = {partition(order) for order in permutations(label)}
    assert np.isclose(exchange.smallest_p(), 1 / len(distinct))


def test_refuses_a_level_that_the_units_cannot_reach(simulate, rng):
    exchange = design_of(simulate, simulate.labels("wording_pair"), rng).exchange
    message = r"4 such units allow no p-value below 0.125, .* 0.05 .* About 6 units"
    with pytest.raises(DesignError, match=message):
        exchange.require(0.05, "harm")
    exchange.require(0.125, "harm")


def test_says_how_many_permuted_units_are_needed():
    exchange = Exchange(
        "permute", np.arange(4), np.zeros(4, dtype=int), np.array([0, 0, 1, 1]), "whole wordings"
    )
    with pytest.raises(DesignError, match=r"exchanges whole wordings: 4 .* About 7 units"):
        exchange.require(0.05, "harm")


def test_leaves_out_topics_with_one_harm_level_and_names_them(simulate, rng):
    labels = simulate.labels("within_topic")
    harm = [h or t == "topic1" for t, h in zip(labels.topic, labels.harm, strict=True)]
    with pytest.warns(UserWarning, match=r"8 prompts of topics .* left out: 'topic1'"):
        design = design_of(simulate, with_labels(labels, harm=harm), rng)
    assert design.topics == ("topic0", "topic2")
    assert design.n_prompts == 16


def test_leaves_out_unpaired_prompts_and_names_them(simulate, rng):
    labels = simulate.labels("pair")
    pair = [None if row == 5 else name for row, name in enumerate(labels.pair)]
    with pytest.warns(UserWarning, match=r"2 of 24 prompts have no partner .*: 4, 5\."):
        design = design_of(simulate, with_labels(labels, pair=pair), rng)
    assert design.n_prompts == 22


def change(values, **at):
    return [at.get(f"row{row}", value) for row, value in enumerate(values)]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pair": ("row2", "0-0-0")}, r"Pair '0-0-0' has 2 harmful and 1 harmless"),
        ({"harm": ("row0", False)}, r"Pair '0-0-0' has 0 harmful and 2 harmless"),
        ({"topic": ("row0", "topic2")}, r"two prompts of pair '0-0-0' have different topics"),
        ({"topic": ("row3", None)}, r"1 of 24 prompts have no topic, the first is prompt 3"),
    ],
)
def test_refuses_impossible_pairs_and_missing_topics(simulate, rng, changes, message):
    labels = simulate.labels("pair")
    edits = {
        name: change(getattr(labels, name), **{row: value})
        for name, (row, value) in changes.items()
    }
    with pytest.raises(DesignError, match=message):
        design_of(simulate, with_labels(labels, **edits), rng)


def test_refuses_one_harm_level(simulate, rng):
    labels = simulate.labels("within_topic")
    with pytest.raises(DesignError, match=r"All 24 prompts are harmless"):
        design_of(simulate, with_labels(labels, harm=[False] * 24), rng)


def test_refuses_harm_confounded_with_topic(simulate, rng):
    labels = simulate.labels("within_topic")
    harm = [topic == "topic0" for topic in labels.topic]
    with pytest.raises(DesignError, match=r"Every topic has one harm level only \('topic0'"):
        design_of(simulate, with_labels(labels, harm=harm), rng)


def test_refuses_a_single_topic_where_topic_is_asked_about(simulate, rng):
    labels = simulate.labels("pair")
    with pytest.raises(DesignError, match=r"have the topic 'food': .* at least two topics"):
        design_of(simulate, with_labels(labels, topic=["food"] * 24), rng)


def test_refuses_a_wording_that_cannot_be_swapped(simulate, rng):
    labels = with_labels(simulate.labels("wording_pair"), pair=None)
    lopsided = with_labels(labels, harm=change(labels.harm, row0=False))
    with pytest.raises(DesignError, match=r"Wording 'w0' has 0 harmful and 2 harmless .* `pair`"):
        design_of(simulate, lopsided, rng)


def test_refuses_sided_wordings_where_wordings_have_both_sides(simulate, rng):
    labels = simulate.labels("wording_pair")
    with pytest.raises(DesignError, match=r"where a wording has both sides take 'wording_pair'"):
        design_of(simulate, labels, rng, scheme="wording")


def test_refuses_pairs_where_there_are_none(simulate, rng):
    with pytest.raises(DesignError, match=r"Scheme 'pair' needs matched pairs"):
        design_of(simulate, simulate.labels("within_topic"), rng, scheme="pair")


def test_refuses_an_unknown_scheme(simulate, rng):
    with pytest.raises(ValueError, match=r"`scheme` must be one of \('auto', .*, got 'tokens'"):
        design_of(simulate, simulate.labels("pair"), rng, scheme="tokens")


def test_bundles_many_units_into_groups_that_each_touch_every_cell(simulate, rng):
    labels = simulate.labels("within_topic", n_wordings=64)
    design = design_of(simulate, labels, rng)
    assert design.n_groups == MAX_GROUPS
    sizes = np.bincount(design.group)
    assert sizes.max() - sizes.min() <= 1
    cells = design.topic * 2 + (design.harm > 0)
    for group in range(MAX_GROUPS):
        assert len(set(cells[design.group == group])) == 6
