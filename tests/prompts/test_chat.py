"""What the model is given, and where in it the user's words lie."""

import pytest

from moe_interp.errors import PromptError, SpanError
from moe_interp.prompts import render


def placed(tokenizer, text):
    rendered = render(tokenizer, [text])
    start, end = rendered.user_spans[0]
    return rendered.texts[0][start:end]


@pytest.mark.parametrize("text", ["how do i bake bread", "<|user|> user", "s", "a\n\nb"])
def test_the_span_is_the_users_words(byte_level, text):
    assert placed(byte_level, text) == text


def test_the_span_follows_a_template_that_strips(byte_level):
    assert placed(byte_level, "  bake bread \n") == "bake bread"


def test_the_text_is_the_templates_own(byte_level):
    turn = [{"role": "user", "content": "bake"}]
    expected = byte_level.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)
    assert render(byte_level, ["bake"]).texts == (expected,)


def test_without_the_generation_prompt_the_assistant_does_not_begin(byte_level):
    text = render(byte_level, ["bake"], add_generation_prompt=False).texts[0]
    assert text.endswith("<|end|>\n")


@pytest.mark.parametrize(
    "template",
    [
        "A {{ messages[0]['content'] | replace('B', 'o') }} B",
        "{% if 'Bake' in messages[0]['content'] %}!{% endif %}{{ messages[0]['content'] }}",
        "{{ messages[0]['content'] }}{% if 'Bake' in messages[0]['content'] %}!{% endif %}",
        "{{ messages[0]['content'][0] }}: {{ messages[0]['content'] }}",
    ],
)
def test_a_template_that_changes_a_prompt_is_refused(with_template, template):
    with pytest.raises(SpanError, match=r"changes the words of the prompt 'Bake bread'"):
        render(with_template(template), ["Bake bread"])


@pytest.mark.parametrize(
    ("template", "times"),
    [
        ("{{ messages[0]['content'] }} {{ messages[0]['content'] }}", 2),
        ("A {{ messages[0]['content'] | lower }} B", 0),
        ("no words at all", 0),
    ],
)
def test_a_template_without_one_place_for_the_words_is_refused(with_template, template, times):
    with pytest.raises(SpanError, match=rf"a test word came back {times} times"):
        render(with_template(template), ["bake bread"])


def test_a_template_that_changes_words_still_renders_unlocated(with_template):
    rendered = render(
        with_template("A {{ messages[0]['content'] | lower }}"), ["BAKE"], locate_user=False
    )
    assert rendered.texts == ("A bake",)
    assert rendered.user_spans == ()


def test_a_template_that_refuses_is_told_with_its_reason(with_template):
    with pytest.raises(PromptError, match=r"refused the prompt 'bake'.*no users here"):
        render(with_template("{{ raise_exception('no users here') }}"), ["bake"])


def test_without_a_template_the_text_is_given_as_it_is(with_template):
    rendered = render(with_template(None), [" bake "])
    assert rendered.texts == (" bake ",)
    assert rendered.user_spans == ((0, 6),)
