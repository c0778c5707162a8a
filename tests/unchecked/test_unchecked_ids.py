import pytest

from moe_interp.experts import Expert


@pytest.mark.parametrize("pair", [(0.5, 1), ("a", 1), (None, 1), (1, "1"), (1, 2.0), ((), 1)])
def test_what_is_no_number_names_no_expert(pair):
    with pytest.raises(ValueError, match="must be an integer of at least 0"):
        Expert(*pair)
