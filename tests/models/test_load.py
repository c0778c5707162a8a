import pytest

from moe_interp.models import load_model


def test_loads_a_saved_checkpoint(tiny_checkpoint):
    model = load_model(tiny_checkpoint("mixtral"))
    assert list(model.moe) == [0, 1, 2]
