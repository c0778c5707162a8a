"""Tuning with moved routing: the loss and the steps of the formulas, and behaviour spread out."""

import numpy as np
import pytest
import tiny_models
import torch

import moe_interp as mi
from moe_interp.errors import PromptError
from moe_interp.prompts import Prompt, PromptSet
from moe_interp.scores import MesaSelection, Scores
from moe_interp.tuning import Reroute, tune_experts

LAYERS, N_EXPERTS = (0, 1, 2), 8


@pytest.fixture
def lessons(answers):
    """The answers, with harm: the first and the last are harmful."""
    harm = (True, False, True)
    return PromptSet(
        [Prompt(p.text, harm=h, response=p.response) for p, h in zip(answers, harm, strict=True)],
        source="lessons",
    )


@pytest.fixture
def model():
    built = tiny_models.build("olmoe").double().eval()
    built.set_experts_implementation("eager")
    return mi.load_model(built, tokenizer=tiny_models.build_tokenizer(), check=False)


def costs(seed=0):
    values = np.random.default_rng(seed).random((len(LAYERS), N_EXPERTS)) * 4
    return Scores.of_array("cost", "smallest cost", values, layers=LAYERS)


def selected(experts, epsilon=0.5):
    cost = costs()
    return MesaSelection(mi.ExpertSet.parse(experts), cost, cost, cost, cost, epsilon)


def rows_of(model, data):
    for prompt in data:
        asked = model.tokenizer(prompt.text)["input_ids"]
        said = model.tokenizer(prompt.response, add_special_tokens=False)["input_ids"]
        yield asked, [*said, 2], prompt.harm


def said_by_routers(plain, ids):
    out = plain(input_ids=torch.tensor([ids]), output_router_logits=True)
    return out.logits, torch.stack([one.log_softmax(-1) for one in out.router_logits])


def slow_losses(plain, base, model, data, tilt, tokens):
    """Both losses, example by example without padding, from Hugging Face's own outputs."""
    response, routing, n_response, n_routing = 0.0, 0.0, 0, 0
    for asked, answer, harm in rows_of(model, data):
        ids = [*asked, *answer]
        logits, now = said_by_routers(plain, ids)
        with torch.no_grad():
            _, before = said_by_routers(base, ids)
        for place in range(len(asked), len(ids)):
            response = response - logits[0, place - 1].log_softmax(-1)[ids[place]]
            n_response += 1
        for place in range(len(ids)):
            moved = harm and (tokens == "all" or place >= len(asked) - 1)
            for layer in range(len(LAYERS)):
                weight = before[layer, place].exp()
                if moved:
                    weight = weight * torch.exp(-tilt[layer])
                target = weight / weight.sum()
                routing = routing + (target * (target.log() - now[layer, place])).sum()
                n_routing += 1
    return response / n_response, routing / n_routing


@pytest.mark.parametrize("tokens", ["all", "answer"])
def test_two_steps_are_those_of_the_formulas(model, lessons, tokens):
    experts, rate, weight = "L1E2,L2E3", 0.01, 0.7
    chosen = selected(experts)
    tuned = mi.mesa_tune(
        model,
        chosen,
        lessons,
        seed=0,
        tokens=tokens,
        routing_kl=weight,
        epochs=2,
        learning_rate=rate,
        batch_size=3,
    )
    plain, base = (tiny_models.build("olmoe").double().eval() for _ in range(2))
    for one in (plain, base):
        one.set_experts_implementation("eager")
    tilt = torch.tensor(chosen.cost.mean / chosen.epsilon)
    names = dict(plain.named_parameters())
    trained = [p for name, p in names.items() if ".mlp.gate." in name]
    slices = [
        (p, expert.expert)
        for expert in mi.ExpertSet.parse(experts)
        for name, p in names.items()
        if name.startswith(f"model.layers.{expert.layer}.mlp.experts.")
    ]
    masters = [p.detach()[e].clone().requires_grad_(True) for p, e in slices]
    optimiser = torch.optim.AdamW([*masters, *trained], lr=rate, weight_decay=0.0)
    for step in range(2):
        response, routing = slow_losses(plain, base, model, lessons, tilt, tokens)
        assert tuned.losses[step]["loss"] == pytest.approx(response.item(), rel=1e-6)
        assert tuned.losses[step]["routing_kl"] == pytest.approx(routing.item(), rel=1e-6)
        plain.zero_grad()
        (response + weight * routing).backward()
        for (p, e), master in zip(slices, masters, strict=True):
            master.grad = p.grad[e].clone()
        torch.nn.utils.clip_grad_norm_([*masters, *trained], 1.0)
        optimiser.param_groups[0]["lr"] = rate * (2 - step) / 2
        optimiser.step()
        with torch.no_grad():
            for (p, e), master in zip(slices, masters, strict=True):
                p[e] = master
    with tuned.applied(model):
        for name, now in model.nnsight._module.named_parameters():
            torch.testing.assert_close(now.detach(), names[name].detach(), rtol=1e-5, atol=1e-7)


def test_the_target_is_the_least_cost_near_the_base():
    """No other routing has a smaller expected cost plus divergence from the base."""
    rng = np.random.default_rng(1)
    before = torch.tensor(rng.normal(size=(3, 1, 2, N_EXPERTS))).log_softmax(-1)
    marked = torch.tensor([[True, False]])
    target = Reroute(costs(), ("p",)).target(before, marked)
    assert torch.equal(target[:, :, 1], before[:, :, 1])
    cost = torch.tensor(costs().mean)[:, None]

    def paid(routing):
        return (routing * (cost + routing.log() - before[:, :, 0])).sum(-1)

    best = paid(target[:, :, 0].exp())
    for _ in range(50):
        other = target[:, :, 0] + 0.05 * torch.tensor(rng.normal(size=(3, 1, N_EXPERTS)))
        assert (paid(other.softmax(-1)) > best).all()


def test_without_weight_on_routing_it_is_plain_tuning(model, lessons):
    options = {"seed": 0, "epochs": 2, "learning_rate": 0.01, "batch_size": 2}
    mesa = mi.mesa_tune(model, selected("L1E2"), lessons, routing_kl=0.0, **options)
    plain = tune_experts(model, "L1E2", lessons, routers=True, **options)
    assert mesa.losses == plain.losses
    assert all(torch.equal(v, plain.delta.values[k]) for k, v in mesa.delta.values.items())


def test_experts_and_routers_may_be_left_out_for_comparison(model, lessons):
    options = {"seed": 0, "epochs": 1, "learning_rate": 0.01}
    routers = mi.mesa_tune(model, selected("L1E2"), lessons, experts="", **options)
    assert set(routers.delta.values) == {f"model.layers.{n}.mlp.gate.weight" for n in LAYERS}
    frozen = mi.mesa_tune(model, selected("L1E2"), lessons, routers=False, **options)
    assert all("|L1E2" in key for key in frozen.delta.values)
    assert frozen.delta.settings["reroute"]["prompts"] == ["p0000", "p0002"]


def test_a_run_with_another_cost_is_not_gone_on_with(model, lessons, tmp_path):
    options = {"seed": 0, "epochs": 1, "learning_rate": 0.01, "store": tmp_path / "run"}
    mi.mesa_tune(model, selected("L1E2"), lessons, **options)
    with pytest.raises(FileExistsError, match="other inputs: reroute differ"):
        mi.mesa_tune(model, selected("L1E2", epsilon=0.4), lessons, **options)


def test_what_does_not_fit_is_refused(model, lessons, answers):
    with pytest.raises(PromptError, match="labelled harmful: theirs is the routing that moves"):
        mi.mesa_tune(model, selected("L1E2"), lessons.select(~lessons.harm), seed=0)
    with pytest.raises(
        ValueError, match=r"`tokens` must be one of \('all', 'answer'\), got 'user'"
    ):
        Reroute(costs(), ("p0000",), "user")
    endless = Scores.of_array("cost", "nats", np.full((3, 8), np.inf), layers=LAYERS)
    with pytest.raises(ValueError, match="`cost` must be a finite number for every expert"):
        Reroute(endless, ("p0000",))
    options = {"seed": 0, "routing_kl": 1.0}
    with pytest.raises(ValueError, match=r"`prompts` names 1 that `data` lacks: 'x'"):
        tune_experts(model, "L1E2", answers, reroute=Reroute(costs(), ("x",)), **options)
    with pytest.raises(ValueError, match="`prompts` names none"):
        tune_experts(model, "L1E2", answers, reroute=Reroute(costs(), ()), **options)
    fewer = Scores.of_array("cost", "nats", np.ones((2, 8)), layers=(0, 1))
    with pytest.raises(
        ValueError, match=r"`cost` has the layers and numbers of experts \(\(0, 8\)"
    ):
        tune_experts(model, "L1E2", answers, reroute=Reroute(fewer, ("p0000",)), **options)
    with pytest.raises(ValueError, match="`reroute` needs `routing_kl` above 0"):
        tune_experts(model, "L1E2", answers, seed=0, reroute=Reroute(costs(), ("p0000",)))
