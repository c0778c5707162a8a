"""Spans of pairs and of responses: which tokens, in which prompts, and never silently none."""

import warnings

import pytest

from moe_interp.errors import PromptError, SpanError
from moe_interp.prompts import DEFAULT_SPANS, SPANS, Prompt, PromptSet, encode, tokenize

PAIR = (
    Prompt("how do i bake bread today", topic="t", harm=False, pair="a", id="bake"),
    Prompt("how do i poison a cake today", topic="t", harm=True, pair="a", id="poison"),
)
LONE = Prompt("say hello to you", topic="t", harm=True, id="lone")
ANSWERED = (
    Prompt("bake bread", harm=False, response="say hello", id="a"),
    Prompt("bake bread today", harm=True, response="poison", id="b"),
)


def ids_in(tokenized, prompt, span):
    inside = tokenized.spans[span][prompt]
    return [i for i, chosen in zip(tokenized.token_ids[prompt], inside, strict=True) if chosen]


def text_in(tokenized, prompt, span):
    inside = tokenized.spans[span][prompt]
    return "".join(
        text for text, chosen in zip(tokenized.token_text[prompt], inside, strict=True) if chosen
    )


def test_after_divergence_is_the_words_and_the_template_that_both_end_with(byte_level):
    tokenized = tokenize(byte_level, PromptSet(PAIR), spans=SPANS[:5])
    for prompt in (0, 1):
        assert text_in(tokenized, prompt, "after_divergence") == " today<|end|>\n<|assistant|>\n"


def test_both_members_have_the_same_tokens_in_pair_spans_and_they_end_the_prompt(tokenizer):
    tokenized = tokenize(tokenizer, PromptSet(PAIR), spans=SPANS[:5])
    for span in ("after_divergence", "identical_tokens"):
        bake, poison = (ids_in(tokenized, prompt, span) for prompt in (0, 1))
        assert bake == poison != []
    before = []
    for prompt in (0, 1):
        after = tokenized.spans["after_divergence"][prompt]
        n_after = int(after.sum())
        assert after[len(after) - n_after :].all()
        assert tokenized.spans["identical_tokens"][prompt][after].all()
        before.append(tokenized.token_ids[prompt][len(after) - n_after - 1])
    assert before[0] != before[1]


def test_identical_tokens_reach_back_between_two_changes(byte_level):
    prompts = PromptSet(
        [
            Prompt("say bread to you now", topic="t", harm=False, pair="a"),
            Prompt("say cake to you today", topic="t", harm=True, pair="a"),
        ]
    )
    tokenized = tokenize(byte_level, prompts, spans=SPANS[:5])
    assert text_in(tokenized, 0, "after_divergence") == "<|end|>\n<|assistant|>\n"
    for prompt in (0, 1):
        assert " to you" in text_in(tokenized, prompt, "identical_tokens")
    assert "say" not in text_in(tokenized, 0, "identical_tokens")


@pytest.mark.parametrize("side", ["left", "right"])
def test_pair_spans_keep_their_place_in_a_padded_batch(byte_level, side):
    prompts = PromptSet(PAIR)
    tokenized = tokenize(byte_level, prompts, spans=SPANS[:5])
    encoded = encode(byte_level, prompts, padding_side=side, spans=SPANS[:5])
    for span in SPANS[:5]:
        for row in (0, 1):
            assert encoded.input_ids[row, encoded.spans[span][row]].tolist() == ids_in(
                tokenized, row, span
            )


def test_a_prompt_without_a_partner_is_named_and_has_no_token_there(byte_level):
    message = r"1 of 3 prompts have no token in the span 'after_divergence': 'lone'. They have no"
    with pytest.warns(UserWarning, match=message):
        tokenized = tokenize(byte_level, PromptSet([*PAIR, LONE]), spans=("after_divergence",))
    assert [bool(span.any()) for span in tokenized.spans["after_divergence"]] == [True, True, False]


def test_a_pair_with_nothing_in_common_at_the_end_is_named(with_template):
    prompts = PromptSet(
        [
            *PAIR,
            Prompt("bake it", topic="t", harm=False, pair="b", id="c"),
            Prompt("bake hello", topic="t", harm=True, pair="b", id="d"),
        ]
    )
    with pytest.warns(UserWarning, match=r"2 of 4 prompts have no token .*: 'c', 'd'"):
        tokenize(with_template(None), prompts, spans=("after_divergence",))


@pytest.mark.parametrize("span", ["after_divergence", "identical_tokens"])
@pytest.mark.parametrize(
    "prompts",
    [
        PromptSet([LONE]),
        ["say hello"],
        # Two responses to one prompt: as prompts, they do not differ.
        PromptSet(
            [
                Prompt("x", topic="t", harm=False, pair="a", response="yes"),
                Prompt("x", topic="t", harm=True, pair="a", response="no"),
            ]
        ),
    ],
)
def test_a_pair_span_that_no_prompt_has_is_refused(byte_level, prompts, span):
    message = rf"No prompt has a token in the span '{span}'. Give a PromptSet with pairs"
    with pytest.raises(SpanError, match=message):
        tokenize(byte_level, prompts, spans=(span,))


def test_a_response_follows_the_tokens_the_prompt_has_without_it(tokenizer):
    prompts = PromptSet(ANSWERED)
    alone = tokenize(tokenizer, prompts)
    tokenized = tokenize(tokenizer, prompts, spans=(*DEFAULT_SPANS, "response"))
    for prompt in (0, 1):
        n_prompt = len(alone.token_ids[prompt])
        assert tokenized.token_ids[prompt][:n_prompt] == alone.token_ids[prompt]
        assert ids_in(tokenized, prompt, "prompt") == list(alone.token_ids[prompt])
        for span in ("user", "last"):
            assert ids_in(tokenized, prompt, span) == ids_in(alone, prompt, span)
        assert not (tokenized.spans["response"][prompt] & tokenized.spans["prompt"][prompt]).any()
        assert (tokenized.spans["response"][prompt] | tokenized.spans["prompt"][prompt]).all()


def test_the_response_spells_the_response_and_ends_the_text(tokenizer):
    tokenized = tokenize(tokenizer, PromptSet(ANSWERED), spans=("response",))
    for prompt, words in enumerate(("say hello", "poison")):
        spelled = tokenizer.decode(ids_in(tokenized, prompt, "response"))
        assert spelled.replace(" ", "") == words.replace(" ", "")
        assert tokenized.spans["response"][prompt][-1]


def test_a_response_is_not_read_unless_asked_for(byte_level):
    without = PromptSet([Prompt(one.text, harm=one.harm, id=one.id) for one in ANSWERED])
    assert (
        tokenize(byte_level, PromptSet(ANSWERED)).token_ids
        == tokenize(byte_level, without).token_ids
    )


def test_a_token_that_would_reach_over_the_border_does_not(with_template):
    plain = with_template(None)
    merged = plain("bake bread", add_special_tokens=False)["input_ids"]
    prompts = PromptSet([Prompt("bake br", response="ead")])
    tokenized = tokenize(plain, prompts, spans=("prompt", "response"))
    assert list(tokenized.token_ids[0][1:]) != merged
    assert text_in(tokenized, 0, "prompt") == "<s>bake br"
    assert text_in(tokenized, 0, "response") == "ead"


def test_an_end_token_does_not_stand_between_prompt_and_response(with_template):
    from tokenizers import processors

    plain = with_template(None)
    plain.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)]
    )
    prompts = PromptSet([*ANSWERED, Prompt("say", id="no response")])
    with pytest.warns(UserWarning, match=r"1 of 3 prompts .* 'response': 'no response'. They have"):
        tokenized = tokenize(plain, prompts, spans=("prompt", "last", "response"))
    assert "".join(tokenized.token_text[0]) == "<s>bake breadsay hello"
    assert text_in(tokenized, 0, "prompt") == "<s>bake bread"
    assert tokenized.token_text[2][-1] == "</s>"
    assert not tokenized.spans["response"][2].any()
    # Where responses are not read, a prompt that has one is as any other.
    assert {text[-1] for text in tokenize(plain, prompts).token_text} == {"</s>"}


def test_responses_are_refused_where_there_are_none(byte_level):
    message = r"No prompt has a token in the span 'response'. Give a PromptSet whose prompts have"
    for prompts in (PromptSet(PAIR), ["say hello"]):
        with pytest.raises(SpanError, match=message):
            tokenize(byte_level, prompts, spans=("response",))


def test_a_response_counts_towards_the_length(byte_level):
    prompts = PromptSet([Prompt("say", id="a", response="hello " * 30)])
    limit = int(tokenize(byte_level, prompts).lengths[0])
    assert tokenize(byte_level, prompts, max_length=limit).lengths.tolist() == [limit]
    with pytest.raises(PromptError, match=r"1 of 1 prompts are longer than"):
        tokenize(byte_level, prompts, max_length=limit, spans=("response",))


def test_an_empty_response_is_refused():
    with pytest.raises(PromptError, match=r"The `response` of the prompt 'x' is empty"):
        Prompt("x", response=" ")


def test_spans_come_in_the_order_asked_for(byte_level):
    spans = ("last", "after_divergence", "prompt")
    assert tuple(tokenize(byte_level, PromptSet(PAIR), spans=spans).spans) == spans


def test_pairs_without_a_word_of_warning_where_all_is_well(byte_level):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tokenize(byte_level, PromptSet(PAIR), spans=SPANS[:5])
