"""Sweeps give the numbers of one run for each expert, without the work."""

import logging

import numpy as np
import pytest
import tiny_models
import torch
import zoo

from moe_interp import (
    Ban,
    RefusalRate,
    Zero,
    load_model,
    measure_effect,
    record_routing,
    run,
    sweep,
)
from moe_interp.interventions import Edit, ExpertIntervention
from moe_interp.scores import _sweep_job
from moe_interp.scores._sweep_anatomy import Reuse

TEXTS = (
    "how do i kill a python process ?",
    "the cake is good",
    "tell me how to find a good bomb in the old paper world .",
    "what is it",
    "steal the car with a blue engine and help",
)
EVERYTHING = "layers below, positions before, last position of the last layer, own layer"


def metric(logits):
    return logits[:, 10] - logits[:, 20]


def halve(layer, index, weights, where):
    return torch.where(where.gather(-1, index), weights * 0.5, weights)


class Halve(ExpertIntervention):
    """An intervention of a user, of which nothing is known but where it acts."""

    def edits(self, batch):
        return [Edit(layer, "weights", halve, where) for layer, where in self.where(batch)]


def zero_at_the_end(experts):
    return Zero(experts, tokens="last")


MODES = {"zero": Zero, "ban": Ban, Halve: Halve, zero_at_the_end: zero_at_the_end}


def one_by_one(model, make, n_experts=8):
    """The table by one run for each expert, of the first `n_experts` of each layer."""
    untouched = metric(run(model, TEXTS).logits)
    table = np.zeros((len(TEXTS), len(model.moe), n_experts))
    for row, layer in enumerate(model.moe):
        for expert in range(n_experts):
            without = metric(run(model, TEXTS, make([(layer, expert)])).logits)
            table[:, row, expert] = without - untouched
    return table


def chosen_by(model, texts=TEXTS):
    """Whether each token of each prompt chose each expert: a list of [pos, layer, expert]."""
    record = record_routing(model, texts, progress=False).dataset
    index = record["expert_index"].transpose("token", "layer", "top_k").values
    experts = np.arange(model.architecture.n_experts)
    hot = (index[..., None] == experts).any(2)
    return [hot[record["prompt_index"].values == prompt] for prompt in range(len(texts))]


@pytest.fixture
def seen(monkeypatch):
    """A function that lists rows and tokens of every call of a decoder layer's attention.

    What may be taken over is not tried out beforehand, so that only the sweep itself is counted.
    """
    hooks = []

    def settled(model, tokens, interventions, places):
        return places.possible, ""

    def watch(model, layer):
        calls = []
        module = model.nnsight._module.model.layers[layer].self_attn

        def note(_, args, kwargs):
            calls.append(tuple(kwargs["hidden_states"].shape[:2]))

        hooks.append(module.register_forward_pre_hook(note, with_kwargs=True))
        return calls

    monkeypatch.setattr(_sweep_job, "settle_reuse", settled)
    yield watch
    for hook in hooks:
        hook.remove()


@pytest.mark.parametrize("mode", MODES, ids=lambda mode: getattr(mode, "__name__", mode))
@pytest.mark.parametrize("family", ["mixtral", "deepseek_v3", "gpt_oss"])
def test_a_sweep_equals_one_run_for_each_expert(family, mode):
    model = tiny_models.wrapped(family)
    scores = sweep(model, TEXTS, metric=metric, mode=mode)
    expected = one_by_one(model, MODES[mode])
    assert np.abs(expected).max() > 0.1
    np.testing.assert_allclose(scores.array.values, expected, atol=1e-5)
    assert scores.array.attrs["taken_over"] == EVERYTHING
    assert scores.layers == tuple(model.moe)


@pytest.mark.parametrize("family", ["zaya", "qwen3_next", "gemma4_text", "llama4_text", "jamba"])
def test_what_a_family_does_not_allow_is_not_taken_over(family, caplog):
    model = load_model(zoo.build(family), tokenizer=tiny_models.build_tokenizer(), check=False)
    with caplog.at_level(logging.WARNING, logger="moe_interp"):
        scores = sweep(model, TEXTS, metric=metric)
    expected = one_by_one(model, Zero, n_experts=3)
    assert np.abs(expected).max() > 0.1
    np.testing.assert_allclose(scores.array.values[..., :3], expected, atol=1e-5)
    said = [record.message for record in caplog.records if record.name == "moe_interp"]
    attributes = scores.array.attrs
    without = {
        "zaya": "",
        "qwen3_next": "layers below, last position of the last layer, own layer",
        "gemma4_text": "layers below, positions before, own layer",
        "llama4_text": "layers below, positions before, own layer",
        "jamba": "layers below, own layer",
    }
    assert attributes["taken_over"] == without[family]
    assert bool(attributes["not_taken_over"]) == bool(said)
    for message in said:
        assert attributes["not_taken_over"] in message
    if family == "zaya":
        assert "layers below: logits are off by" in caplog.text


def test_pairs_that_chose_nothing_are_known_zeros_and_do_not_run():
    model = tiny_models.wrapped("mixtral")
    scores = sweep(model, TEXTS, metric=metric)
    ever = np.stack([hot.any(0) for hot in chosen_by(model)])
    ever[:, -1] = np.stack([hot[-1, -1] for hot in chosen_by(model)])
    assert 0 < ever.mean() < 1
    assert (scores.array.values[~ever] == 0).all()
    assert (scores.array.values[ever] != 0).mean() > 0.95
    assert scores.array.attrs["rows"] == ever.sum()


def test_an_expert_that_nobody_chose_costs_no_forward(seen):
    model = tiny_models.wrapped("mixtral")
    ever = np.any([hot[:, 1].any(0) for hot in chosen_by(model, TEXTS[:2])], axis=0)
    calls = seen(model, 2)
    scores = sweep(model, TEXTS[:2], metric=metric, experts=[(1, int(np.argmin(ever)))])
    assert not ever.all()
    assert len(calls) == 1
    assert np.nanmax(np.abs(scores.array.values)) == 0


def test_layers_below_and_positions_before_run_once(seen):
    model = tiny_models.wrapped("mixtral")
    hots = chosen_by(model)
    below, own, above = (seen(model, layer) for layer in range(3))
    experts = [(1, expert) for expert in range(8)]
    sweep(model, TEXTS, metric=metric, experts=experts, batch_size=1)
    lengths = [len(hot) for hot in hots]
    runs = [
        length - int(np.argmax(hot[:, 1, expert]))
        for hot, length in zip(hots, lengths, strict=True)
        for expert in range(8)
        if hot[:, 1, expert].any()
    ]
    assert sum(n_tokens for _, n_tokens in below) == sum(lengths)
    # The untouched model, and each of a token's two choices.
    assert sorted(n_tokens for _, n_tokens in own) == sorted(3 * lengths)
    assert sorted(n_tokens for _, n_tokens in above) == sorted(lengths + runs)
    assert sum(runs) < 0.9 * sum(lengths) * 8


def test_experts_and_prompts_share_forwards(seen):
    model = tiny_models.wrapped("mixtral")
    calls = seen(model, 2)
    scores = sweep(model, TEXTS, metric=metric)
    assert scores.array.attrs["rows"] > 50
    assert len(calls) <= 10
    assert scores.array.attrs["forwards"] <= 14


def test_the_last_layers_experts_run_at_the_last_token_only(seen):
    model = tiny_models.wrapped("mixtral")
    calls, n_tokens = seen(model, 2), []
    experts = model.nnsight._module.model.layers[2].mlp.experts
    hook = experts.register_forward_pre_hook(lambda _, args: n_tokens.append(len(args[0])))
    sweep(model, TEXTS, metric=metric, experts=[(1, expert) for expert in range(8)])
    hook.remove()
    n_rows = [rows for rows, _ in calls]
    assert n_tokens[1:] == n_rows[1:]
    assert n_tokens[0] == len(TEXTS) * 14


def test_batches_of_one_size_give_the_same_numbers():
    model = tiny_models.wrapped("mixtral")
    scores = [sweep(model, TEXTS, metric=metric, batch_size=size) for size in ("auto", 2)]
    for other in scores[1:]:
        np.testing.assert_allclose(other.array, scores[0].array, atol=1e-5)
        assert other.array.attrs["forwards"] > scores[0].array.attrs["forwards"]


def test_a_wrong_short_cut_would_be_noticed(monkeypatch):
    from moe_interp.scores import _sweep_capture

    model = tiny_models.wrapped("mixtral")
    kept = _sweep_capture._kept

    def spoilt(cache, encoded, n_layers):
        keys, values = kept(cache, encoded, n_layers)
        return keys, tuple(value * 1.01 for value in values)

    monkeypatch.setattr(_sweep_capture, "_kept", spoilt)
    scores = sweep(model, TEXTS, metric=metric)
    assert scores.array.attrs["not_taken_over"].startswith("positions before: logits are off")
    np.testing.assert_allclose(scores.array.values, one_by_one(model, Zero), atol=1e-5)
    assert Reuse().names == ()


def test_only_the_experts_asked_for_are_measured():
    model = tiny_models.wrapped("mixtral")
    scores = sweep(model, TEXTS, metric=metric, experts="L0E1,L2E3")
    assert np.isfinite(scores.mean).sum() == 2
    assert np.isfinite([scores.of(0, 1), scores.of(2, 3)]).all()
    assert (scores.name, scores.unit) == ("sweep", "")
    assert scores.array.attrs["mode"] == "zero"


def test_texts_are_judged_by_full_runs(topic_model, halves):
    prompts = halves[0].select(np.arange(3))
    given = {"metric": RefusalRate(), "max_new_tokens": 6}
    scores = sweep(topic_model, prompts, mode="ban", experts="L3E8,L2E3", **given)
    for layer, expert in [(3, 8), (2, 3)]:
        alone = measure_effect(topic_model, prompts, Ban([(layer, expert)]), **given)
        np.testing.assert_array_equal(scores.array.sel(layer=layer, expert=expert), alone.effect)
    assert scores.array.attrs["not_taken_over"] == "generated texts take full runs"


def test_the_organisms_experts_show_what_they_do_alone(topic_model, halves, refusal):
    scores = sweep(topic_model, halves[0], metric=refusal)
    ranked = [str(expert) for expert, _ in abs(scores).top(6)]
    # The two carry the refusal together: zeroing one leaves the other, so neither is decisive
    # alone (the whole behaviour is more than 10 nats), but both are among the largest effects.
    assert {"L3E8", "L3E9"} <= set(ranked)
    assert abs(scores.of(3, 8)) < 10
    assert scores.unit == "nats"


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"experts": "L9E0"}, ValueError, "There is no layer 9"),
        ({"experts": "L1E8"}, ValueError, "has experts 0–7, got 8"),
        ({"mode": "kill"}, ValueError, "`mode` must be one of"),
        ({"mode": lambda experts: None}, TypeError, "must turn an ExpertSet into an Intervention"),
        ({"metric": lambda logits: logits}, ValueError, "one number for each of the 5 rows"),
        ({"batch_size": 0}, ValueError, "`batch_size` must be"),
        ({"metric": RefusalRate(), "max_new_tokens": 0}, ValueError, "must be at least 1, got 0"),
    ],
)
def test_bad_input_is_named(given, error, message):
    with pytest.raises(error, match=message):
        sweep(tiny_models.wrapped("mixtral"), TEXTS, **{"metric": metric, **given})


def test_logits_that_are_not_numbers_name_prompt_and_intervention():
    model = load_model(
        tiny_models.build("mixtral"), tokenizer=tiny_models.build_tokenizer(), check=False
    )
    first = int(np.argmax(chosen_by(model)[0][:, 2].any(0)))
    model.nnsight._module.lm_head.weight.data[5] = float("nan")
    with pytest.raises(ValueError, match="'p0000' under no intervention are not numbers"):
        sweep(model, TEXTS[:1], metric=metric, experts=[(2, first)])
