from dataclasses import replace

import numpy as np
import pytest

from moe_interp.capture import check_confounds, slots_changed, token_routing
from moe_interp.errors import DesignError, SpanError
from moe_interp.stats import confound_sensitivity


@pytest.mark.parametrize("span", ["user", "prompt", "last"])
def test_the_tokens_of_a_span_add_up_to_its_shares(record, span):
    tokens = token_routing(record, span)
    assert tokens.shares(record.n_prompts) == pytest.approx(record.shares(span))
    assert (tokens.n_in_prompt(record.n_prompts) * record.top_k).tolist() == record.n_slots(
        span
    ).tolist()


def test_whole_prompts_have_every_token_in_its_place(record):
    tokens = token_routing(record, "last", whole=True)
    assert tokens.n_tokens == record.n_tokens
    first = tokens.select(tokens.prompt == 3)
    assert first.pos.tolist() == list(range(first.n_tokens))
    assert len(set(tokens.token_id[tokens.pos == 0])) == 1


def without_span(record, prompts):
    """The record, in which some prompts have no token in the span "last"."""
    dataset = record.dataset.copy(deep=True)
    owner = dataset["prompt_index"].values
    place = list(dataset["span"].values).index("last")
    dataset["in_span"].values[place, np.isin(owner, prompts)] = False
    return replace(record, dataset=dataset)


def test_prompts_are_numbered_as_in_the_profile(record):
    fewer = without_span(record, [0, 5])
    with pytest.warns(UserWarning, match="2 of 16 prompts have no token in the span 'last'"):
        profile = fewer.profile("last")
    tokens = token_routing(fewer, "last")
    assert tokens.shares(profile.n_prompts) == pytest.approx(profile.shares)
    whole = token_routing(fewer, "last", whole=True)
    assert whole.n_in_prompt(14).sum() == record.n_tokens - sum(
        (record.dataset["prompt_index"].values == prompt).sum() for prompt in (0, 5)
    )
    assert slots_changed(fewer, fewer, "last").shape == (14, len(record.layers))


def test_confounds_are_checked_with_the_random_routers_of_the_record(record, rng):
    found = check_confounds(
        record, "prompt", controls=["length"], n_resamples=99, rng=rng, alpha=0.4
    )
    tokens = token_routing(record, "prompt")
    again = confound_sensitivity(
        record.profile("prompt"), tokens, record.random_profiles("prompt"),
        controls=["length"], n_resamples=99, rng=np.random.default_rng(4), alpha=0.4,
    )  # fmt: skip
    assert found.to_dict() == again.to_dict()
    assert found["length"].label is not None


def changed(record, rng, *, share):
    """The record with some tokens' first choice replaced by an expert they did not choose."""
    dataset = record.dataset.copy(deep=True)
    index = dataset["expert_index"].values
    hit = rng.random(index.shape[:2]) < share
    for token, layer in np.argwhere(hit):
        others = np.setdiff1d(np.arange(record.n_experts), index[token, layer])
        index[token, layer, 0] = rng.choice(others)
    return replace(record, dataset=dataset), hit


def test_changed_slots_are_counted_by_prompt_and_layer(record, rng):
    other, hit = changed(record, rng, share=0.3)
    inside, owner = record.inside("user"), record.dataset["prompt_index"].values
    found = slots_changed(record, other, "user")
    for prompt in range(record.n_prompts):
        own = hit[inside & (owner == prompt)]
        assert found[prompt] == pytest.approx(own.mean(axis=0) / record.top_k)


def test_the_same_experts_in_another_order_are_no_change(record):
    dataset = record.dataset.copy(deep=True)
    dataset["expert_index"].values[:] = dataset["expert_index"].values[..., ::-1].copy()
    assert not slots_changed(record, replace(record, dataset=dataset), "prompt").any()


def test_refuses_other_prompts_and_unknown_spans(record):
    fewer = replace(record, dataset=record.dataset.isel(token=slice(5, None)))
    with pytest.raises(DesignError, match="Record the same prompts with the same tokenizer"):
        slots_changed(record, fewer, "prompt")
    with pytest.raises(SpanError, match="'answer' was not recorded"):
        token_routing(record, "answer")


@pytest.fixture
def rng():
    return np.random.default_rng(4)
