"""Prompts keep their design, or are refused."""

import hashlib
import json
import warnings

import numpy as np
import pytest

from moe_interp.errors import PromptError, ResultExistsError
from moe_interp.prompts import Prompt, PromptSet, load_prompts


def pair(name, topic="food"):
    return [
        Prompt(f"bake {name}", topic=topic, harm=False, pair=name),
        Prompt(f"poison {name}", topic=topic, harm=True, pair=name),
    ]


def factorial(n_topics=4, n_wordings=6):
    """Every wording in every topic, once harmless and once harmful."""
    return PromptSet(
        Prompt(f"{t} {w} {h}", topic=f"t{t}", harm=bool(h), pair=f"{t}-{w}", wording=f"w{w}")
        for t in range(n_topics)
        for w in range(n_wordings)
        for h in (0, 1)
    )


def test_a_set_lists_its_prompts_in_order():
    prompts = PromptSet([*pair("a"), *pair("b", topic="art")])
    assert prompts.texts == ("bake a", "poison a", "bake b", "poison b")
    assert prompts.topics == ("food", "food", "art", "art")
    assert prompts.harm.tolist() == [False, True, False, True]
    assert prompts.pairs == ("a", "a", "b", "b")
    assert prompts.n_pairs == 2


def test_prompts_without_an_id_are_named_by_position_and_keep_their_names():
    prompts = PromptSet([Prompt("x"), Prompt("y", id="own"), Prompt("z")])
    assert prompts.ids == ("p0000", "own", "p0001")
    assert prompts.select([2]).ids == ("p0001",)


def test_a_given_id_is_never_given_again():
    assert PromptSet([Prompt("x"), Prompt("y", id="p0000")]).ids == ("p0001", "p0000")


def test_an_empty_set_is_refused():
    with pytest.raises(PromptError, match="The prompt set from 'here' is empty"):
        PromptSet([], source="here")


@pytest.mark.parametrize("text", ["", " \n\t"])
def test_an_empty_text_is_refused(text):
    with pytest.raises(PromptError, match="`text` is empty"):
        Prompt(text)


def test_an_id_taken_twice_is_refused():
    with pytest.raises(PromptError, match="prompt 'a' and prompt 'a' are both called 'a'"):
        PromptSet([Prompt("x", id="a"), Prompt("y", id="a")])


def test_a_pair_with_two_harmful_members_is_refused():
    twice = Prompt("poison again", topic="food", harm=True, pair="a", id="new")
    with pytest.raises(PromptError, match=r"'a' has two harmful prompts, .*'p0001' and .*'new'"):
        PromptSet([*pair("a"), twice])


def test_a_pair_of_unknown_harm_is_refused():
    with pytest.raises(PromptError, match="'p0000' belongs to pair 'a' but does not say"):
        PromptSet([Prompt("x", pair="a")])


def test_a_pair_across_topics_is_refused():
    bake, poison = pair("a")[0], pair("a", topic="art")[1]
    with pytest.raises(PromptError, match=r"Pair 'a' joins topic 'food' .* with topic 'art'"):
        PromptSet([bake, poison])


def test_prompts_without_a_partner_are_listed():
    lone = Prompt("z", topic="food", harm=True, pair="c", id="lone")
    prompts = PromptSet([*pair("a"), lone, Prompt("no pair", id="free")])
    assert prompts.unpaired == ("lone", "free")
    assert prompts.n_pairs == 1


def test_harm_is_refused_where_it_is_unknown():
    prompts = PromptSet([Prompt("x", harm=True), Prompt("y", id="odd")])
    assert not prompts.has_harm
    with pytest.raises(PromptError, match=r"1 of 2 prompts do not say .*'odd'"):
        _ = prompts.harm


def test_a_mask_and_positions_select_the_same():
    prompts = PromptSet([*pair("a"), *pair("b")])
    assert prompts.select(prompts.harm) == prompts.select([1, 3])
    assert prompts.select(np.array([3, 1])).texts == ("poison b", "poison a")


def test_a_mask_of_another_length_is_refused():
    with pytest.raises(ValueError, match=r"each of the 2 prompts, got shape \(1,\)"):
        PromptSet(pair("a")).select([True])


def test_slices_are_sets_and_items_are_prompts():
    prompts = PromptSet([*pair("a"), *pair("b")])
    assert prompts[1].text == "poison a"
    assert isinstance(prompts[:2], PromptSet)
    assert len(prompts[:2]) == 2


def test_the_digest_depends_on_every_field_and_on_the_order_but_not_on_the_source():
    first, second = pair("a")
    digest = PromptSet([first, second]).digest
    assert PromptSet([first, second], source="other").digest == digest
    others = [
        [second, first],
        [Prompt("bake A", topic="food", harm=False, pair="a"), second],
        [Prompt("bake a", topic="food", harm=False), second],
        [Prompt("bake a", topic="food", harm=False, pair="a", wording="w"), second],
    ]
    assert len({digest, *(PromptSet(other).digest for other in others)}) == 5


def test_a_topic_with_one_harm_level_is_named_and_left_out():
    prompts = PromptSet([*pair("a"), Prompt("paint", topic="art", harm=False)])
    with pytest.warns(UserWarning, match=r"1 of 3 prompts were left out: .*: 'art'"):
        balanced = prompts.balanced()
    assert balanced.topics == ("food", "food")


def test_a_topic_with_one_prompt_is_named_and_left_out():
    prompts = PromptSet([*pair("a"), Prompt("x", topic="alone", harm=True, pair="b")])
    with pytest.warns(UserWarning, match=r"1 of 3 prompts were left out: .*: 'alone'"):
        assert prompts.balanced().topics == ("food", "food")


@pytest.mark.parametrize("harm", [True, False])
def test_a_set_of_one_harm_level_cannot_be_balanced(harm):
    prompts = PromptSet([Prompt("x", topic="a", harm=harm), Prompt("y", topic="a", harm=harm)])
    with pytest.raises(PromptError, match="No topic of 'prompts' has both"):
        prompts.balanced()


def test_a_prompt_without_a_response_has_the_digest_it_had_before_there_were_any():
    fields = {"text": "x", "topic": "t", "harm": True, "pair": None, "wording": None, "id": "a"}
    expected = hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()
    assert PromptSet([Prompt(**fields)]).digest == expected
    assert PromptSet([Prompt(**fields, response="y")]).digest != expected


def test_a_balanced_set_stays_as_it_is_without_a_word():
    prompts = PromptSet([*pair("a"), *pair("b", topic="art")])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert prompts.balanced() == prompts


def test_a_set_whose_topics_are_its_harm_levels_is_refused():
    prompts = PromptSet([Prompt("x", topic="a", harm=True), Prompt("y", topic="b", harm=False)])
    with pytest.raises(PromptError, match="No topic of 'prompts' has both"):
        prompts.balanced()


@pytest.mark.parametrize("ending", ["jsonl", "csv"])
def test_a_written_set_is_read_back_the_same(tmp_path, ending):
    odd = Prompt('say "é, 😀"\n, then\u2028stop ', topic="ar,t", harm=None, wording="w")
    prompts = PromptSet([*pair("a"), odd])
    path = tmp_path / f"prompts.{ending}"
    getattr(prompts, f"to_{ending}")(path)
    again = load_prompts(path)
    assert again == prompts
    assert again.digest == prompts.digest


@pytest.mark.parametrize("ending", ["jsonl", "csv"])
def test_a_file_is_not_written_over_unasked(tmp_path, ending):
    prompts = PromptSet(pair("a"))
    path = tmp_path / f"prompts.{ending}"
    path.write_text("mine")
    with pytest.raises(ResultExistsError, match="exists already and was left as it is"):
        getattr(prompts, f"to_{ending}")(path)
    assert path.read_text() == "mine"
    getattr(prompts, f"to_{ending}")(path, force=True)
    assert load_prompts(path) == prompts


def test_the_summary_counts_what_the_set_holds():
    prompts = PromptSet([*pair("a"), Prompt("x", topic="art")], source="here")
    assert prompts.summary() == (
        "3 prompts from here: 1 harmful, 1 harmless, 1 of unknown harm, 2 topics, 1 pairs, "
        "1 unpaired"
    )


def test_the_frame_has_a_row_for_each_prompt():
    frame = PromptSet(pair("a")).to_frame()
    assert frame["text"].tolist() == ["bake a", "poison a"]
    assert frame["harm"].tolist() == [False, True]


def test_a_split_shares_no_wording_where_wordings_repeat():
    first, second = factorial().split(rng=np.random.default_rng(0))
    assert not set(first.wordings) & set(second.wordings)
    assert len(first) == len(second) == 24


@pytest.mark.parametrize("seed", range(5))
def test_a_split_by_pair_keeps_pairs_and_divides_every_topic_alike(seed):
    prompts = factorial(n_topics=4, n_wordings=5)
    first, second = prompts.split(rng=np.random.default_rng(seed), by="pair")
    assert not set(first.pairs) & set(second.pairs)
    assert len(first) == len(second) == 20
    for topic in set(prompts.topics):
        assert first.topics.count(topic) in (4, 6)


def test_a_split_takes_the_fraction_asked_for():
    first, second = factorial().split(rng=np.random.default_rng(0), fraction=0.25, by="prompt")
    assert (len(first), len(second)) == (12, 36)


def test_the_same_generator_gives_the_same_split():
    halves = [factorial().split(rng=np.random.default_rng(3), by="pair")[0] for _ in range(2)]
    other = factorial().split(rng=np.random.default_rng(4), by="pair")[0]
    assert halves[0] == halves[1] != other


def test_every_unit_is_as_likely_in_the_first_part():
    # 400 draws of 6 units at 1/3: a count outside 133 ± 50 has a chance below 1e-6.
    prompts = factorial(n_topics=1)
    counts = dict.fromkeys(prompts.pairs, 0)
    for seed in range(400):
        first, _ = prompts.split(rng=np.random.default_rng(seed), fraction=1 / 3)
        for name in set(first.pairs):
            counts[name] += 1
    assert all(83 < count < 183 for count in counts.values())


def test_no_two_units_are_tied_to_the_same_part():
    prompts = factorial(n_topics=1)
    halves = [prompts.split(rng=np.random.default_rng(seed))[0] for seed in range(60)]
    for one in range(5):
        # Two of six units are together in 2 of 5 halves: never or always has a chance below 1e-13.
        together = {(f"0-{one}" in half.pairs) == ("0-5" in half.pairs) for half in halves}
        assert together == {True, False}


def test_two_wordings_joined_by_a_pair_stay_together():
    prompts = PromptSet(
        Prompt(f"{w} {t}", topic=t, harm=w > 2, pair=f"{w % 3}{t}", wording=f"w{w}")
        for w in range(6)
        for t in ("x", "y")
    )
    first, second = prompts.split(rng=np.random.default_rng(0))
    assert not set(first.wordings) & set(second.wordings)
    assert not set(first.pairs) & set(second.pairs)


def test_one_wording_for_all_cannot_be_split():
    prompts = factorial(n_wordings=1)
    with pytest.raises(PromptError, match="hang together in one exchange unit"):
        prompts.split(rng=np.random.default_rng(0))


@pytest.mark.parametrize("fraction", [0.0, 1.0, -0.5])
def test_a_fraction_that_leaves_a_part_empty_is_refused(fraction):
    with pytest.raises(ValueError, match="`fraction` must lie between 0 and 1"):
        factorial().split(rng=np.random.default_rng(0), fraction=fraction)


def test_an_unknown_unit_is_refused():
    with pytest.raises(ValueError, match=r"`by` must be one of .* got 'topic'"):
        factorial().split(rng=np.random.default_rng(0), by="topic")
