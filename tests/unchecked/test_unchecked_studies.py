import numpy as np
import pytest

from moe_interp.stats import (
    domain_specialisation,
    mcnemar,
    router_saturation,
    vocabulary_specialisation,
)
from moe_interp.studies._mesa2026_parts import treatments


def test_outcomes_are_of_the_same_prompts():
    with pytest.raises(ValueError, match=r"got the shapes \(2,\) and \(3,\)"):
        mcnemar(np.ones(2, dtype=bool), np.ones(3, dtype=bool))


def test_routers_are_compared_on_the_same_tokens():
    with pytest.raises(ValueError, match=r"got \(4, 1, 2\) and \(3, 1, 2\). Record both models"):
        router_saturation(np.zeros((4, 1, 2), dtype=int), np.zeros((3, 1, 2), dtype=int))


def test_domains_are_of_the_units_counted():
    with pytest.raises(ValueError, match="got 2, 2 and 3 of 2 domains"):
        domain_specialisation(
            np.ones((2, 1, 3)), np.ones(2), ["a", "b", "b"], rng=np.random.default_rng(0)
        )


def test_ids_are_of_the_tokens_routed():
    with pytest.raises(ValueError, match="got 4, 3 and 4"):
        vocabulary_specialisation(
            np.zeros((4, 1, 1), dtype=int), np.zeros(3, dtype=int), np.ones(4, dtype=bool), 2
        )


def test_an_unknown_treatment_is_refused():
    with pytest.raises(ValueError, match=r"`parts` must be among \('routers_only', .* got 'sft'"):
        treatments(None, None, ("sft",), np.random.default_rng(0))
