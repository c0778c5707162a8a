import pytest

from moe_interp import ExpertSet


def test_something_that_is_no_expert_is_refused():
    with pytest.raises(TypeError, match=r"An expert is an Expert, a \(layer, expert\) pair or a"):
        ExpertSet([3.5])
