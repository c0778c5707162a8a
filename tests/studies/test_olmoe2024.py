import numpy as np
import pytest
from scipy.stats import ttest_1samp

import moe_interp as mi
from moe_interp.errors import DesignError
from moe_interp.studies import _olmoe2024, olmoe2024


@pytest.fixture(scope="module")
def described(organism, prompts):
    """Descriptions of organisms; each takes a second."""
    return {
        name: olmoe2024(organism(name), prompts, rng=np.random.default_rng(0), n_resamples=399)
        for name in ("topic", "harm", "null")
    }


def test_on_topic_every_planted_expert_belongs_to_its_topic(described, organism):
    table = described["topic"].to_frame()
    for topic, experts in organism("topic").card["truth"]["topic_experts"].items():
        for expert in mi.ExpertSet(experts):
            line = table.query(f"layer == {expert.layer} and expert == {expert.expert}").iloc[0]
            assert line["domain"] == topic
            assert line["specialisation"] > 0.2
            assert line["p_adjusted"] <= 0.05


def test_on_harm_few_experts_belong_to_a_topic(described):
    table = described["harm"].to_frame()
    assert described["harm"].numbers["specialised"] <= 6
    assert table["specialisation"].abs().max() < 0.2


def test_on_topic_the_two_experts_of_a_topic_are_chosen_together(described):
    pairs = described["topic"].tables["pairs"]
    assert (abs(pairs["second"] - pairs["first"]) == 8).all()
    assert (pairs["layer"] < 3).all()
    assert (pairs["share"] > 0.95).all()
    assert (pairs["expected"] < 0.1).all()
    assert (pairs["low"] > 0.5).all()


def test_with_random_routers_no_pair_is_bound_like_that(described):
    assert described["null"].tables["pairs"]["share"].max() < 0.9


def test_pairs_are_those_whose_expert_with_tokens_enough_needs_the_other_most(
    described, organism, prompts
):
    """Counted token by token; each pair once, by the expert that needs the other more."""
    record = mi.record_routing(organism("null"), prompts, n_random_routers=0, progress=False)
    index = record.dataset["expert_index"].values[record.inside("user")]
    expected = {}
    for layer in range(4):
        # With two choices the other one falls to each expert as it is used.
        chosen = np.zeros((len(index), 16), dtype=bool)
        for slot in (0, 1):
            chosen[np.arange(len(index)), index[:, layer, slot]] = True
        for one in range(16):
            for two in range(one + 1, 16):
                needs = [
                    (
                        chosen[chosen[:, a], b].mean()
                        - chosen[:, b].sum() / (2 * len(index) - chosen[:, a].sum()),
                        a,
                        b,
                    )
                    for a, b in ((one, two), (two, one))
                    if chosen[:, a].sum() >= 10
                ]
                if needs:
                    need, a, b = max(needs, key=lambda found: found[0])
                    expected[layer, a, b] = need
    ranked = sorted(expected.items(), key=lambda pair: -pair[1])[:12]
    found = described["null"].tables["pairs"]
    listed = zip(found["layer"], found["first"], found["second"], strict=True)
    assert {tuple(map(int, pair)) for pair in listed} == {pair for pair, _ in ranked}
    beyond = (found["share"] - found["expected"]).tolist()
    assert beyond == pytest.approx([need for _, need in ranked])


def test_no_expert_stands_in_all_topics_where_topics_are_routed(described):
    committees = described["topic"].numbers["standing_committees"]
    assert not any(committees[layer] for layer in ("0", "1", "2"))
    assert any(described["harm"].numbers["standing_committees"].values())


def test_shares_are_counts_over_the_tokens_of_a_topic(described, organism, prompts):
    record = mi.record_routing(
        organism("topic"), prompts, spans=("user",), n_random_routers=0, progress=False
    )
    inside = record.inside("user")
    index = record.dataset["expert_index"].values
    topics = [prompts.topics[owner] for owner in record.dataset["prompt_index"].values]
    tokens = [t for t in np.flatnonzero(inside) if topics[t] == "locks"]
    line = (
        described["topic"]
        .tables["domains"]
        .query("domain == 'locks' and layer == 1 and expert == 9")
    )
    expected = sum(9 in index[t, 1] for t in tokens) / len(tokens)
    assert line["share"].item() == pytest.approx(expected)
    assert line["low"].item() <= expected <= line["high"].item()


def test_a_model_agrees_with_itself_and_with_a_stranger_as_chance_would(organism, prompts):
    options = {"n_resamples": 9, "n_bootstrap": 9}
    same, other = (
        olmoe2024(
            organism("topic"),
            prompts,
            rng=np.random.default_rng(0),
            other=organism(name),
            **options,
        ).tables["saturation"]
        for name in ("topic", "harm")
    )
    assert (same["saturation"] == 1).all()
    assert (other["saturation"] - other["chance"]).abs().max() < 0.1
    assert (other["low"] <= other["saturation"]).all()


def test_prompts_need_topics(organism):
    with pytest.raises(DesignError, match="2 of 2 prompts have none and the others have 0"):
        olmoe2024(
            organism("topic"),
            mi.PromptSet([mi.Prompt("how do i bake bread ?"), mi.Prompt("open the lock")]),
            rng=np.random.default_rng(0),
        )


def test_harm_is_not_needed(organism, prompts):
    plain = mi.PromptSet(
        mi.Prompt(one.text, topic=one.topic, wording=one.wording, id=one.id) for one in prompts
    )
    found = olmoe2024(organism("topic"), plain, rng=np.random.default_rng(0), n_resamples=9)
    assert len(found.to_frame()) == 64


def test_topics_are_exchanged_within_wordings_where_these_repeat(organism, prompts, monkeypatch):
    asked = {}
    real = _olmoe2024.domain_specialisation

    def spy(count, tokens, domains, **options):
        asked.update(options, domains=domains)
        return real(count, tokens, domains, **options)

    monkeypatch.setattr(_olmoe2024, "domain_specialisation", spy)
    options = {"n_resamples": 9, "n_bootstrap": 9}
    olmoe2024(organism("topic"), prompts, rng=np.random.default_rng(0), **options)
    strata, domains = np.array(asked["strata"]), np.array(asked["domains"])
    assert len(strata) == prompts.n_pairs
    assert len(set(strata.tolist())) == len(set(prompts.wordings))
    # Every wording occurs once in every topic.
    for stratum in set(strata.tolist()):
        assert sorted(domains[strata == stratum]) == sorted(set(prompts.topics))
    own = mi.PromptSet(
        [mi.Prompt(p.text, topic=p.topic, pair=p.pair, harm=p.harm) for p in prompts]
    )
    olmoe2024(organism("topic"), own, rng=np.random.default_rng(0), **options)
    assert asked["strata"] is None


def test_intervals_are_those_of_a_t_test_across_units():
    values = np.random.default_rng(0).normal(size=(60, 2))
    unit = np.repeat(np.arange(6), 10)
    low, high = _olmoe2024._unit_interval(values, unit)
    means = values.reshape(6, 10, 2).mean(axis=1)
    expected = ttest_1samp(means, 0).confidence_interval(0.95)
    np.testing.assert_allclose((low, high), (expected.low, expected.high))


def test_favourites_of_words_beat_the_most_used_expert(described):
    """Held out, they do a little worse than on the prompts they were chosen on."""
    layers = described["topic"].tables["layers"]
    assert (layers["vocabulary_held_out"] > layers["vocabulary_most_used"]).mean() > 0.5
    assert described["topic"].numbers["chance_share"] == 2 / 16
