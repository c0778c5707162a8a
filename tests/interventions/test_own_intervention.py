"""A user's own intervention: a frozen dataclass that returns edits, mixed with ours."""

from dataclasses import dataclass

import pytest
import torch

from moe_interp import Ban, Intervention, Zero, run
from moe_interp.interventions import Edit, ExpertIntervention, measure_many


def scale(layer, index, weights, where, factor):
    hit = where.gather(-1, index)
    return torch.where(hit, weights * factor, weights)


def swap_first_two(layer, scores, index, where):
    swapped = torch.cat([index[..., 1:2], index[..., :1], index[..., 2:]], -1)
    return torch.where(where.any(-1, keepdim=True), swapped, index)


def force(layer, scores, index, where):
    wanted = where.float().argmax(-1)
    there = (index == wanted[..., None]).any(-1) | ~where.any(-1)
    weakest = scores.gather(-1, index).argmin(-1, keepdim=True)
    put = index.scatter(-1, weakest, wanted[..., None])
    return torch.where(there[..., None], index, put)


@dataclass(frozen=True)
class Scale(ExpertIntervention):
    factor: float = 1.0

    def edits(self, batch):
        factor = torch.full((1, 1, 1), self.factor)
        return [
            Edit(layer, "weights", scale, where, (factor,)) for layer, where in self.where(batch)
        ]


@dataclass(frozen=True)
class Choose(ExpertIntervention):
    rule: object = None

    def edits(self, batch):
        return [Edit(layer, "choice", self.rule, where) for layer, where in self.where(batch)]


@pytest.fixture(scope="module")
def model(tiny_model):
    return tiny_model("olmoe")


EVERY = [(1, expert) for expert in range(8)]


def test_interventions_of_one_stage_apply_in_list_order(model, texts):
    first = run(model, texts, [Scale("L1E0,L1E2", factor=0.5), Scale("L1E0,L1E2", factor=4.0)])
    twice = run(model, texts, Scale("L1E0,L1E2", factor=2.0))
    torch.testing.assert_close(first.logits, twice.logits, rtol=0, atol=1e-5)
    none = run(model, texts, [Scale("L1E0", factor=3.0), Zero("L1E0")])
    torch.testing.assert_close(none.logits, run(model, texts, Zero("L1E0")).logits)
    assert torch.equal(run(model, texts, Scale(EVERY, factor=1.0)).logits, run(model, texts).logits)


def test_the_order_of_choices_in_the_list_matters(model, texts):
    ban, put = Ban("L1E3"), Choose("L1E3", rule=force)
    forced = run(model, texts, [ban, put]).logits
    banned = run(model, texts, [put, ban]).logits
    torch.testing.assert_close(forced, run(model, texts, put).logits, rtol=0, atol=1e-5)
    assert (forced - banned).abs().max() > 1e-3


def test_the_order_of_slots_does_not_change_what_a_layer_computes(model, texts):
    swapped = run(model, texts, Choose(EVERY, rule=swap_first_two)).logits
    torch.testing.assert_close(swapped, run(model, texts).logits, rtol=0, atol=1e-5)


def test_rows_with_different_rules_and_values_equal_runs_of_each(model, texts):
    recipes = {
        "L1E0": Scale("L1E0", factor=2.0),
        "L1E1": Scale("L1E1,L2E5", factor=-1.0, tokens="last"),
        "L1E2": Ban("L1E2"),
        "L1E3": Choose("L1E3", rule=force),
    }

    def mode(experts) -> Intervention:
        return recipes[str(experts)]

    def metric(logits):
        return logits[:, 11]

    together = measure_many(model, texts, list(recipes), metric=metric, mode=mode)
    for row, intervention in zip(together, recipes.values(), strict=True):
        alone = metric(run(model, texts, intervention).logits)
        assert row == pytest.approx(alone.numpy(), abs=1e-5)
