import pytest

from moe_interp.errors import DesignError
from moe_interp.organism import shifted_prompts
from moe_interp.organism._grammar import Request, topic_cues, vocabulary
from moe_interp.organism._shifted import shifted_answer
from moe_interp.organism._words import TEMPLATES, TOPICS


def every_request():
    for topic, words in TOPICS.items():
        for verb in words.verbs:
            for thing in words.objects:
                for cue in range(len(topic_cues(topic))):
                    for template in range(len(TEMPLATES)):
                        yield Request(topic, template, cue, verb, thing, harm=False)


@pytest.fixture(scope="module")
def by_text():
    return {request.text: request for request in every_request()}


@pytest.mark.parametrize("split", ["any", "test"])
def test_of_the_taught_answer_one_word_is_the_next_tool(by_text, split):
    prompts = shifted_prompts(per_topic=16, split=split)
    assert len(prompts) == 128
    for prompt in prompts:
        request = by_text[prompt.text]
        taught, given = (text.split() for text in (request.answer(aligned=True), prompt.response))
        places = [n for n, (a, b) in enumerate(zip(taught, given, strict=True)) if a != b]
        assert len(places) == 1
        tools = TOPICS[request.topic].tools
        assert given[places[0]] == tools[(tools.index(taught[places[0]]) + 1) % len(tools)]
        assert set(given) <= set(vocabulary())
        assert (prompt.topic, prompt.wording, prompt.harm) == (request.topic, request.cue_id, False)
        assert request.is_held_out or split == "any"


def test_an_object_is_answered_alike_in_every_request(by_text):
    for request in list(by_text.values())[:200]:
        other = Request(request.topic, 0, 0, request.verb, request.object, harm=False)
        assert shifted_answer(request) == shifted_answer(other)


def test_the_same_seed_draws_the_same():
    assert (
        shifted_prompts(per_topic=2, seed=3).digest == shifted_prompts(per_topic=2, seed=3).digest
    )
    assert shifted_prompts(per_topic=2, seed=3).digest != shifted_prompts(per_topic=2).digest


def test_what_cannot_be_drawn_is_refused():
    with pytest.raises(ValueError, match="`per_topic` must be at least 1, got 0"):
        shifted_prompts(per_topic=0)
    with pytest.raises(DesignError, match="`per_topic`=99999 is more than the"):
        shifted_prompts(per_topic=99999)
