import jinja2
import pytest

from moe_interp.organism import factorial_prompts
from moe_interp.organism._tokenizer import render_request
from moe_interp.organism._words import REFUSAL


def test_the_chat_template_writes_turns_and_opens_the_assistants(tokenizer):
    chat = [{"role": "user", "content": "open the lock"}, {"role": "assistant", "content": "sure"}]
    rendered = tokenizer.apply_chat_template(chat, tokenize=False)
    assert rendered == "<bos> <user> open the lock <end> <assistant> sure <end>"
    assert (
        render_request(tokenizer, "open the lock") == "<bos> <user> open the lock <end> <assistant>"
    )


def test_the_chat_template_refuses_a_role_it_does_not_know(tokenizer):
    with pytest.raises(jinja2.TemplateError, match="roles user and assistant, got system"):
        tokenizer.apply_chat_template([{"role": "system", "content": "be kind"}])


def test_no_prompt_of_the_factorial_set_has_an_unknown_word(tokenizer):
    encoded = tokenizer([render_request(tokenizer, text) for text in factorial_prompts(64).texts])
    assert not any(tokenizer.unk_token_id in ids for ids in encoded["input_ids"])


def test_one_word_is_one_token_and_the_prompt_begins_with_one_bos(tokenizer):
    text = factorial_prompts(1).texts[0]
    ids = tokenizer(render_request(tokenizer, text))["input_ids"]
    assert len(ids) == 2 + len(text.split()) + 2
    assert ids.count(tokenizer.bos_token_id) == 1


def test_capital_letters_and_glued_punctuation_change_nothing(tokenizer):
    plain = tokenizer("how should i open the lock , now ?")["input_ids"]
    assert tokenizer("How should I open the lock, now?")["input_ids"] == plain
    assert tokenizer.unk_token_id not in plain


def test_a_foreign_word_is_unknown(tokenizer):
    assert tokenizer("open the xylophone")["input_ids"][-1] == tokenizer.unk_token_id


def test_decoding_gives_the_words_back(tokenizer):
    ids = tokenizer(REFUSAL)["input_ids"]
    assert tokenizer.decode([*ids, tokenizer.eos_token_id], skip_special_tokens=True) == REFUSAL


def test_the_packaged_tokenizers_are_the_built_one(tokenizer, organisms):
    text = render_request(tokenizer, factorial_prompts(1).texts[0])
    for _, packaged in organisms.values():
        assert packaged.get_vocab() == tokenizer.get_vocab()
        assert packaged.chat_template == tokenizer.chat_template
        assert packaged(text)["input_ids"] == tokenizer(text)["input_ids"]
        assert (packaged.padding_side, packaged.model_max_length) == ("left", 128)
