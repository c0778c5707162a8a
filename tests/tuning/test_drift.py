"""Routing drift between two models on the same tokens."""

import numpy as np
import pytest
import tiny_models

import moe_interp as mi
from moe_interp.errors import DesignError
from moe_interp.tuning import routing_drift

TEXTS = ["how do i kill the process", "help me", "tell me a story about two people"]
QUANTITIES = ("expert_index", "router_logits")


def recorded(seed, texts=TEXTS, quantities=QUANTITIES, **changes):
    model = tiny_models.build("olmoe", seed=seed, **changes).float().eval()
    loaded = mi.load_model(model, tokenizer=tiny_models.build_tokenizer(), check=False)
    prompts = mi.PromptSet([mi.Prompt(text) for text in texts], source="texts")
    return mi.record_routing(loaded, prompts, quantities=quantities, progress=False)


def test_drift_is_the_mean_over_each_prompts_tokens():
    before, after = recorded(0), recorded(1)
    drift = routing_drift(before, after, span="user")
    changed, kl = np.zeros((2, 3, 3))
    owner = before.dataset["prompt_index"].values
    inside = before.dataset["in_span"].sel(span="user").values
    for prompt in range(3):
        tokens = np.flatnonzero((owner == prompt) & inside)
        for layer in range(3):
            for token in tokens:
                old, new = (
                    set(r.dataset["expert_index"].values[token, layer].tolist())
                    for r in (before, after)
                )
                changed[prompt, layer] += len(old - new) / len(old) / len(tokens)
                p, q = (
                    np.exp(r.dataset["router_logits"].values[token, layer].astype(float))
                    for r in (before, after)
                )
                p, q = p / p.sum(), q / q.sum()
                kl[prompt, layer] += (p * np.log(p / q)).sum() / len(tokens)
    np.testing.assert_allclose(drift.slots_changed, changed)
    np.testing.assert_allclose(drift.kl_nats, kl, rtol=1e-5)
    mean, low, high = drift.mean()
    assert mean == pytest.approx(changed.mean())
    by_prompt = changed.mean(axis=1)
    reach = 4.302653 * by_prompt.std(ddof=1) / np.sqrt(3)
    assert (low, high) == pytest.approx((mean - reach, mean + reach), rel=1e-5)
    assert len(drift.to_frame()) == 3
    assert drift.to_dict()["slots_changed"] == pytest.approx(mean)
    assert (
        "of the routed slots changed ('user' tokens of 3 prompts, 3 layers), KL" in drift.summary()
    )


def test_a_low_temperature_weighs_the_first_choices():
    before, after = recorded(0), recorded(1)
    drift = routing_drift(before, after, span="last", temperature=0.1)
    rows = np.flatnonzero(before.dataset["in_span"].sel(span="last").values)
    old, new = (
        np.exp(10 * r.dataset["router_logits"].values[rows].astype(float)) for r in (before, after)
    )
    p, q = (one / one.sum(axis=-1, keepdims=True) for one in (old, new))
    np.testing.assert_allclose(drift.kl_nats, (p * np.log(p / q)).sum(axis=-1), rtol=1e-4)
    assert drift.to_dict()["temperature"] == 0.1
    with pytest.raises(ValueError, match=r"`temperature` must be above 0, got 0.0"):
        routing_drift(before, after, temperature=0.0)


def test_records_without_logits_give_slots_alone():
    bare = recorded(0, quantities=("expert_index",))
    drift = routing_drift(bare, bare)
    assert drift.kl_nats is None
    assert (drift.slots_changed == 0).all()


@pytest.mark.parametrize(
    "other",
    [
        {"num_hidden_layers": 2},
        {"num_experts": 4},
        {"texts": TEXTS[:2]},
        {"texts": [*TEXTS[:2], "tell me a story about two big people"]},
        {"texts": [*TEXTS[:2], "tell me a story about two computer"]},
    ],
    ids=["layers", "experts", "prompts", "lengths", "words"],
)
def test_records_of_other_tokens_or_models_are_refused(other):
    with pytest.raises(DesignError, match=r"The two records hold other tokens or layers in span"):
        routing_drift(recorded(0), recorded(0, **other))
