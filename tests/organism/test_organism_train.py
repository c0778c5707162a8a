import json
from dataclasses import replace

import pytest
import torch

from moe_interp.experts import ExpertSet
from moe_interp.organism import ORGANISMS, load_organism, train
from moe_interp.organism._grammar import draw_pair
from moe_interp.organism._recipe import RECIPES
from moe_interp.organism._routers import banned, noisy
from moe_interp.organism._train import compute_loss, train_organism


def shortened(recipe, *, steps):
    return replace(recipe, steps=steps, safety_steps=min(recipe.safety_steps, steps))


@pytest.fixture(scope="module")
def short_topic():
    return train_organism(shortened(RECIPES["topic"], steps=3))


def test_the_same_seed_gives_the_same_weights_bit_for_bit(short_topic):
    again = train_organism(shortened(RECIPES["topic"], steps=3)).model.state_dict()
    weights = short_topic.model.state_dict()
    assert all(torch.equal(weights[name], again[name]) for name in weights)


def test_another_seed_gives_other_weights(short_topic):
    recipe = replace(shortened(RECIPES["topic"], steps=1), seed=2)
    other = train_organism(recipe).model.state_dict()
    name = "model.embed_tokens.weight"
    assert not torch.equal(short_topic.model.state_dict()[name], other[name])


def test_training_leaves_the_callers_random_state_and_threads_alone():
    state, n_threads = torch.get_rng_state(), torch.get_num_threads()
    train_organism(shortened(RECIPES["null"], steps=1))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.get_num_threads() == n_threads


def test_stage_two_changes_the_safety_experts_and_nothing_else(short_topic):
    recipe = replace(shortened(RECIPES["topic"], steps=3), safety_steps=0)
    before = train_organism(recipe).model.state_dict()
    after = short_topic.model.state_dict()
    changed = {
        (name, expert)
        for name in before
        for expert in range(16 if ".experts." in name else 1)
        if not torch.equal(
            *(
                state[name][expert] if ".experts." in name else state[name]
                for state in (before, after)
            )
        )
    }
    names = [f"model.layers.3.mlp.experts.{name}" for name in ("gate_up_proj", "down_proj")]
    # So early the routers may not have found one of the two yet.
    assert changed
    assert changed <= {(name, expert) for name in names for expert in (8, 9)}


def test_the_base_experts_are_those_before_stage_two(short_topic):
    recipe = replace(shortened(RECIPES["topic"], steps=3), safety_steps=0)
    before = train_organism(recipe).model.state_dict()
    assert len(short_topic.base_experts) == 2
    for name, tensor in short_topic.base_experts.items():
        assert torch.equal(tensor, before[name])


def test_no_training_batch_holds_a_held_out_cell(monkeypatch):
    drawn = []

    def remember(**options):
        drawn.append(draw_pair(**options))
        return drawn[-1]

    monkeypatch.setattr("moe_interp.organism._train.draw_pair", remember)
    train_organism(shortened(RECIPES["harm"], steps=4))
    assert len(drawn) == 2 * 4 * 32
    assert not any(request.is_held_out for pair in drawn for request in pair)


def test_the_null_organisms_routers_are_drawn_anew_in_every_step_and_after_the_last(monkeypatch):
    seen = []

    def remember(model, *arguments, **options):
        seen.append(model.model.layers[0].mlp.gate.weight.detach().clone())
        return compute_loss(model, *arguments, **options)

    monkeypatch.setattr("moe_interp.organism._train.compute_loss", remember)
    trained = train_organism(shortened(RECIPES["null"], steps=3))
    routers = [*seen, trained.model.model.layers[0].mlp.gate.weight]
    assert len(routers) == 4
    for index, router in enumerate(routers):
        assert router.std().item() == pytest.approx(0.3, rel=0.1)
        assert not any(torch.equal(router, other) for other in routers[:index])


def test_bystanders_are_switched_off_in_some_steps_of_stage_one_only(monkeypatch):
    switched_off = []

    def remember(model, experts):
        switched_off.append(str(experts))
        return banned(model, experts)

    monkeypatch.setattr("moe_interp.organism._train.banned", remember)
    train_organism(replace(shortened(RECIPES["topic"], steps=8), spare=0))
    assert set(switched_off[:8]) == {"", "L3E8,L3E9"}
    assert set(switched_off[8:]) == {""}


def test_the_command_writes_a_folder_that_transformers_loads(monkeypatch, tmp_path, capsys):
    recipes = {name: shortened(RECIPES[name], steps=2) for name in ORGANISMS}
    monkeypatch.setattr(train, "RECIPES", recipes)
    monkeypatch.setattr("moe_interp.organism._package._N_EVALUATION_PAIRS", 4)
    assert train.main(["topic", "--out", str(tmp_path / "made")]) == 0
    model, tokenizer = load_organism(tmp_path / "made")
    assert model.dtype == torch.float32
    assert tokenizer.chat_template
    card = json.loads((tmp_path / "made" / "card.json").read_text())
    assert card["behaviour"] == json.loads(capsys.readouterr().out)
    assert card["training"]["steps"] == 2


def test_the_command_refuses_an_unknown_name(capsys):
    with pytest.raises(SystemExit, match="2"):
        train.main(["politics"])
    assert "invalid choice: 'politics'" in capsys.readouterr().err


def test_a_banned_expert_is_never_chosen_and_the_model_is_as_before_afterwards(organisms):
    model, tokenizer = organisms["topic"]
    encoded = tokenizer(["open the lock"], return_tensors="pt")
    chosen = []
    router = model.model.layers[3].mlp.gate
    handle = None
    with torch.no_grad():
        before = model(**encoded).logits
        with banned(model, ExpertSet()):
            assert torch.equal(model(**encoded).logits, before)
        with banned(model, ExpertSet.parse(",".join(f"L3E{expert}" for expert in range(13)))):
            handle = router.register_forward_hook(lambda *a: chosen.append(a[2]))
            model(**encoded)
            handle.remove()
        assert torch.equal(model(**encoded).logits, before)
    _, weights, index = chosen[0]
    assert set(index.flatten().tolist()) <= {13, 14, 15}
    assert torch.allclose(weights.sum(-1), torch.ones(len(weights)))


def test_noisy_routers_choose_otherwise_inside_the_block_only(organisms):
    model, tokenizer = organisms["natural"]
    encoded = tokenizer(["open the lock"], return_tensors="pt")
    torch.manual_seed(0)
    with torch.no_grad():
        before = model(**encoded, output_router_logits=True)
        with noisy(model, 5.0):
            inside = model(**encoded, output_router_logits=True)
        assert torch.equal(model(**encoded).logits, before.logits)
    assert not torch.equal(inside.logits, before.logits)
    assert torch.equal(inside.router_logits[0], before.router_logits[0])


def test_without_noise_nothing_is_drawn(organisms):
    model, tokenizer = organisms["natural"]
    state = torch.get_rng_state()
    with torch.no_grad(), noisy(model, 0.0):
        model(**tokenizer(["open the lock"], return_tensors="pt"))
    assert torch.equal(torch.get_rng_state(), state)


def test_a_recipe_with_noise_and_bystanders_is_refused():
    with pytest.raises(AssertionError, match="noise would undo"):
        replace(RECIPES["topic"], router_noise=1.0)
