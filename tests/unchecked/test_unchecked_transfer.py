"""Messages about shapes in decoding, as users see them without the shape checker."""

import numpy as np
import pytest

from moe_interp.stats import bag_of_tokens


def test_a_bag_needs_one_prompt_a_token():
    with pytest.raises(ValueError, match=r"one value a token each, got shapes \(3,\) and \(2,\)"):
        bag_of_tokens(np.arange(3), np.zeros(2, dtype=int), 2)
