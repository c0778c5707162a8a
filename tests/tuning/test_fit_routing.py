import json

import numpy as np
import pytest
import slow_memory
import torch

import moe_interp as mi
from moe_interp.errors import PromptError
from moe_interp.interventions import response_losses
from moe_interp.organism import factorial_prompts, shifted_prompts
from moe_interp.prompts import tokenize


@pytest.fixture(scope="module")
def model():
    return mi.load_model("organism:topic", check=False)


@pytest.fixture(scope="module")
def data():
    return shifted_prompts(per_topic=1).select(range(3))


@pytest.fixture(scope="module")
def fitted(model, data):
    return mi.fit_routing(model, data, n_steps=6)


def slow_fit(model, prompt, n_steps, learning_rate):
    """The same in plain torch: one prompt, Adam written out, every expert called on its own."""
    hf = model.nnsight._module
    tokens = tokenize(model.tokenizer, mi.PromptSet([prompt]), spans=("response",))
    ids, inside = tokens.token_ids[0], np.flatnonzero(tokens.spans["response"][0])
    offsets = torch.zeros(4, len(ids), 16, requires_grad=True)
    first, second = torch.zeros_like(offsets), torch.zeros_like(offsets)
    losses = []

    def change(layer, place, hidden, logits):
        return slow_memory.chosen_weights(logits + offsets[layer, place], 2)

    for step in range(n_steps + 1):
        with slow_memory.routed_by(hf, change):
            said = hf(torch.tensor([ids]), use_cache=False).logits[0].log_softmax(-1)
        loss = -sum(said[place - 1, ids[place]] for place in inside) / len(inside)
        losses.append(float(loss.detach()))
        (slope,) = torch.autograd.grad(loss, offsets)
        with torch.no_grad():
            first = 0.9 * first + 0.1 * slope
            second = 0.999 * second + 0.001 * slope**2
            steps = step + 1
            offsets -= (
                learning_rate
                * (first / (1 - 0.9**steps))
                / ((second / (1 - 0.999**steps)).sqrt() + 1e-8)
            )
    return losses


def test_the_fit_is_adam_on_the_logits_of_every_token(model, data):
    losses = slow_fit(model, data[1], 2, 0.05)
    found = mi.fit_routing(model, data.select([1]), n_steps=2, learning_rate=0.05)
    assert found.before[0] == pytest.approx(losses[0], rel=1e-3)
    assert found.after[0] == pytest.approx(min(losses), rel=1e-2)
    assert losses[-1] < losses[0] - 1e-3


def test_the_losses_are_those_of_the_untouched_model_and_of_the_fitted_routing(model, data, fitted):
    np.testing.assert_allclose(response_losses(model, data, [[]])[0], fitted.before, atol=1e-4)
    hf, memory = model.nnsight._module, fitted.memory
    tokens = tokenize(model.tokenizer, data, spans=("response",))
    for row, ids in enumerate(tokens.token_ids):
        start = int(np.flatnonzero(memory.sequence == row)[0])

        def change(layer, place, hidden, logits, start=start):
            key = start + place
            torch.testing.assert_close(memory.keys[layer][key], hidden, atol=1e-3, rtol=1e-3)
            weights = memory.weights[layer][key]
            return torch.zeros_like(logits).scatter(0, memory.index[layer][key], weights)

        with torch.no_grad(), slow_memory.routed_by(hf, change):
            said = hf(torch.tensor([ids]), use_cache=False).logits[0].log_softmax(-1)
        inside = np.flatnonzero(tokens.spans["response"][row])
        loss = -np.mean([float(said[place - 1, ids[place]]) for place in inside])
        assert fitted.after[row] == pytest.approx(loss, abs=1e-3)
        assert fitted.after[row] < fitted.before[row] - 0.05


def test_the_loss_is_the_mean_over_the_responses_tokens(model, data):
    tokens = tokenize(model.tokenizer, data, spans=("response",))
    found = response_losses(model, data, [[]])[0]
    for row, ids in enumerate(tokens.token_ids):
        with torch.no_grad():
            said = model.nnsight._module(torch.tensor([ids])).logits[0].log_softmax(-1)
        inside = np.flatnonzero(tokens.spans["response"][row])
        assert len(inside) == len(data[row].response.split())
        expected = -np.mean([float(said[place - 1, ids[place]]) for place in inside])
        assert found[row] == pytest.approx(expected, abs=1e-4)


def test_no_weight_of_the_model_changes(model, data):
    module = model.nnsight._module
    before = {name: value.clone() for name, value in module.state_dict().items()}
    asked = [value.requires_grad for value in module.parameters()]
    mi.fit_routing(model, data, n_steps=2)
    for name, value in module.state_dict().items():
        assert torch.equal(value, before[name])
    assert [value.requires_grad for value in module.parameters()] == asked
    assert all(value.grad is None for value in module.parameters())


def test_the_best_step_is_kept_prompt_by_prompt(model, data):
    wild = mi.fit_routing(model, data, n_steps=3, learning_rate=30.0)
    assert (wild.after <= wild.before).all()
    none = mi.fit_routing(model, data, n_steps=0)
    np.testing.assert_array_equal(none.after, none.before)
    assert torch.equal(none.memory.index[2], none.own.index[2])


def test_the_batch_does_not_matter(model, data, fitted):
    alone = mi.fit_routing(model, data, n_steps=6, batch_size=1)
    np.testing.assert_allclose(alone.before, fitted.before, atol=1e-4)
    np.testing.assert_allclose(alone.after, fitted.after, atol=0.05)
    np.testing.assert_array_equal(alone.memory.sequence, fitted.memory.sequence)
    torch.testing.assert_close(alone.own.keys[3], fitted.own.keys[3], atol=1e-4, rtol=1e-4)


def test_the_own_memory_is_what_the_routers_saw_and_chose(model, data, fitted):
    tokens = tokenize(model.tokenizer, data)
    assert len(fitted.own) == sum(
        len(ids) for ids in tokenize(model.tokenizer, data, spans=("response",)).token_ids
    )
    ids = tokens.token_ids[0]
    with torch.no_grad(), model.trace([ids]):
        seen = model.moe[2].router_input.save()
        index = model.moe[2].expert_index.save()
    torch.testing.assert_close(fitted.own.keys[2][: len(ids)], seen[0], atol=1e-4, rtol=1e-4)
    assert torch.equal(fitted.own.index[2][: len(ids)], index[0])


def test_only_the_layers_named_are_fitted(model, data):
    found = mi.fit_routing(model, data, layers=[2, 1], n_steps=2)
    assert found.memory.layers == (1, 2)


def test_the_result_says_what_was_gained(fitted, data):
    table = fitted.to_frame()
    assert list(table["prompt"]) == list(data.ids)
    assert json.loads(json.dumps(fitted.to_dict()))["after"] == fitted.after.tolist()
    assert f"3 responses, {len(fitted.memory)} tokens" in fitted.summary()
    assert f"{fitted.after.mean():.3f} with the fitted" in fitted.summary()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"n_steps": -1}, "`n_steps` must be at least 0, got -1"),
        ({"learning_rate": 0.0}, "`learning_rate` must be positive, got 0.0"),
        ({"layers": [9]}, "There is no layer 9"),
    ],
)
def test_what_cannot_be_fitted_is_refused(model, data, options, said):
    with pytest.raises(ValueError, match=said):
        mi.fit_routing(model, data, **options)


def test_prompts_without_responses_are_named(model):
    with pytest.raises(PromptError, match="16 of 16 prompts have no `response` to be foretold"):
        mi.fit_routing(model, factorial_prompts(per_topic=1))
