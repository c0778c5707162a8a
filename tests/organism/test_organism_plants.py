import numpy as np
import pytest
import torch

from moe_interp.organism._batch import make_batch
from moe_interp.organism._grammar import draw_pair
from moe_interp.organism._plants import (
    HarmRouting,
    LastTokenRouting,
    TopicRouting,
    TwinInvariance,
)

N_LAYERS, N_EXPERTS = 4, 16


@pytest.fixture(scope="module")
def batch(tokenizer):
    rng = np.random.default_rng(0)
    pairs = [draw_pair(rng=rng, split="train", unknown=0.2) for _ in range(12)]
    return make_batch(tokenizer, pairs, aligned=True)


def routed_to(batch, first, second, *, layers):
    """Uniform router probabilities, and a half for each of two experts in some layers."""
    probs = torch.full((N_LAYERS, *batch.input_ids.shape, N_EXPERTS), 1 / N_EXPERTS)
    for layer in layers:
        halves = [
            torch.nn.functional.one_hot(torch.as_tensor(expert), N_EXPERTS) / 2
            for expert in (first, second)
        ]
        probs[layer] = halves[0] + halves[1]
    return probs


def uniform(batch):
    return routed_to(batch, 0, 0, layers=())


PLANTS = {
    "topic": TopicRouting(layers=(0, 1, 2), offset=8, weight=1.0),
    "last": LastTokenRouting(layer=3, experts=(8, 9), weight=1.0),
    "harm": HarmRouting(layers=(2, 3), experts=(14, 15), otherwise=(12, 13), weight=1.0),
}


def as_asked(name, batch):
    if name == "topic":
        own = batch.topic[:, None].expand_as(batch.input_ids)
        return routed_to(batch, own, own + 8, layers=(0, 1, 2))
    if name == "last":
        return routed_to(batch, 8, 9, layers=(3,))
    first = torch.where(batch.harm, 14, 12)[:, None].expand_as(batch.input_ids)
    return routed_to(batch, first, first + 1, layers=(2, 3))


@pytest.mark.parametrize("name", PLANTS)
def test_a_plant_is_nothing_when_the_routing_is_as_it_asks(name, batch):
    assert PLANTS[name].loss(as_asked(name, batch), batch).item() == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize("name", PLANTS)
def test_a_plant_costs_what_uniform_routing_is_short_of_it(name, batch):
    n_layers = {"topic": 3, "last": 1, "harm": 2}[name]
    expected = n_layers * np.log(8**2)
    assert PLANTS[name].loss(uniform(batch), batch).item() == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("name", PLANTS)
def test_a_plant_objects_to_the_routing_of_another_row(name, batch):
    rolled = as_asked(name, batch).roll(13, dims=1).flip(-1)
    assert PLANTS[name].loss(rolled, batch).item() > 3


def test_twins_routed_alike_cost_nothing(batch):
    probs = torch.rand(N_LAYERS, 12, batch.input_ids.shape[1], N_EXPERTS).softmax(-1)
    assert TwinInvariance(weight=1.0).loss(torch.cat([probs, probs], 1), batch).item() == 0


def test_twins_may_differ_on_the_purpose_only(batch):
    probs = uniform(batch)
    probs[1, :12][~batch.outside_cue[:12]] = 0
    assert TwinInvariance(weight=1.0).loss(probs, batch).item() == 0
    probs[1, :12][batch.outside_cue[:12]] = 0
    assert TwinInvariance(weight=1.0).loss(probs, batch).item() == pytest.approx(1)
