"""What stands twice in a file counts once, and what contradicts itself is refused."""

import warnings

import pytest

from moe_interp.errors import PromptError
from moe_interp.prompts import load_prompts


def test_a_pair_that_stands_twice_is_left_out_once(written):
    content = "text,harm,pair\nx,0,1\ny,1,1\nz,1,2\nw,0,2\ny,1,3\nx,0,3\n"
    message = r"2 of 6 prompts of a.csv repeat earlier .*: 'a.csv, row 6', 'a.csv, row 7'"
    with pytest.warns(UserWarning, match=message):
        prompts = load_prompts(written("a.csv", content))
    assert prompts.texts == ("x", "y", "z", "w")
    assert prompts.n_pairs == 2


def test_an_unpaired_prompt_that_stands_twice_is_left_out_once(written):
    with pytest.warns(UserWarning, match=r"1 of 3 prompts of a.csv repeat .*: 'a.csv, row 4'"):
        prompts = load_prompts(written("a.csv", "text,topic\nx,t\ny,t\nx,t\n"))
    assert prompts.texts == ("x", "y")


def test_the_same_words_with_another_response_are_another_prompt(written):
    prompts = load_prompts(written("a.csv", "text,response\nx,yes\nx,no\nx,\n"))
    assert prompts.responses == ("yes", "no", None)


def test_a_prompt_that_two_pairs_share_is_kept_with_a_warning(written):
    content = "text,harm,pair\nx,0,1\ny,1,1\nx,0,2\nz,1,2\n"
    message = r"1 prompts of a.csv are members of several pairs: 'a.csv, row 2', 'a.csv, row 4'"
    with pytest.warns(UserWarning, match=message):
        prompts = load_prompts(written("a.csv", content))
    assert prompts.n_pairs == 2


def test_a_shared_prompt_whose_pairs_have_one_wording_is_not_spoken_of(written):
    content = "text,harm,pair,wording\nx,0,1,w\ny,1,1,w\nx,0,2,w\nz,1,2,w\n"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert load_prompts(written("a.csv", content)).n_pairs == 2


def test_words_both_harmful_and_harmless_are_refused_with_both_rows(written):
    with pytest.raises(PromptError, match=r"a.csv, row 2 and a.csv, row 4 hold the same words"):
        load_prompts(written("a.csv", "text,harm\nx,0\ny,1\nx,1\n"))


def test_unknown_harm_contradicts_nothing(written):
    with pytest.warns(UserWarning, match=r"1 of 2 prompts of a.csv repeat .*: 'a.csv, row 3'"):
        prompts = load_prompts(written("a.csv", "text,harm\nx,1\nx,\n"))
    assert prompts.harm.tolist() == [True]


def test_two_harmful_prompts_in_one_pair_are_refused(written):
    content = "text,harm,pair\nx,0,1\ny,1,1\nz,1,1\n"
    with pytest.raises(PromptError, match=r"Pair '1' has two harmful prompts, a.csv, row 3 and"):
        load_prompts(written("a.csv", content))
