"""What a family offers and refuses: nothing more and nothing less than is written down here."""

import re

import pytest
import torch
import zoo
import zoo_runs
from tiny_models import build_tokenizer
from zoo_runs import FAMILIES, QUANTITIES

from moe_interp.errors import UnsupportedArchitectureError, UnsupportedQuantityError
from moe_interp.models import load_model

pytestmark = pytest.mark.conformance
families = pytest.mark.parametrize("family", FAMILIES)


@families
def test_a_family_refuses_what_is_written_down_and_says_why(family):
    model = zoo_runs.wrapped(family, zoo_runs.implementations(family)[-1])
    expected = zoo_runs.not_offered(family)
    for layer in (*model.encoder_moe.values(), *model.moe.values()):
        assert set(layer.refused) == set(expected)
        assert set(layer.offered) == set(QUANTITIES) - set(expected)
        for quantity, reason in expected.items():
            assert reason in layer.refused[quantity]
    seen = zoo_runs.plain_prefill(family, zoo_runs.implementations(family)[-1])
    for (call,) in seen.all_calls().values():
        assert set(call.values) == set(QUANTITIES) - set(expected)


REFUSALS = [(family, name) for family in FAMILIES for name in zoo_runs.not_offered(family)]


@pytest.mark.parametrize(("family", "quantity"), REFUSALS)
def test_a_refused_quantity_raises_with_its_reason(family, quantity):
    model = zoo_runs.wrapped(family, zoo_runs.implementations(family)[-1])
    number, layer = next(iter(model.moe.items()))
    reason = re.escape(zoo_runs.not_offered(family)[quantity])
    message = f"Layer {number} does not offer `{quantity}`: .*{reason}"
    with (
        pytest.raises(UnsupportedQuantityError, match=message),
        model.trace(zoo_runs.prompts(family)),
    ):
        getattr(layer, quantity).save()


@pytest.mark.parametrize("family", zoo_runs.REFUSED)
def test_a_family_that_cannot_be_read_is_refused_with_its_reason(family):
    reason = zoo_runs.REFUSED[family]
    with pytest.raises(UnsupportedArchitectureError, match=reason):
        load_model(zoo.build(family), tokenizer=build_tokenizer(), check=False)


@families
def test_each_quantity_read_alone_is_what_the_modules_had(family):
    implementation = zoo_runs.implementations(family)[-1]
    model = zoo_runs.wrapped(family, implementation)
    expected = zoo_runs.plain_prefill(family, implementation).calls
    number, layer = list(model.moe.items())[-1]
    for quantity in layer.offered:
        with torch.no_grad(), model.trace(zoo_runs.prompts(family)):
            found = getattr(layer, quantity).save()
        wanted = expected[number][0].values[quantity]
        assert found.shape == wanted.shape
        assert zoo_runs.distance(found, wanted) <= 1e-6, quantity


@families
def test_right_padding_is_read_too(family):
    implementation = zoo_runs.implementations(family)[-1]
    model = zoo_runs.wrapped(family, implementation)
    batch = zoo_runs.prompts(family, side="right")
    expected = zoo_runs.see(family, implementation, batch)
    found, logits = zoo_runs.read_all(model, batch, zoo_runs.offered(model))
    assert torch.equal(logits, expected.result.logits)
    for layer, (call,) in expected.all_calls().items():
        for quantity, value in found[layer].items():
            assert zoo_runs.distance(value, call.values[quantity]) <= 1e-6, quantity
        assert torch.equal(found[layer]["expert_index"], call.values["expert_index"])
