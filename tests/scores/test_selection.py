"""From scores to sets: Scores, scores of a record, and the experts chosen by them."""

import json
import math

import numpy as np
import pytest

from moe_interp import Expert, ExpertSet, record_routing, risk_difference, select_experts
from moe_interp.errors import DesignError, SpanError
from moe_interp.scores import Scores, mean_router_prob, mean_routing_weight, selection_frequency


@pytest.fixture
def scores():
    """Two prompts, layers 2 and 5, three experts; L5E2 was not measured."""
    numbers = np.array(
        [[[1.0, -4.0, 0.0], [2.0, 2.0, np.nan]], [[3.0, -4.0, 1.0], [2.0, -2.0, np.nan]]]
    )
    return Scores.of_array("effect", "nats", numbers, layers=(2, 5))


def test_experts_are_looked_up_by_absolute_layer_as_means_over_prompts(scores):
    assert scores.of(2, 0) == 2.0
    assert scores.of_layer(5).tolist()[:2] == [2.0, 0.0]
    assert math.isnan(scores.of(5, 2))
    with pytest.raises(KeyError, match=r"L3E0 has no effect\. Layers: 2, 5; experts 0–2"):
        scores.of(3, 0)


def test_the_top_is_the_largest_mean_and_never_what_was_not_measured(scores):
    assert scores.top(2) == [(Expert(2, 0), 2.0), (Expert(5, 0), 2.0)]
    assert len(scores.top(99)) == 5
    assert (-scores).top(1) == [(Expert(2, 1), 4.0)]
    # The magnitude is taken prompt by prompt: L5E1 has mean 0 and magnitude 2.
    assert abs(scores).of(5, 1) == 2.0


def test_selection_is_by_number_or_by_threshold(scores):
    assert select_experts(scores, n=2) == ExpertSet.parse("L2E0,L5E0")
    assert select_experts(scores, threshold=0.5) == ExpertSet.parse("L2E0,L2E2,L5E0")
    assert select_experts(-scores, threshold=4.0) == ExpertSet.parse("L2E1")
    with pytest.raises(ValueError, match=r"either `n` or `threshold`"):
        select_experts(scores)
    with pytest.raises(ValueError, match=r"between 1 and the 5 experts with a score, got 6"):
        select_experts(scores, n=6)


def test_scores_become_tables_and_json(scores):
    frame = scores.to_frame()
    assert frame.loc[(frame.layer == 5) & (frame.expert == 1), "effect"].item() == 0.0
    assert json.loads(json.dumps(scores.to_dict(), allow_nan=False))["mean"][1] == [2.0, 0.0, None]
    assert "L2E0" in scores.summary(1)
    assert "L2E1" not in scores.summary(1)
    with pytest.raises(ValueError, match=r"\(\[prompt,\] layer, expert\) with 3 layers"):
        Scores.of_array("effect", "nats", np.zeros((2, 4)), layers=(0, 1, 2))


def test_selection_frequency_is_the_fraction_of_tokens_counted_by_hand(topic_model, use):
    from moe_interp import load_prompts, selection_frequency

    prompts = load_prompts("organism", per_topic=2).select([0, 5, 9])
    record = record_routing(topic_model, prompts, n_random_routers=0, progress=False)
    measured = selection_frequency(record, span="user")
    tokens = record.dataset.sel(layer=2)
    inside = record.dataset["in_span"].sel(span="user").values
    for prompt in range(3):
        own = inside & (record.dataset["prompt_index"].values == prompt)
        index = tokens["expert_index"].values[own]
        by_hand = [(index == expert).any(axis=1).mean() for expert in range(16)]
        np.testing.assert_allclose(measured.array.sel(layer=2).values[prompt], by_hand, atol=1e-12)
    np.testing.assert_allclose(use.mean.sum(axis=1), 2.0)


def test_risk_difference_is_harmful_minus_harmless(topic_model, organism_prompts):
    record = record_routing(topic_model, organism_prompts, n_random_routers=0, progress=False)
    harm = organism_prompts.harm
    share = record.shares("user") * 2
    expected = share[harm].mean(axis=0) - share[~harm].mean(axis=0)
    measured = risk_difference(record, span="user")
    np.testing.assert_allclose(measured.mean, expected)
    with pytest.raises(SpanError, match="response"):
        risk_difference(record, span="response")


def test_risk_difference_needs_both_kinds_of_prompts(topic_model, halves):
    record = record_routing(topic_model, halves[0], n_random_routers=0, progress=False)
    with pytest.raises(DesignError, match=r"All \d+ prompts are harmful"):
        risk_difference(record)


@pytest.fixture(scope="module")
def record(topic_model, organism_prompts):
    """A record of prompts of several lengths, with weights and logits."""
    return record_routing(
        topic_model,
        organism_prompts.select(np.arange(7)),
        quantities=("expert_index", "routing_weights", "router_logits"),
        progress=False,
    )


@pytest.mark.parametrize("span", ["prompt", "user"])
def test_scores_of_use_are_means_over_the_tokens_of_each_prompt(record, span):
    data = record.dataset.transpose("span", "token", "layer", "top_k", "expert", ...)
    inside = data["in_span"].sel(span=span).values
    mass, probs = np.zeros((2, 7, 4, 16))
    for prompt in range(7):
        tokens = np.flatnonzero(inside & (data["prompt_index"].values == prompt))
        for token in tokens:
            for layer in range(4):
                logits = data["router_logits"].values[token, layer].astype(float)
                odds = np.exp(logits)
                probs[prompt, layer] += odds / odds.sum() / len(tokens)
                for slot in range(2):
                    expert = data["expert_index"].values[token, layer, slot]
                    weight = data["routing_weights"].values[token, layer, slot]
                    mass[prompt, layer, expert] += weight / len(tokens)
    np.testing.assert_allclose(mean_routing_weight(record, span=span).array, mass, rtol=1e-5)
    np.testing.assert_allclose(mean_router_prob(record, span=span).array, probs, rtol=1e-5)
    idle = selection_frequency(record, span=span).array.values == 0
    assert (mass[idle] == 0).all()
    assert (mass[~idle] > 0).all()


def test_scores_that_a_record_cannot_give_are_refused_by_name(record):
    bare = type(record)(record.dataset.drop_vars(["router_logits", "routing_weights"]))
    with pytest.raises(DesignError, match=r"no `routing_weights`. Capture it with record_routing"):
        mean_routing_weight(bare)
    with pytest.raises(DesignError, match=r"no `router_logits`"):
        mean_router_prob(bare)
    facts = {**record.dataset.attrs["model"], "score_function": "sqrtsoftplus"}
    other = type(record)(record.dataset.assign_attrs(model=facts))
    with pytest.raises(DesignError, match=r"scores experts by 'sqrtsoftplus'.*mean_routing_weight"):
        mean_router_prob(other)


def test_sigmoid_routers_have_their_scores_averaged(record):
    facts = {**record.dataset.attrs["model"], "score_function": "sigmoid"}
    other = type(record)(record.dataset.assign_attrs(model=facts))
    logits = record.dataset["router_logits"].values[record.dataset["prompt_index"].values == 2]
    expected = (1 / (1 + np.exp(-logits.astype(float)))).mean(axis=0)
    np.testing.assert_allclose(mean_router_prob(other).array[2], expected, rtol=1e-6)
