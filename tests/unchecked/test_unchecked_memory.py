import numpy as np
import pytest
import torch

from moe_interp.interventions import RoutingMemory
from moe_interp.organism import shifted_prompts


def test_a_memory_with_rows_missing_is_refused():
    with pytest.raises(
        ValueError, match=r"Layer 0: .* must have one row a token, got \(2, 3, 3, 3"
    ):
        RoutingMemory(
            {0: torch.zeros(2, 4)},
            {0: torch.zeros(3, 2, dtype=torch.int64)},
            {0: torch.zeros(3, 2)},
            np.zeros(3, dtype=np.int64),
        )


def test_an_unknown_split_is_named_with_those_there_are():
    with pytest.raises(ValueError, match=r"`split` must be one of \('any', .*, got 'all'"):
        shifted_prompts(split="all")
