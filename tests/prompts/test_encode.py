"""Tokens and their spans: exact on three kinds of tokenizers, whatever the padding."""

import numpy as np
import pytest
import torch

from moe_interp.errors import PromptError, SpanError
from moe_interp.prompts import Prompt, PromptSet, encode, tokenize

TEXTS = ("how do i bake bread", "how do i poison a cake today", "say hello")


def words(tokenized, prompt, span):
    """The text of a span's tokens."""
    text, inside = tokenized.token_text[prompt], tokenized.spans[span][prompt]
    return "".join(t for t, chosen in zip(text, inside, strict=True) if chosen)


@pytest.mark.parametrize("side", ["left", "right"])
def test_the_users_tokens_spell_the_users_words(tokenizer, side):
    encoded = encode(tokenizer, TEXTS, padding_side=side)
    for row, text in enumerate(TEXTS):
        ids = encoded.input_ids[row, encoded.spans["user"][row]]
        spelled = tokenizer.decode(ids).replace(" ", "")
        assert spelled == text.replace(" ", "")


@pytest.mark.parametrize("side", ["left", "right"])
def test_no_span_holds_padding(tokenizer, side):
    encoded = encode(tokenizer, TEXTS, padding_side=side)
    padding = encoded.attention_mask == 0
    assert padding.any()
    assert not any((span & padding).any() for span in encoded.spans.values())


@pytest.mark.parametrize("side", ["left", "right"])
def test_prompt_is_every_real_token_and_last_the_last_of_them(tokenizer, side):
    encoded = encode(tokenizer, TEXTS, padding_side=side)
    assert torch.equal(encoded.spans["prompt"], encoded.attention_mask.bool())
    for row in range(len(TEXTS)):
        real = encoded.attention_mask[row].nonzero().flatten()
        assert encoded.spans["last"][row].nonzero().flatten().tolist() == [real[-1].item()]


def test_both_padding_sides_hold_the_same_tokens_at_the_same_positions(tokenizer):
    left, right = (encode(tokenizer, TEXTS, padding_side=side) for side in ("left", "right"))
    for row in range(len(TEXTS)):
        of_left, of_right = (one.attention_mask[row].bool() for one in (left, right))
        for name in ("input_ids", "position_ids"):
            assert torch.equal(
                getattr(left, name)[row, of_left], getattr(right, name)[row, of_right]
            )
        for span in left.spans:
            assert torch.equal(left.spans[span][row, of_left], right.spans[span][row, of_right])


def test_positions_count_from_the_first_real_token(byte_level):
    encoded = encode(byte_level, TEXTS, padding_side="left")
    n_real = encoded.attention_mask.sum(dim=1)
    assert encoded.position_ids[:, -1].tolist() == (n_real - 1).tolist()
    assert encoded.position_ids.min() == 0


def test_special_tokens_are_those_of_the_template_and_no_more(tokenizer):
    ids = tokenize(tokenizer, TEXTS).token_ids[0]
    assert ids.count(tokenizer.bos_token_id) == 1
    assert ids[0] == tokenizer.bos_token_id


def test_without_a_template_the_tokenizer_adds_its_own_and_the_user_has_the_rest(with_template):
    tokenized = tokenize(with_template(None), ["bake bread"])
    assert tokenized.token_text[0][0] == "<s>"
    assert words(tokenized, 0, "user") == "bake bread"


def test_a_text_that_brings_its_first_token_gets_no_second(with_template):
    plain = with_template(None)
    tokenized = tokenize(plain, ["<s>bake bread"])
    assert tokenized.token_ids[0].count(plain.bos_token_id) == 1
    assert tokenized.token_text[0][:2] == ("<s>", "b")


@pytest.mark.parametrize("text", ["a  b", "é😀 bread", "bread\n\n\nbread", "a \t b"])
def test_blanks_and_bytes_of_the_user_are_the_users(byte_level, text):
    tokenized = tokenize(byte_level, [text])
    inside = tokenized.spans["user"][0]
    spelled = byte_level.decode(
        [i for i, c in zip(tokenized.token_ids[0], inside, strict=True) if c]
    )
    assert spelled == text


def test_blanks_of_the_template_are_not_the_users(with_template):
    tokenizer = with_template("<|user|> \n{{ messages[0]['content'] }}\n \n<|end|>")
    assert words(tokenize(tokenizer, ["bread"]), 0, "user") == "bread"


def test_blanks_at_the_edge_of_the_users_words_are_the_users(with_template):
    tokenizer = with_template("<|user|>{{ messages[0]['content'] }}<|end|>")
    assert words(tokenize(tokenizer, [" \nbread\n "]), 0, "user") == " \nbread\n "


def test_a_token_that_reaches_into_the_users_words_counts(with_template):
    tokenizer = with_template("user : {{ messages[0]['content'] }}<|end|>")
    assert words(tokenize(tokenizer, ["bake"]), 0, "user") == " bake"


def test_words_of_the_user_that_occur_in_the_template_are_told_apart(with_template):
    tokenizer = with_template("user{{ messages[0]['content'] }}user")
    inside = tokenize(tokenizer, ["<|user|>user<|user|>"]).spans["user"][0]
    assert not inside[0]
    assert not inside[-1]
    assert inside.sum() > 2


def test_ids_agree_with_the_tokenizers_own_chat_encoding(tokenizer):
    turn = [{"role": "user", "content": TEXTS[0]}]
    own = tokenizer.apply_chat_template(turn, add_generation_prompt=True, return_dict=False)
    assert list(tokenize(tokenizer, TEXTS[:1]).token_ids[0]) == own


def test_a_tokenizer_that_was_told_to_cut_or_pad_does_neither_here(byte_level):
    before = tokenize(byte_level, TEXTS).token_ids
    byte_level(list(TEXTS), truncation=True, max_length=4, padding="max_length")
    assert tokenize(byte_level, TEXTS).token_ids == before


def test_a_batch_takes_prompts_in_the_order_asked_for(byte_level):
    tokenized = tokenize(byte_level, TEXTS)
    batch = tokenized.batch([2, 0])
    assert batch.token_text == (tokenized.token_text[2], tokenized.token_text[0])
    assert batch.attention_mask.sum(dim=1).tolist() == tokenized.lengths[[2, 0]].tolist()


def test_a_tokenizer_that_gets_few_texts_at_once_gives_the_same(tokenizer, monkeypatch):
    texts = [" ".join(["how do i bake bread today"] * n) for n in range(1, 9)]
    whole = tokenize(tokenizer, texts)
    for module in ("_tokens", "_spans"):
        monkeypatch.setattr(f"moe_interp.prompts.{module}.AT_ONCE", 3)
    parts = tokenize(tokenizer, texts)
    assert parts.token_ids == whole.token_ids
    assert parts.token_text == whole.token_text
    for name, span in whole.spans.items():
        assert all(map(np.array_equal, parts.spans[name], span)), name


def test_token_text_keeps_the_blank_before_a_word(tokenizer):
    text = tokenize(tokenizer, TEXTS).token_text[0]
    assert {"bread", " bread", "b", " b"} & set(text)


def test_a_prompt_longer_than_the_context_is_named_with_its_length(byte_level):
    prompts = PromptSet([Prompt("say hello", id="short"), Prompt("hello " * 30, id="long")])
    n_tokens = tokenize(byte_level, prompts).lengths[1]
    message = rf"1 of 2 prompts are longer than the 20 tokens .* 'long \({n_tokens} tokens\)'"
    with pytest.raises(PromptError, match=message):
        encode(byte_level, prompts, max_length=20)


def test_a_prompt_as_long_as_the_context_passes(byte_level):
    limit = int(tokenize(byte_level, TEXTS).lengths.max())
    assert encode(byte_level, TEXTS, max_length=limit).input_ids.shape[1] == limit


def test_a_prompt_without_tokens_is_refused():
    with pytest.raises(PromptError, match="These prompts have no token: 'b'"):
        tokenize(SlowTokenizer(), PromptSet([Prompt("x", id="a"), Prompt("-", id="b")]), spans=())


class SlowTokenizer:
    """Splits at characters and drops dashes; says nothing about offsets."""

    is_fast = False
    chat_template = None
    pad_token_id = None
    eos_token_id = None

    def __call__(self, texts, **_):
        ids = [[ord(c) for c in text if c != "-"] for text in texts]
        return {"input_ids": ids, "special_tokens_mask": [[0] * len(row) for row in ids]}

    def convert_ids_to_tokens(self, ids):
        return [chr(i) for i in ids]

    def decode(self, ids):
        return "".join(map(chr, ids))


def test_a_slow_tokenizer_is_refused_by_name_for_the_users_words():
    with pytest.raises(SpanError, match=r"SlowTokenizer is a slow tokenizer.*'user' cannot"):
        encode(SlowTokenizer(), ["ab"])


def test_a_slow_tokenizer_serves_the_other_spans():
    encoded = encode(SlowTokenizer(), ["ab", "c"], spans=("prompt", "last"))
    assert set(encoded.spans) == {"prompt", "last"}
    assert encoded.input_ids.tolist() == [[97, 98], [0, 99]]


def test_an_unknown_span_is_refused_with_the_known_ones(byte_level):
    with pytest.raises(
        SpanError, match=r"There is no span 'usr'. Spans are 'prompt', 'user', 'last'"
    ):
        encode(byte_level, ["ab"], spans=("usr",))


def test_an_unknown_padding_side_is_refused(byte_level):
    with pytest.raises(ValueError, match="`padding_side` must be 'left' or 'right', got 'up'"):
        encode(byte_level, ["ab"], padding_side="up")


def test_lengths_are_those_of_the_token_ids(byte_level):
    tokenized = tokenize(byte_level, TEXTS)
    assert np.array_equal(tokenized.lengths, [len(ids) for ids in tokenized.token_ids])


def test_texts_that_are_no_prompts_are_read_without_the_chat_template(tokenizer):
    plain = tokenize(tokenizer, TEXTS, chat=False)
    assert plain.token_ids == tuple(tuple(ids) for ids in tokenizer(list(TEXTS))["input_ids"])
    for row, text in enumerate(TEXTS):
        assert words(plain, row, "user").replace(" ", "") == text.replace(" ", "")
        assert not plain.spans["user"][row][0]
