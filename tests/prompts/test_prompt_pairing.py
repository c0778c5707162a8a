"""Matched pairs: optimal by enumeration, one partner each, and nobody left out unsaid."""

import itertools
import warnings

import numpy as np
import pytest

from moe_interp.errors import PromptError
from moe_interp.prompts import Prompt, PromptSet, match_lengths, pair_prompts, pair_report


def prompt(n_words, harm, topic="t", **fields):
    word = "bad" if harm else "good"
    return Prompt(" ".join([word] * n_words), topic=topic, harm=harm, **fields)


def best_by_enumeration(first, second, caliper):
    """Most matches, then smallest total, over every one-to-one matching there is."""
    best = (0, 0.0)
    short, long = sorted((list(first), list(second)), key=len)
    for chosen in itertools.permutations(range(len(long)), len(short)):
        gaps = [abs(short[n] - long[m]) for n, m in enumerate(chosen)]
        # Any match may also be dropped; only those beyond the caliper have to be.
        kept = [gap for gap in gaps if caliper is None or gap <= caliper]
        best = max(best, (len(kept), -sum(kept)))
    return best[0], -best[1]


@pytest.mark.parametrize("seed", range(60))
def test_no_other_matching_has_more_pairs_or_a_smaller_total(seed):
    rng = np.random.default_rng(seed)
    first = rng.integers(0, 12, size=rng.integers(1, 6)).astype(float)
    second = rng.integers(0, 12, size=rng.integers(1, 6)).astype(float)
    caliper = [None, 0, 1, 3][seed % 4]
    matches = match_lengths(first, second, caliper=caliper)
    gaps = [abs(first[a] - second[b]) for a, b in matches]
    expected = best_by_enumeration(first, second, caliper)
    assert (len(matches), sum(gaps)) == (expected[0], pytest.approx(expected[1]))
    assert caliper is None or all(gap <= caliper for gap in gaps)
    for side in zip(*matches, strict=True):
        assert len(set(side)) == len(side)


def test_a_distant_match_gives_way_to_two_near_ones():
    # Nearest first would match 5 with 4 and leave 3 without a partner in reach.
    assert match_lengths(np.array([5.0, 3.0]), np.array([4.0, 6.5]), caliper=2) == [(0, 1), (1, 0)]


def test_a_match_beyond_the_caliper_is_not_made():
    assert match_lengths(np.array([1.0]), np.array([9.0]), caliper=3) == []


@pytest.mark.parametrize("seed", range(20))
def test_pairing_neither_splits_nor_doubles_nor_changes_a_prompt(seed):
    rng = np.random.default_rng(seed)
    prompts = PromptSet(
        Prompt(
            " ".join(["w"] * int(rng.integers(1, 9))) + f" {n}",
            topic=str(rng.choice(["a", "b", "c"])),
            harm=bool(rng.integers(2)),
        )
        for n in range(int(rng.integers(12, 30)))
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        paired = pair_prompts(prompts)
    assert paired.texts == prompts.texts
    assert paired.ids == prompts.ids
    assert paired.harm.tolist() == prompts.harm.tolist()
    used = [n for pair in paired.pair_positions for n in pair]
    assert len(set(used)) == len(used)
    for harmless, harmful in paired.pair_positions:
        assert (paired[harmless].harm, paired[harmful].harm) == (False, True)
        assert paired[harmless].topic == paired[harmful].topic
    # In each topic everybody of the smaller level has a partner.
    for topic in "abc":
        levels = [p.harm for p in prompts if p.topic == topic]
        pairs = sum(paired[n].topic == topic for n, _ in paired.pair_positions)
        assert pairs == min(levels.count(True), levels.count(False))


def test_the_same_set_gives_the_same_pairs_in_any_order():
    rng = np.random.default_rng(0)
    prompts = [
        Prompt(f"{'w ' * int(rng.integers(1, 4))}{n}", topic="ab"[n % 2], harm=n % 3 > 0, id=str(n))
        for n in range(24)
    ]
    found = set()
    for _ in range(5):
        order = rng.permutation(len(prompts))
        with pytest.warns(UserWarning, match="stay without a partner"):
            paired = pair_prompts(PromptSet(prompts[n] for n in order))
        found.add(frozenset((one.id, one.pair) for one in paired))
    assert len(found) == 1


def test_pairs_that_are_whole_stay_and_their_names_are_not_given_again():
    prompts = PromptSet(
        [
            prompt(1, False, pair="t-01"),
            prompt(9, True, pair="t-01"),
            prompt(2, False),
            prompt(3, True, pair="lost"),
        ]
    )
    assert pair_prompts(prompts).pairs == ("t-01", "t-01", "t-02", "t-02")


def test_two_harmful_prompts_for_one_harmless_leave_the_farther_one_over():
    prompts = PromptSet([prompt(4, True, id="far"), prompt(2, True, id="near"), prompt(1, False)])
    with pytest.warns(UserWarning, match=r"1 of 3 prompts stay without a partner .*: 'far' \("):
        paired = pair_prompts(prompts)
    assert paired.unpaired == ("far",)


def test_prompts_that_cannot_be_matched_are_counted_by_reason():
    prompts = PromptSet(
        [
            prompt(1, True),
            prompt(1, False),
            Prompt("x", topic="t", id="unknown"),
            Prompt("y", harm=True, id="topicless"),
            prompt(2, True, topic="alone", id="alone"),
        ]
    )
    message = (
        r"3 of 5 .*1: its harm is unknown; 1: its topic is unknown; 1: no prompt of the other "
        r"harm level was left within reach\): 'unknown', 'topicless', 'alone'"
    )
    with pytest.warns(UserWarning, match=message):
        assert pair_prompts(prompts).n_pairs == 1


def test_a_caliper_leaves_over_who_is_too_long():
    prompts = PromptSet([prompt(1, True), prompt(1, False, id="a"), prompt(9, True, id="long")])
    prompts = PromptSet([*prompts, prompt(3, False, id="b")])
    with pytest.warns(UserWarning, match=r"2 of 4 .*: 'long', 'b'"):
        assert pair_prompts(prompts, caliper=5).n_pairs == 1
    assert pair_prompts(prompts, caliper=6).n_pairs == 2


def test_lengths_may_be_given_as_numbers_or_in_characters():
    prompts = PromptSet(
        [
            Prompt("aaaa aaaa", topic="t", harm=True, id="h1"),
            Prompt("b b b", topic="t", harm=True, id="h2"),
            Prompt("cc cc", topic="t", harm=False, id="five characters"),
            Prompt("d d dddddd", topic="t", harm=False, id="ten characters"),
        ]
    )

    def partner(**options):
        paired = pair_prompts(prompts, **options)
        return next(paired.ids[a] for a, b in paired.pair_positions if paired.ids[b] == "h1")

    assert partner() == "five characters"
    assert partner(length="characters") == "ten characters"
    assert partner(length=np.array([1, 2, 1, 2])) == "five characters"
    assert partner(length=[1, 2, 2, 1]) == "ten characters"


def test_matching_by_wording_too_keeps_to_the_wording():
    prompts = PromptSet(
        [
            prompt(1, True, wording="v"),
            prompt(1, False, wording="w"),
            prompt(5, False, wording="v"),
            prompt(5, True, wording="w"),
        ]
    )
    pairs = pair_prompts(prompts, by=("topic", "wording")).pairs
    assert pairs[0] == pairs[2] != pairs[1] == pairs[3]


def test_a_set_without_topics_is_matched_by_length_if_asked():
    prompts = PromptSet([prompt(1, True, topic=None), prompt(1, False, topic=None)])
    assert pair_prompts(prompts, by=()).pairs == ("match-01", "match-01")
    with pytest.raises(PromptError, match="2: its topic is unknown"):
        pair_prompts(prompts)


@pytest.mark.parametrize("harm", [True, False])
def test_one_harm_level_alone_cannot_be_paired(harm):
    prompts = PromptSet([prompt(1, harm), prompt(2, harm)], source="mine")
    word = "harmful" if harm else "harmless"
    with pytest.raises(PromptError, match=rf"of 'mine' can be paired .* All are {word}\. Add"):
        pair_prompts(prompts)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"by": ("topic", "text")}, r"`by` is among \('topic', 'wording'\), got 'text'"),
        ({"by": ()}, r"`by` must hold 'topic', got \(\)"),
        ({"caliper": -1}, r"`caliper` must be a number from 0, or None, got -1"),
        ({"caliper": float("nan")}, r"`caliper` must be a number from 0, or None, got nan"),
        ({"length": "tokens"}, r"`length` must be one of \('words', 'characters'\) .* 'tokens'"),
        ({"length": [1, 2, 3]}, r"`length` needs one finite .* 2 prompts, got an .* \(3,\)"),
        ({"length": [1, float("nan")]}, r"`length` needs one finite number"),
    ],
)
def test_an_option_of_another_value_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        pair_prompts(PromptSet([prompt(1, True), prompt(1, False)]), **options)


def test_too_many_prompts_of_one_topic_are_refused_before_memory_is(monkeypatch):
    monkeypatch.setattr("moe_interp.prompts._pairing._MAX_CHOICES", 3)
    prompts = PromptSet(prompt(n + 1, harm) for n in range(2) for harm in (True, False))
    with pytest.raises(PromptError, match=r"2 harmless and 2 harmful prompts of topic 't' are"):
        pair_prompts(prompts)


def test_the_report_lists_pairs_lengths_and_who_stayed_alone():
    prompts = PromptSet(
        [
            *(prompt(3, False, pair="a", id="x"), prompt(5, True, pair="a", id="y")),
            *(prompt(2, True, pair="b", id="z"), prompt(2, False, pair="b", id="w")),
            prompt(1, True, id="alone"),
        ]
    )
    report = pair_report(prompts)
    frame = report.to_frame()
    assert frame["harmless"].tolist() == ["x", "w"]
    assert frame["harmful"].tolist() == ["y", "z"]
    assert frame["length_harmless"].tolist() == [3, 2]
    assert frame["length_harmful"].tolist() == [5, 2]
    assert report.unpaired == ("alone",)
    assert report.to_dict()["pairs"][0]["n_prefix"] is None
    assert report.summary().splitlines() == [
        "2 pairs, 1 prompts unpaired",
        "  length, harmful less harmless: +1.00 words on average, 2 at most",
        "  unpaired: 'alone'",
    ]


def test_the_report_counts_tokens_in_common(byte_level):
    prompts = PromptSet(
        [
            Prompt("say a b c", topic="t", harm=False, pair="a"),
            Prompt("say x b y", topic="t", harm=True, pair="a"),
        ]
    )
    report = pair_report(prompts, tokenizer=byte_level)
    frame = report.to_frame()
    # The template ends with four tokens, <|end|>, a line break, <|assistant|> and a line break;
    # " b" is the one that both have between.
    ends = byte_level("<|end|>\n<|assistant|>\n", add_special_tokens=False)["input_ids"]
    assert frame["n_suffix"].tolist() == [len(ends)]
    assert frame["n_identical"].item() > len(ends)
    assert "tokens in common (median)" in report.summary()


def test_a_report_of_no_pairs_is_refused():
    with pytest.raises(PromptError, match=r"No prompt of 'mine' has a partner.*`pair_prompts`"):
        pair_report(PromptSet([prompt(1, True)], source="mine"))
