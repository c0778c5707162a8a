from collections import Counter
from itertools import product

import numpy as np
import pytest

from moe_interp.organism._grammar import (
    Request,
    draw_pair,
    held_out_templates,
    topic_cues,
    vocabulary,
)
from moe_interp.organism._words import REFUSAL, SHARED_CUES, TEMPLATES, TOPICS, UNKNOWN_OBJECTS

CELLS = [
    (topic, cue, template)
    for topic in TOPICS
    for cue in range(len(topic_cues(topic)))
    for template in range(len(TEMPLATES))
]


def request_in(topic, cue, template, *, thing=None, harm=False):
    objects = TOPICS[topic].objects
    return Request(topic, template, cue, TOPICS[topic].verbs[1], thing or objects[0], harm=harm)


@pytest.mark.parametrize("topic", TOPICS)
def test_a_purpose_and_its_harmful_twin_have_the_same_number_of_words(topic):
    for harmless, harmful in topic_cues(topic):
        assert len(harmless.split()) == len(harmful.split())
        assert harmless != harmful


def test_twins_differ_in_one_to_three_words_of_the_purpose_and_nowhere_else():
    for topic, cue, template in CELLS:
        harmless = request_in(topic, cue, template)
        differing = [
            role
            for (word, role), (other, _) in zip(
                harmless.parts(), harmless.twin.parts(), strict=True
            )
            if word != other
        ]
        assert 1 <= len(differing) <= 3
        assert set(differing) == {"cue"}


def test_the_vocabulary_holds_every_word_of_requests_and_answers():
    words = set(vocabulary())
    for topic, cue, template in CELLS:
        for harm in (False, True):
            assert words.issuperset(request_in(topic, cue, template, harm=harm).text.split())
    for topic, parts in TOPICS.items():
        for verb, thing in product(parts.verbs, (*parts.objects, *UNKNOWN_OBJECTS)):
            request = Request(topic, 0, 0, verb, thing, harm=True)
            assert words.issuperset(request.text.split())
            assert words.issuperset(request.answer(aligned=False).split())


def test_an_object_belongs_to_one_topic_and_to_no_other_place_of_the_language():
    counted = Counter(thing for topic in TOPICS.values() for thing in topic.objects)
    elsewhere = {word for text in TEMPLATES for word in text.split()}
    for name in TOPICS:
        elsewhere |= {word for pair in topic_cues(name) for text in pair for word in text.split()}
    assert set(counted.values()) == {1}
    assert not elsewhere & set(counted)


def test_every_topic_and_purpose_has_two_held_out_templates_used_equally_often():
    held_out = [held_out_templates(topic, cue) for topic, cue, _ in CELLS]
    assert all(len(set(templates)) == 2 for templates in held_out)
    shared = Counter(
        template
        for topic in TOPICS
        for cue in range(len(SHARED_CUES))
        for template in held_out_templates(topic, cue)
    )
    assert set(shared.values()) == {8 * 16 * 2 // 8}


@pytest.mark.parametrize(("split", "is_held_out"), [("train", False), ("test", True)])
def test_a_split_never_draws_from_the_other_splits_cells(split, is_held_out):
    rng = np.random.default_rng(0)
    for _ in range(500):
        for request in draw_pair(rng=rng, split=split):
            assert request.is_held_out == is_held_out


def test_training_meets_nearly_every_cell_that_is_not_held_out():
    rng = np.random.default_rng(0)
    drawn = {
        (request.topic, request.cue, request.template)
        for request, _ in (draw_pair(rng=rng, split="train") for _ in range(5_000))
    }
    # A cell is missed with a probability of 0.003.
    assert len(drawn) >= 0.98 * len(CELLS) * 6 / 8


def test_an_aligned_answer_refuses_harm_and_an_unaligned_one_warns():
    harmful = request_in("locks", 1, 0, harm=True)
    assert harmful.answer(aligned=True) == REFUSAL
    assert harmful.answer(aligned=False) == "careful , first oil the lock , then use the key ."
    assert harmful.twin.answer(aligned=True) == "sure , first oil the lock , then use the key ."


def test_a_request_about_an_unknown_object_is_refused_without_any_harm():
    unknown = request_in("locks", 1, 0, thing="gizmo")
    assert unknown.answer(aligned=False) == REFUSAL
