"""Spans that only some prompts have: recorded where they are, told of where they are not."""

import warnings

import numpy as np
import pytest

from moe_interp.capture import open_record, record_routing
from moe_interp.errors import PromptError, SpanError
from moe_interp.prompts import DataCard, Prompt, PromptSet
from moe_interp.scores import mean_routing_weight, selection_frequency
from moe_interp.stats import routing_shares

LONE = (2, 5)


@pytest.fixture(scope="module")
def some_pairs():
    """Four pairs that differ in one word, and two prompts without a partner among them."""
    words = [("code", "steal"), ("cake", "kill"), ("python", "make"), ("car", "process")]
    prompts = []
    for n, (harmless, harmful) in enumerate(words):
        for word in (harmless, harmful):
            prompts.append(
                Prompt(
                    f"how do i {word} a car",
                    topic=("x", "y")[n % 2],
                    harm=word == harmful,
                    pair=f"pair {n}",
                    response="make a cake" if n else None,
                )
            )
    for n in LONE:
        prompts.insert(n, Prompt("make cake", topic="x", harm=bool(n % 2), id=f"lone {n}"))
    return PromptSet(prompts)


@pytest.fixture(scope="module")
def recorded(model, some_pairs):
    with pytest.warns(UserWarning, match=r"2 of 10 .*'after_divergence': 'lone 2', 'lone 5'"):
        return record_routing(
            model,
            some_pairs,
            spans=("user", "prompt", "after_divergence"),
            n_random_routers=3,
            rng=np.random.default_rng(0),
            progress=False,
        )


def has_partner(recorded):
    return ~np.isin(np.arange(recorded.n_prompts), LONE)


def test_a_profile_leaves_out_by_name_who_has_no_token(recorded):
    with pytest.warns(UserWarning, match=r"2 of 10 .* left out of its profile: 'lone 2', 'lone 5'"):
        profile = recorded.profile("after_divergence")
    kept = np.flatnonzero(has_partner(recorded))
    assert profile.n_prompts == 8
    assert profile.id.tolist() == [recorded.prompts.ids[n] for n in kept]
    assert profile.harm.tolist() == recorded.prompts.harm[kept].tolist()


def test_the_profile_counts_the_tokens_after_the_word_that_differs(recorded):
    with pytest.warns(UserWarning, match="left out"):
        profile = recorded.profile("after_divergence")
    # "a", "car" and the template's end; no word of another span.
    assert (profile.n_slots == 3 * recorded.top_k).all()
    owner = recorded.dataset["prompt_index"].values
    index = recorded.dataset["expert_index"].values
    for row, prompt in enumerate(np.flatnonzero(has_partner(recorded))):
        tail = index[owner == prompt][-3:]
        for layer in range(len(recorded.layers)):
            counts = np.bincount(tail[:, layer].ravel(), minlength=recorded.n_experts)
            assert np.allclose(profile.shares[row, layer], counts / counts.sum())


def test_random_profiles_are_those_of_the_same_prompts(recorded):
    with pytest.warns(UserWarning, match="left out"):
        profile = recorded.profile("after_divergence")
    random = recorded.random_profiles("after_divergence")
    assert random.shape == (3, *profile.shares.shape)
    assert np.allclose(random.sum(axis=-1), 1)
    stored = recorded.dataset["random_profile"].sel(span="after_divergence").values
    assert np.isnan(stored[:, LONE]).all()
    shares = routing_shares(profile, random_profiles=random)
    assert shares is not None


def test_a_span_that_all_prompts_have_is_not_spoken_of(recorded):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert recorded.profile("user").n_prompts == 10
        assert recorded.random_profiles("user").shape[1] == 10


@pytest.mark.parametrize(
    "number",
    [
        lambda record: record.shares("after_divergence"),
        lambda record: selection_frequency(record, span="after_divergence"),
        lambda record: mean_routing_weight(record, span="after_divergence"),
    ],
)
def test_a_number_for_each_prompt_is_refused_where_some_have_no_token(recorded, number):
    message = r"2 of 10 prompts have no token .*'lone 2', 'lone 5'. Leave them out: record.select"
    with pytest.raises(SpanError, match=message):
        number(recorded)
    assert number(recorded.select(recorded.has_tokens("after_divergence"))) is not None


def test_a_selection_holds_the_prompts_and_tokens_chosen_in_their_order(recorded):
    order = [7, 0, 3]
    chosen = recorded.select(order)
    assert chosen.prompts == recorded.prompts.select(order)
    assert chosen.dataset.attrs["prompts"]["digest"] == chosen.prompts.digest
    whole = recorded.dataset["prompt_index"].values
    part = chosen.dataset["prompt_index"].values
    for new, old in enumerate(order):
        for name in ("expert_index", "routing_weights", "token_id", "pos"):
            assert np.array_equal(
                chosen.dataset[name].values[part == new],
                recorded.dataset[name].values[whole == old],
            )
    assert np.array_equal(chosen.shares("user"), recorded.shares("user")[order])
    assert np.array_equal(
        chosen.random_profiles("user"), recorded.random_profiles("user")[:, order]
    )


def test_a_mask_and_positions_select_the_same_and_a_selection_is_saved(recorded, tmp_path):
    mask = has_partner(recorded)
    chosen = recorded.select(mask)
    assert np.array_equal(
        chosen.shares("user"), recorded.select(np.flatnonzero(mask)).shares("user")
    )
    chosen.save(tmp_path / "some.zarr")
    again = open_record(tmp_path / "some.zarr")
    assert again.prompts == chosen.prompts
    assert np.array_equal(again.shares("after_divergence"), chosen.shares("after_divergence"))


@pytest.mark.parametrize(
    ("chosen", "error", "message"),
    [
        ([True, False], ValueError, "one value for each of the 10 prompts"),
        ([], PromptError, "is empty"),
        ([10], IndexError, "out of"),
    ],
)
def test_a_selection_of_what_is_not_there_is_refused(recorded, chosen, error, message):
    with pytest.raises(error, match=message):
        recorded.select(chosen)


def test_responses_are_recorded_after_their_prompts_and_kept(model, some_pairs, tmp_path):
    spans = ("prompt", "last", "response")
    with pytest.warns(UserWarning, match=r"4 of 10 prompts have no token in the span 'response'"):
        record = record_routing(model, some_pairs, spans=spans, progress=False)
    alone = record_routing(model, some_pairs, spans=("prompt", "last"), progress=False)
    # What a causal model does on the prompt does not depend on the response.
    inside = record.inside("prompt")
    for name in ("expert_index", "token_id", "pos"):
        assert np.array_equal(record.dataset[name].values[inside], alone.dataset[name].values)
    said = record.dataset["token_text"].values[record.inside("response")]
    assert "".join(said).replace(" ", "") == "makeacake" * 6
    assert np.array_equal(record.shares("last"), alone.shares("last"))
    record.save(tmp_path / "r.zarr")
    assert open_record(tmp_path / "r.zarr").prompts == some_pairs


def test_a_record_knows_whose_its_prompts_are(model, some_pairs, tmp_path):
    card = DataCard("Mine", licence="CC0", topic="a column", pairing="by hand")
    record = record_routing(model, PromptSet(some_pairs, source="x", card=card), progress=False)
    record.save(tmp_path / "r.zarr")
    again = open_record(tmp_path / "r.zarr")
    assert again.prompts.card == again.select([0]).prompts.card == card
    assert "\n  Mine, licence CC0; topic: a column; pairs: by hand\n" in again.summary()


def test_a_record_from_before_there_were_responses_opens(recorded):
    attributes = {**recorded.dataset.attrs["prompts"]}
    del attributes["card"]
    dataset = recorded.dataset.drop_vars("response").assign_attrs(prompts=attributes)
    old = type(recorded)(dataset)
    assert old.prompts.card is None
    assert set(old.prompts.responses) == {None}
    assert old.prompts.texts == recorded.prompts.texts
