import math

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from moe_interp import RefusalLogOdds, RefusalOpening, RefusalRate
from moe_interp.metrics import LogitDifference


def word_tokenizer(*words):
    vocabulary = {word: number for number, word in enumerate(("<unk>", *words))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>")


def byte_tokenizer():
    """A byte-level tokenizer whose only merges make "I" after a space and "As" without one."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {piece: number for number, piece in enumerate([*letters, "ĠI", "As"])}
    tokenizer = Tokenizer(models.BPE(vocabulary, [("Ġ", "I"), ("A", "s")]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


def test_log_odds_are_those_of_the_summed_probability():
    logits = torch.randn(5, 11, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    refusal = torch.softmax(logits, -1)[:, [2, 7]].sum(-1)
    expected = torch.log(refusal) - torch.log(1 - refusal)
    measured = RefusalLogOdds(token_ids=[7, 2])(logits)
    torch.testing.assert_close(measured, expected, rtol=1e-12, atol=1e-12)


def test_log_odds_stay_exact_where_the_probability_rounds_to_one_or_zero():
    logits = torch.tensor([[300.0, 0.0, 0.0], [-300.0, 0.0, 0.0]])
    expected = torch.tensor([300.0 - math.log(2), -300.0 - math.log(2)])
    torch.testing.assert_close(RefusalLogOdds(token_ids=[0])(logits), expected)


def test_half_precision_logits_are_summed_in_single_precision():
    logits = torch.tensor([[1.0] + [0.0] * 4000], dtype=torch.bfloat16)
    measured = RefusalLogOdds(token_ids=[0])(logits)
    assert measured.dtype == torch.float32
    assert measured.item() == pytest.approx(1 - math.log(4000), abs=1e-5)


def test_log_odds_can_be_differentiated():
    logits = torch.randn(3, 6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(RefusalLogOdds(token_ids=[1, 4]), logits)


def test_openers_are_those_the_vocabulary_holds_and_unknown_words_are_none():
    metric = RefusalLogOdds(word_tokenizer("sure", "sorry", "i"))
    assert metric.token_ids == (2,)
    assert metric.openers == ("sorry",)


def test_openers_count_bare_and_after_a_space_where_each_is_one_token():
    tokenizer = byte_tokenizer()
    metric = RefusalLogOdds(tokenizer)
    expected = tokenizer.convert_tokens_to_ids(["I", "ĠI", "As"])
    assert metric.token_ids == tuple(sorted(expected))
    assert set(metric.openers) == {"I", "As"}


def test_a_tokenizer_without_any_opener_is_refused_by_name():
    with pytest.raises(ValueError, match=r"Not a single token of \w+: 'I', 'As', .*`openers=`"):
        RefusalLogOdds(word_tokenizer("yes", "no"))


def test_an_opener_that_was_asked_for_must_be_a_token():
    with pytest.raises(ValueError, match=r"Not a single token of \w+: 'Alas'\. "):
        RefusalLogOdds(word_tokenizer("sorry"), openers=["sorry", "Alas"])


def test_log_odds_need_either_a_tokenizer_or_ids():
    with pytest.raises(ValueError, match=r"either a tokenizer or `token_ids=`"):
        RefusalLogOdds()
    with pytest.raises(ValueError, match=r"either a tokenizer or `token_ids=`"):
        RefusalLogOdds(word_tokenizer("sorry"), token_ids=[1])
    with pytest.raises(ValueError, match=r"`openers` need a tokenizer"):
        RefusalLogOdds(token_ids=[1], openers=["sorry"])
    with pytest.raises(ValueError, match=r"one or more ids from 0, got \[\]"):
        RefusalLogOdds(token_ids=[])


def test_tokens_of_another_vocabulary_are_refused():
    with pytest.raises(ValueError, match=r"Token 9 lies outside .* vocabulary of 4 tokens"):
        RefusalLogOdds(token_ids=[9])(torch.zeros(1, 4))


def test_refusal_tokens_must_leave_something_to_weigh_against():
    with pytest.raises(ValueError, match=r"Every token of the vocabulary"):
        RefusalLogOdds(token_ids=[0, 1])(torch.zeros(1, 2))


def test_the_logit_difference_is_token_minus_foil():
    logits = torch.tensor([[0.0, 2.0, 5.0], [1.0, 1.0, -1.0]])
    assert LogitDifference(1, 2)(logits).tolist() == [-3.0, 2.0]
    with pytest.raises(ValueError, match=r"two different ids from 0, got 3 and 3"):
        LogitDifference(3, 3)


def test_refusals_are_found_whatever_the_case_apostrophe_or_spacing():
    texts = [
        "I CAN'T do that",
        "I can’t do that",
        "Well, I  am\nunable to.",
        "sorry , i cannot help with that .",
        "sure , first mix the acid .",
        "The magi can notice it.",
        "",
    ]
    np.testing.assert_array_equal(RefusalRate().of_texts(texts), [1, 1, 1, 1, 0, 0, 0])


def test_refusal_phrases_can_be_chosen_but_not_blank():
    assert RefusalRate(["nope"]).of_texts(["Nope.", "I cannot help"]).tolist() == [1.0, 0.0]
    with pytest.raises(ValueError, match=r"one or more texts that are not blank"):
        RefusalRate(["nope", " "])


def test_the_opening_rate_counts_the_prompts_that_more_likely_refuse():
    metric = RefusalOpening(RefusalLogOdds(token_ids=[1, 2]))
    logits = torch.tensor([[0.0, 0.0, 0.0], [1.2, 1.0, 0.5], [1.0, 0.0, -9.0]])
    assert metric(logits).tolist() == [1.0, 1.0, 0.0]
