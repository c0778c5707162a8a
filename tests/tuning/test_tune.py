"""Training of chosen experts: equal to plain PyTorch, and nothing else moves."""

import numpy as np
import pytest
import tiny_models
import torch
from transformers import AutoModelForCausalLM

import moe_interp as mi
from moe_interp.errors import PromptError, ResultExistsError, TuningError
from moe_interp.prompts import Prompt, PromptSet
from moe_interp.tuning import _train, tune_experts

FAMILIES = ["olmoe", "gpt_oss", "deepseek_v3"]
# Chosen by tokens of the examples in all families, so that they have gradients.
EXPERTS = "L1E2,L1E3,L2E3"


def loaded(family, **changes):
    model = tiny_models.build(family, **changes).float().eval()
    return mi.load_model(model, tokenizer=tiny_models.build_tokenizer(), check=False)


def chosen_expert(model, data, layer=1):
    """The expert of a layer that fills most slots of the prompts: it has a gradient."""
    use = mi.selection_frequency(mi.record_routing(model, data, progress=False))
    return mi.ExpertSet([(layer, int(use.of_layer(layer).argmax()))])


def state(model):
    return {name: p.detach().clone() for name, p in model.nnsight._module.named_parameters()}


def batches_of(tokenizer, data, end):
    """Token ids of prompt, response and end, and labels of the response alone, by hand."""
    rows = []
    for prompt in data:
        ids = tokenizer(prompt.text)["input_ids"]
        answer = tokenizer(prompt.response, add_special_tokens=False)["input_ids"]
        rows.append((ids, [*answer, end]))
    return rows


def plain_tuning(plain, tokenizer, data, experts, *, epochs, rate, batch_size, seed, warmup, clip):
    """The same training, written with whole-tensor gradients and one optimiser over copies."""
    names = dict(plain.named_parameters())
    rows = batches_of(tokenizer, data, 2)
    parts = []
    for expert in mi.ExpertSet.parse(experts):
        prefix = f"model.layers.{expert.layer}.mlp.experts."
        for name, parameter in names.items():
            if name.startswith(prefix):
                parts.append((parameter, expert.expert))
    masters = [p[e].detach().clone().requires_grad_(True) for p, e in parts]
    optimiser = torch.optim.AdamW(masters, lr=rate, weight_decay=0.0)
    n_steps, step = epochs * -(-len(rows) // batch_size), 0
    for epoch in range(epochs):
        order = np.random.default_rng([seed, epoch]).permutation(len(rows))
        for start in range(0, len(rows), batch_size):
            loss, n_tokens = 0.0, 0
            for n in order[start : start + batch_size]:
                prompt, answer = rows[n]
                ids = torch.tensor([[*prompt, *answer]])
                labels = ids.clone()
                labels[:, : len(prompt)] = -100
                # One by one, unpadded: the mean over all tokens is put together by hand.
                loss = loss + plain(input_ids=ids, labels=labels).loss * len(answer)
                n_tokens += len(answer)
            plain.zero_grad()
            (loss / n_tokens).backward()
            for (parameter, expert), master in zip(parts, masters, strict=True):
                master.grad = parameter.grad[expert].clone()
            torch.nn.utils.clip_grad_norm_(masters, clip)
            rising = int(warmup * n_steps)
            here = (step + 1) / rising if step < rising else (n_steps - step) / (n_steps - rising)
            optimiser.param_groups[0]["lr"] = rate * here
            optimiser.step()
            with torch.no_grad():
                for (parameter, expert), master in zip(parts, masters, strict=True):
                    parameter[expert] = master
            step += 1
    return {name: p.detach() for name, p in plain.named_parameters()}


@pytest.mark.parametrize("family", FAMILIES)
def test_training_equals_plain_pytorch_and_only_the_chosen_slices_change(family, answers):
    # In double precision: where a gradient is rounding alone, Adam makes whole steps of it.
    model = loaded(family)
    model.nnsight._module.double().set_experts_implementation("eager")
    before = state(model)
    tuned = tune_experts(
        model, EXPERTS, answers, seed=3, epochs=4, learning_rate=0.02, batch_size=2, warmup=0.25
    )
    plain = tiny_models.build(family).double()
    plain.set_experts_implementation("eager")
    options = {"epochs": 4, "rate": 0.02, "batch_size": 2, "seed": 3, "warmup": 0.25, "clip": 1.0}
    expected = plain_tuning(plain, model.tokenizer, answers, EXPERTS, **options)
    with tuned.applied(model):
        after = state(model)
    chosen = {1: [2, 3], 2: [3]}
    n_changed = 0
    for name, old in before.items():
        parts = name.split(".")
        layer = int(parts[2]) if parts[1] == "layers" else -1
        if layer in chosen and ".mlp.experts." in name:
            others = [e for e in range(len(old)) if e not in chosen[layer]]
            assert torch.equal(after[name][others], old[others])
            assert not torch.equal(after[name][chosen[layer]], old[chosen[layer]])
            torch.testing.assert_close(after[name], expected[name], rtol=1e-4, atol=1e-5)
            n_changed += 1
        else:
            assert torch.equal(after[name], old), name
    assert n_changed >= 4
    assert all(torch.equal(p, before[name]) for name, p in state(model).items())
    assert tuned.losses[-1]["loss"] < tuned.losses[0]["loss"]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_saved_checkpoint_is_a_plain_one_with_the_same_logits(family, tmp_path, answers):
    model = loaded(family)
    tuned = tune_experts(model, EXPERTS, answers, seed=0, learning_rate=0.02)
    tuned.save_checkpoint(model, tmp_path / "tuned")
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "tuned").eval()
    ids = torch.arange(4, 24)[None]
    with torch.no_grad():
        with tuned.applied(model):
            expected = model.nnsight._module(input_ids=ids).logits
        untouched = model.nnsight._module(input_ids=ids).logits
        assert torch.equal(plain(input_ids=ids).logits, expected)
    assert not torch.equal(untouched, expected)
    again = mi.load_model(str(tmp_path / "tuned"))
    assert mi.run(again, ["help me"]).logits.shape[-1] == expected.shape[-1]
    with pytest.raises(ResultExistsError, match=r"exists. Give another folder, or force=True"):
        tuned.save_checkpoint(model, tmp_path / "tuned")
    tuned.save_checkpoint(model, tmp_path / "tuned", force=True)
    (tmp_path / "own").mkdir()
    with pytest.raises(ResultExistsError, match=r"own' exists"):
        tuned.save_checkpoint(model, tmp_path / "own", force=True)


@pytest.mark.parametrize(("family", "rank"), [*((one, None) for one in FAMILIES), ("olmoe", 2)])
def test_a_run_that_was_cut_off_goes_on_to_the_same_bits(
    family, rank, tmp_path, answers, monkeypatch
):
    model = loaded(family)
    options = {"seed": 1, "epochs": 4, "learning_rate": 0.02, "batch_size": 2, "rank": rank}
    options["validation"] = answers.select([0, 1])
    whole = tune_experts(model, EXPERTS, answers, **options)
    real, steps = _train._step, []

    def cut_off(*args):
        if len(steps) == 5:
            raise KeyboardInterrupt
        steps.append(0)
        return real(*args)

    before = state(model)
    monkeypatch.setattr(_train, "_step", cut_off)
    with pytest.raises(KeyboardInterrupt):
        tune_experts(model, EXPERTS, answers, store=tmp_path / "run", **options)
    assert all(torch.equal(p, before[name]) for name, p in state(model).items())
    monkeypatch.setattr(_train, "_step", real)
    resumed = tune_experts(model, EXPERTS, answers, store=tmp_path / "run", **options)
    assert resumed.losses == whole.losses
    assert resumed.best_epoch == whole.best_epoch
    for key, value in whole.delta.values.items():
        assert torch.equal(resumed.delta.values[key], value)
    with pytest.raises(ResultExistsError, match=r"other inputs: settings differ"):
        tune_experts(model, EXPERTS, answers, store=tmp_path / "run", **options | {"seed": 2})
    with pytest.raises(ResultExistsError, match=r"holds a tuning run. Give another folder"):
        tune_experts(model, EXPERTS, answers, store=tmp_path / "run", resume=False, **options)


def test_the_best_epoch_is_kept_and_patience_ends_training(answers):
    model = loaded("olmoe")
    # What is trained on says nothing of this, so that its loss rises.
    other = PromptSet([Prompt("tell me", response=" story story story")], source="other")
    options = {"seed": 0, "epochs": 12, "learning_rate": 0.05, "validation": other}
    tuned = tune_experts(model, EXPERTS, answers, patience=2, **options)
    found = [row["validation_loss"] for row in tuned.losses if row["validation_loss"] is not None]
    assert tuned.stopped_early
    assert len(found) == tuned.best_epoch + 3 < 12
    assert min(found) == found[tuned.best_epoch]
    shorter = tune_experts(model, EXPERTS, answers, patience=None, **options)
    assert not shorter.stopped_early
    assert "stopped early" in tuned.summary()
    with tuned.applied(model):
        ids = torch.tensor([[*model.tokenizer("tell me")["input_ids"]]])
        answer = model.tokenizer("story story story", add_special_tokens=False)["input_ids"] + [2]
        full = torch.cat([ids, torch.tensor([answer])], 1)
        labels = full.clone()
        labels[:, : ids.shape[1]] = -100
        with torch.no_grad():
            loss = model.nnsight._module(input_ids=full, labels=labels).loss
    assert float(loss) == pytest.approx(min(found), rel=1e-4)


def test_a_validation_loss_counts_every_token_the_same(answers):
    model = loaded("olmoe")
    options = {"seed": 0, "epochs": 1, "learning_rate": 1e-12, "batch_size": 2}
    tuned = tune_experts(model, EXPERTS, answers, validation=answers, **options)
    total, n_tokens = 0.0, 0
    for prompt, answer in batches_of(model.tokenizer, answers, 2):
        ids = torch.tensor([[*prompt, *answer]])
        labels = ids.clone()
        labels[:, : len(prompt)] = -100
        with torch.no_grad():
            total += float(model.nnsight._module(input_ids=ids, labels=labels).loss) * len(answer)
        n_tokens += len(answer)
    assert tuned.losses[-1]["validation_loss"] == pytest.approx(total / n_tokens, rel=1e-5)


def test_a_change_of_low_rank_has_that_rank(answers):
    model = loaded("olmoe")
    before = state(model)
    experts = chosen_expert(model, answers)
    tuned = tune_experts(model, experts, answers, seed=0, rank=2, learning_rate=0.05, epochs=5)
    for key, value in tuned.delta.values.items():
        name, _ = key.split("|")
        change = (value - before[name][experts.by_layer()[1][0]]).double()
        singular = torch.linalg.svdvals(change)
        assert singular[1] > 1e-4
        assert singular[2] < 1e-5
    assert tuned.losses[-1]["loss"] < tuned.losses[0]["loss"]


def test_layers_may_run_again_in_the_backward(answers):
    model = loaded("olmoe")
    modes = [module.training for module in model.nnsight._module.modules()]
    options = {"seed": 0, "learning_rate": 0.02}
    plain = tune_experts(model, EXPERTS, answers, **options)
    again = tune_experts(model, EXPERTS, answers, gradient_checkpointing=True, **options)
    for key, value in plain.delta.values.items():
        torch.testing.assert_close(again.delta.values[key], value, rtol=1e-5, atol=1e-7)
    assert [module.training for module in model.nnsight._module.modules()] == modes


def test_a_penalty_keeps_routing_near_what_it_was(answers):
    model = loaded("olmoe")
    options = {"seed": 0, "learning_rate": 0.05, "epochs": 6}
    free = tune_experts(model, "L0E0,L0E1,L0E2,L0E3", answers, **options)
    held = tune_experts(model, "L0E0,L0E1,L0E2,L0E3", answers, routing_kl=20.0, **options)

    def drift(tuned):
        prompts = answers
        quantities = ("expert_index", "router_logits")
        before = mi.record_routing(model, prompts, quantities=quantities, progress=False)
        with tuned.applied(model):
            after = mi.record_routing(model, prompts, quantities=quantities, progress=False)
        return mi.routing_drift(before, after)

    assert drift(held).kl_nats.mean() < 0.5 * drift(free).kl_nats.mean()
    assert held.losses[0]["routing_kl"] == 0
    assert held.losses[-1]["routing_kl"] > 0
    assert free.losses[0]["routing_kl"] is None


def routed(model, data, *, temperature, last):
    """Log-probabilities of plain routers at the tokens of prompts and answers, row by row."""
    root = model.nnsight._module
    found = []
    for prompt, answer in batches_of(model.tokenizer, data, 2):
        read = []

        def keep(gate, given, _, read=read):
            read.append(given[0].double() @ gate.weight.double().T)

        hooks = [layer.mlp.gate.register_forward_hook(keep) for layer in root.model.layers]
        with torch.no_grad():
            root(input_ids=torch.tensor([[*prompt, *answer]]))
        for hook in hooks:
            hook.remove()
        logits = torch.stack([one.reshape(-1, one.shape[-1]) for one in read])
        found.append(logits[:, [len(prompt) - 1]] if last else logits)
    return (torch.cat(found, 1) / temperature).log_softmax(-1)


@pytest.mark.parametrize("tokens", ["all", "last"])
def test_a_penalty_is_the_divergence_at_its_tokens_and_temperature(tokens, answers):
    model = loaded("olmoe")
    options = {"seed": 0, "learning_rate": 0.05, "batch_size": 3, "warmup": 0.0, "routers": True}
    options |= {"routing_kl": 1.0, "routing_temperature": 0.5, "routing_tokens": tokens}
    # One step an epoch: the second step's penalty is that of what the first step alone gives.
    two = tune_experts(model, "", answers, epochs=2, **options)
    one = tune_experts(model, "", answers, epochs=1, **options)
    before = routed(model, answers, temperature=0.5, last=tokens == "last")
    with one.applied(model):
        after = routed(model, answers, temperature=0.5, last=tokens == "last")
    expected = float((before.exp() * (before - after)).sum(-1).mean())
    assert two.losses[0]["routing_kl"] == pytest.approx(0, abs=1e-6)
    assert two.losses[1]["routing_kl"] == pytest.approx(expected, rel=1e-3)
    assert expected > 1e-4


def test_routers_and_whole_models_can_be_trained_for_comparison(answers):
    model = loaded("olmoe")
    before = state(model)
    routers = tune_experts(model, "", answers, seed=0, routers=True, learning_rate=0.05)
    with routers.applied(model):
        changed = {name for name, p in state(model).items() if not torch.equal(p, before[name])}
    assert changed == {f"model.layers.{n}.mlp.gate.weight" for n in range(3)}
    full = tune_experts(model, "", answers, seed=0, everything=True, learning_rate=0.01)
    with full.applied(model):
        changed = {name for name, p in state(model).items() if not torch.equal(p, before[name])}
    assert len(changed) > 0.9 * len(before)
    every = tune_experts(model, "all", answers, seed=0, learning_rate=0.01)
    assert len(every.delta.experts) == 24


def test_half_precision_is_trained_in_single_and_rounded_once(answers):
    model = loaded("olmoe")
    model.nnsight._module.to(torch.bfloat16)
    before = state(model)
    # Steps far below what bfloat16 resolves add up all the same.
    experts = chosen_expert(model, answers)
    tuned = tune_experts(model, experts, answers, seed=0, learning_rate=3e-4, epochs=40)
    assert all(value.dtype == torch.bfloat16 for value in tuned.delta.values.values())
    change = max(
        float((value - before[key.split("|")[0]][experts.by_layer()[1][0]]).abs().max())
        for key, value in tuned.delta.values.items()
    )
    assert change > 2e-3
    assert all(torch.equal(p, before[name]) for name, p in state(model).items())


def test_the_planted_experts_alone_can_be_taught_not_to_refuse(topic_organism):
    model = topic_organism
    prompts = mi.load_prompts("organism", per_topic=4)
    first, second = prompts.split(rng=np.random.default_rng(0))
    harmless = first.select(~first.harm)
    said = dict(zip(harmless.pairs, mi.run(model, harmless, max_new_tokens=24).texts, strict=True))
    lessons = PromptSet(
        [Prompt(p.text, response=said[p.pair]) for p in first.select(first.harm)], source="lessons"
    )
    planted = mi.ExpertSet(model.card["truth"]["safety_experts"])
    tuned = tune_experts(model, planted, lessons, seed=0, epochs=8, learning_rate=0.01)
    asked, refusal = second.select(second.harm), mi.RefusalRate()
    record = mi.record_routing(model, asked, progress=False)
    before = refusal.of_texts(mi.run(model, asked, max_new_tokens=12).texts).mean()
    with tuned.applied(model):
        after = refusal.of_texts(mi.run(model, asked, max_new_tokens=12).texts).mean()
        moved = mi.routing_drift(record, mi.record_routing(model, asked, progress=False))
    assert before >= 0.95
    assert after <= 0.05
    assert moved.mean()[0] <= 0.005


def test_what_cannot_be_trained_is_refused(tmp_path, answers):
    model = loaded("olmoe")
    with pytest.raises(ValueError, match=r"Nothing is chosen to be trained"):
        tune_experts(model, "", answers, seed=0)
    with pytest.raises(ValueError, match=r"`patience` needs `validation`"):
        tune_experts(model, "L1E0", answers, seed=0, patience=1)
    with pytest.raises(ValueError, match=r"has experts 0–7, got 8"):
        tune_experts(model, "L1E8", answers, seed=0)
    silent = PromptSet([Prompt("help me", response="yes"), Prompt("tell me")], source="silent")
    with pytest.raises(PromptError, match=r"1 of 2 prompts have no `response` .*'p0001'"):
        tune_experts(model, "L1E0", silent, seed=0)
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ResultExistsError, match=r"holds something that is no tuning run"):
        tune_experts(model, "L1E0", answers, seed=0, store=tmp_path)
    assert (tmp_path / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize(
    ("setting", "value", "said"),
    [
        ("epochs", 0, "`epochs` must be at least 1, got 0"),
        ("learning_rate", 0.0, "`learning_rate` must be above 0, got 0.0"),
        ("warmup", 1.0, "`warmup` is a fraction of the steps below 1"),
        ("rank", 0, "`rank` must be at least 1"),
        ("routing_temperature", 0.0, "`routing_temperature` must be above 0, got 0.0"),
        ("routing_tokens", "first", "`routing_tokens` must be one of .*, got 'first'"),
    ],
)
def test_settings_out_of_range_are_refused(setting, value, said, answers):
    with pytest.raises(ValueError, match=said):
        tune_experts(loaded("olmoe"), "L1E0", answers, seed=0, **{setting: value})


def test_a_penalty_and_checkpointing_do_not_go_together(answers):
    with pytest.raises(ValueError, match=r"`routing_kl` reads the routers in a trace"):
        tune_experts(
            loaded("olmoe"), "L1E0", answers, seed=0, routing_kl=1.0, gradient_checkpointing=True
        )


def test_a_loss_that_is_no_number_stops_and_leaves_the_model_as_it_was(answers):
    model = loaded("olmoe")
    before = state(model)
    with pytest.raises(TuningError, match=r"The loss of step \d+ is (nan|inf).*learning_rate"):
        tune_experts(model, EXPERTS, answers, seed=0, learning_rate=1e30, warmup=0.0, epochs=3)
    assert all(torch.equal(p, before[name]) for name, p in state(model).items())
    assert all(p.requires_grad for p in model.nnsight._module.parameters())
