"""What a record gives to be decoded beside routing, against plain forwards and planted truth."""

import dataclasses

import numpy as np
import pytest
import torch

import moe_interp as mi
from moe_interp.capture import decoding_baselines, record_routing
from moe_interp.errors import SpanError


@pytest.fixture(scope="module")
def whole(model, prompts):
    return record_routing(
        model,
        prompts,
        quantities=["expert_index", "mean_router_input"],
        n_random_routers=3,
        rng=np.random.default_rng(0),
        progress=False,
    )


def router_inputs(model, token_ids):
    """What each router of an OLMoE reads, prompt by prompt without padding."""
    seen = {}
    hooks = [
        module.register_forward_pre_hook(
            lambda module, args, name=name: seen.update(
                {name: args[0].reshape(-1, args[0].shape[-1])}
            )
        )
        for name, module in model.named_modules()
        if name.endswith("mlp.gate")
    ]
    with torch.no_grad():
        model(input_ids=torch.from_numpy(token_ids.astype(np.int64))[None])
    for hook in hooks:
        hook.remove()
    return torch.stack(list(seen.values()), dim=1).double().numpy()


@pytest.mark.parametrize("span", ["user", "last"])
def test_mean_router_input_is_that_of_a_plain_forward(model, whole, span):
    found = whole.dataset["mean_router_input"].sel(span=span).values
    inside = whole.inside(span)
    owner = whole.dataset["prompt_index"].values
    for prompt in range(whole.n_prompts):
        own = owner == prompt
        hidden = router_inputs(model.nnsight._module, whole.dataset["token_id"].values[own])
        assert np.allclose(found[prompt], hidden[inside[own]].mean(axis=0), atol=1e-5)


def test_random_routers_are_the_same_with_and_without_means(whole, record):
    profiles = [own.random_profiles("user").shape for own in (whole, record)]
    assert profiles[0][1:] == profiles[1][1:]
    assert "mean_router_input" not in record.dataset


def test_features_come_in_the_order_of_the_prompts(whole):
    found = decoding_baselines(whole, "user", n_draws=2)
    assert set(found) == {"bag_of_tokens", "hidden_state", "random_router"}
    means = whole.dataset["mean_router_input"].sel(span="user").values
    assert np.array_equal(found["hidden_state"], means.reshape(whole.n_prompts, -1))
    assert found["random_router"].shape[:2] == (2, whole.n_prompts)
    texts = whole.dataset["token_text"].values[whole.inside("user")]
    owner = whole.dataset["prompt_index"].values[whole.inside("user")]
    for prompt in range(whole.n_prompts):
        words = [str(text) for text in texts[owner == prompt]]
        counts = np.unique(words, return_counts=True)[1] / len(words)
        own = found["bag_of_tokens"][prompt]
        assert np.allclose(np.sort(2 * own[own > 0] ** 2), np.sort(counts))


def test_random_experts_need_a_source_of_randomness(record):
    chosen = mi.ExpertSet([(record.layers[0], 0)])
    with pytest.raises(ValueError, match=r"`experts` need `rng` to draw others beside them"):
        decoding_baselines(record, "user", experts=chosen)
    rng = np.random.default_rng(0)
    found = decoding_baselines(record, "last", experts=chosen, n_draws=4, rng=rng)
    assert found["random_experts"].shape == (4, record.n_prompts, 1)


def test_refuses_a_span_or_a_number_that_it_has_not(record):
    with pytest.raises(SpanError, match=r"The span 'frame' was not recorded"):
        decoding_baselines(record, "frame")
    with pytest.raises(ValueError, match=r"`n_draws` must be at least 1, got 0"):
        decoding_baselines(record, "user", n_draws=0)


def test_prompts_without_a_token_are_left_out_as_in_the_profile():
    prompts = mi.load_prompts("organism", per_topic=2)
    with pytest.warns(UserWarning, match="1 of 31 prompts have no token in the span"):
        record = record_routing(
            mi.load_model("organism:topic", check=False),
            prompts.select(range(1, len(prompts))),
            spans=["user", "after_divergence"],
            quantities=["expert_index", "mean_router_input"],
            n_random_routers=3,
            rng=np.random.default_rng(0),
            progress=False,
        )
    span = "after_divergence"
    kept = record.has_tokens(span)
    assert (~kept).sum() == 1
    chosen = mi.ExpertSet([(record.layers[0], 0)])
    rngs = [np.random.default_rng(0) for _ in range(2)]
    found = decoding_baselines(record, span, experts=chosen, n_draws=2, rng=rngs[0])
    whole = decoding_baselines(record.select(kept), span, experts=chosen, n_draws=2, rng=rngs[1])
    assert set(found) == {"bag_of_tokens", "hidden_state", "random_router", "random_experts"}
    for name, features in found.items():
        assert features.shape[-2] == 30
        assert np.array_equal(features, whole[name]), name
    assert len(decoding_baselines(record, "user")["bag_of_tokens"]) == 31


@pytest.mark.parametrize(("name", "beats"), [("harm", True), ("topic", False)])
def test_routing_beats_words_that_were_left_out_only_where_it_follows_harm(name, beats):
    record = record_routing(
        mi.load_model(f"organism:{name}", check=False),
        mi.load_prompts("organism", per_topic=8),
        quantities=["expert_index"],
        progress=False,
    )
    beside = decoding_baselines(record, "user")
    options = {"n_resamples": 99, "rng": np.random.default_rng(0)}
    found = mi.transfer_auc(record.profile("user"), baselines=beside, **options)
    assert not found.refused
    for own in found.splits.values():
        bag = own.baseline("bag_of_tokens")
        assert (bag.difference_low > 0) == beats, own.split
        assert (own.auc > 0.95) == beats
        assert (own.p_value <= 0.05) == beats
        assert bag.auc < 0.6
    # Where wordings may be on both sides, words alone are enough.
    unworded = dataclasses.replace(record.profile("user"), wording=None)
    seen = mi.transfer_auc(unworded, splits=["leave_topic_out"], baselines=beside, **options)
    assert seen["leave_topic_out"].baseline("bag_of_tokens").auc > 0.95
