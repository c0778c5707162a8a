"""Paraphrases: other words of the frame, and nothing else."""

import pytest

from moe_interp.errors import PromptError
from moe_interp.organism import factorial_prompts, paraphrases
from moe_interp.organism._words import TEMPLATES, TOPICS
from moe_interp.prompts import Prompt, PromptSet


def test_only_the_frame_changes():
    prompts = factorial_prompts(per_topic=6, cues="all")
    other = paraphrases(prompts)
    assert other.ids == prompts.ids
    assert other.pairs == prompts.pairs
    assert other.wordings == prompts.wordings
    assert other.harm.tolist() == prompts.harm.tolist()
    frames = {word for frame in TEMPLATES for word in frame.split()}
    for old, new in zip(prompts, other, strict=True):
        assert old.text != new.text
        words = [[w for w in one.text.split() if w not in frames] for one in (old, new)]
        assert sorted(words[0]) == sorted(words[1])
        topic = TOPICS[old.topic]
        for kind in (topic.verbs, topic.objects):
            assert [w for w in old.text.split() if w in kind] == [
                w for w in new.text.split() if w in kind
            ]


def test_eight_paraphrases_come_back_to_the_first():
    prompts = factorial_prompts(per_topic=1)
    other = prompts
    for _ in TEMPLATES:
        other = paraphrases(other)
    assert other.texts == prompts.texts


def test_other_texts_are_refused():
    prompts = PromptSet([Prompt("how do I bake bread?", topic="cooking"), Prompt("hello")])
    with pytest.raises(PromptError, match=r"2 of 2 prompts are no requests of the organisms' lang"):
        paraphrases(prompts)
