"""Deltas: small files that apply to the model they came from, and to no other."""

import pytest
import tiny_models
import torch

import moe_interp as mi
from moe_interp.errors import ResultError, ResultExistsError, TuningError
from moe_interp.tuning import freeze_except, load_delta, merge_delta, tune_experts

# Experts that the prompts use, so that training changes them.
EXPERTS = "L1E3,L2E3"


def loaded(seed=0, **changes):
    model = tiny_models.build("olmoe", seed=seed, **changes).float().eval()
    return mi.load_model(model, tokenizer=tiny_models.build_tokenizer(), check=False)


@pytest.fixture(scope="module")
def model():
    return loaded()


@pytest.fixture
def tuned(model, answers):
    return tune_experts(model, EXPERTS, answers, seed=0, learning_rate=0.05)


def values(model):
    return {name: p.detach().clone() for name, p in model.nnsight._module.named_parameters()}


def test_a_delta_is_written_and_read_back(model, tuned, tmp_path):
    tuned.delta.save(tmp_path / "safe.delta")
    again = load_delta(tmp_path / "safe.delta")
    assert again.experts == mi.ExpertSet.parse(EXPERTS)
    assert again.settings == tuned.delta.settings
    assert again.n_parameters == tuned.delta.n_parameters
    with tuned.applied(model):
        expected = values(model)
    with again.applied(model):
        found = values(model)
    assert all(torch.equal(found[name], p) for name, p in expected.items())
    with pytest.raises(ResultExistsError, match=r"exists. Give another path"):
        tuned.delta.save(tmp_path / "safe.delta")


def test_a_multiple_of_the_change_is_merged(tuned, model):
    base = values(model)
    with tuned.applied(model):
        changed = values(model)
    name = "model.layers.1.mlp.experts.down_proj"
    for scale in (-1.0, 0.5, 2.0, 0.0):
        with tuned.applied(model, scale=scale):
            found = values(model)[name]
        expected = base[name] + scale * (changed[name] - base[name])
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    assert all(torch.equal(p, base[key]) for key, p in values(model).items())
    with pytest.raises(ValueError, match=r"`scale` must be a finite number, got nan"):
        merge_delta(model, tuned.delta, scale=float("nan"))


def test_another_model_is_refused_and_left_alone(tuned):
    other = loaded(seed=1)
    base = values(other)
    with pytest.raises(ResultError, match=r"4 of 4 parameters are not those of the model"):
        merge_delta(other, tuned.delta)
    assert all(torch.equal(p, base[key]) for key, p in values(other).items())
    shallow = loaded(num_hidden_layers=2)
    with pytest.raises(ResultError, match=r"no parameter 'model.layers.2"):
        merge_delta(shallow, tuned.delta)


def test_merging_twice_is_refused(tuned):
    model = loaded()
    merge_delta(model, tuned.delta)
    with pytest.raises(ResultError, match=r"untouched base model"):
        merge_delta(model, tuned.delta)


def test_files_that_are_no_deltas_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"There is no delta at"):
        load_delta(tmp_path / "none")
    (tmp_path / "text").write_text("hello, this is no tensor file at all")
    with pytest.raises(ResultError, match=r"is no delta of moe_interp"):
        load_delta(tmp_path / "text")
    from safetensors.torch import save_file

    save_file({"a": torch.zeros(2)}, tmp_path / "other")
    with pytest.raises(ResultError, match=r"it says None, version None"):
        load_delta(tmp_path / "other")


def step(model, parameters, optimiser):
    ids = torch.arange(4, 24)[None]
    model.nnsight._module(input_ids=ids, labels=ids).loss.backward()
    optimiser(parameters).step()


def test_a_loop_of_ones_own_reaches_the_chosen_experts_alone():
    model = loaded()
    before = values(model)
    ids = torch.arange(4, 24)[None]
    with torch.no_grad(), model.trace({"input_ids": ids}):
        chosen = model.moe[1].expert_index.save()
    expert = int(chosen[0, 0, 0])
    with freeze_except(model, [(1, expert)]) as parameters:
        assert len(parameters) == 2
        step(model, parameters, lambda given: torch.optim.SGD(given, lr=0.1))
    for name, old in before.items():
        now = values(model)[name]
        if name.startswith("model.layers.1.mlp.experts."):
            others = [n for n in range(8) if n != expert]
            assert torch.equal(now[others], old[others])
            assert not torch.equal(now[expert], old[expert])
        else:
            assert torch.equal(now, old)
    assert all(p.requires_grad for p in model.nnsight._module.parameters())


def test_an_optimiser_that_decays_the_others_is_found_out():
    model = loaded()

    def decaying(given):
        return torch.optim.AdamW(given, lr=0.1, weight_decay=0.1)

    with (
        pytest.raises(TuningError, match=r"2 parameters of .* changed that were not chosen"),
        freeze_except(model, "L1E0") as parameters,
    ):
        step(model, parameters, decaying)
    model = loaded()
    with freeze_except(model, "L1E0", routers=True) as parameters:
        assert len(parameters) == 5
