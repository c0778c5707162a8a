import pytest

from moe_interp.organism import factorial_prompts


def test_an_unknown_split_is_an_error_that_lists_the_known_ones():
    with pytest.raises(ValueError, match=r"`split` must be one of \('any', 'train', 'test'\), got"):
        factorial_prompts(1, split="validation")


def test_an_unknown_choice_of_cues_is_an_error_that_lists_the_known_ones():
    with pytest.raises(ValueError, match=r"`cues` must be one of \('shared', 'all'\), got 'own'"):
        factorial_prompts(1, cues="own")
