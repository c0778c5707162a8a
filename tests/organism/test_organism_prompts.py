from collections import Counter

import numpy as np
import pytest

from moe_interp.errors import DesignError
from moe_interp.organism import factorial_prompts
from moe_interp.organism._grammar import Request, held_out_templates, topic_cues
from moe_interp.organism._words import TOPICS
from moe_interp.prompts import load_prompts


def test_every_topic_meets_every_shared_purpose_and_intent_equally_often():
    prompts = factorial_prompts(per_topic=32)
    cells = Counter((p.topic, p.wording, p.harm) for p in prompts)
    assert len(prompts) == 8 * 32 * 2
    assert len(cells) == 8 * 16 * 2
    assert set(cells.values()) == {2}


def test_fewer_pairs_than_purposes_use_the_same_purposes_in_every_topic():
    prompts = factorial_prompts(per_topic=3)
    wordings = {topic: Counter() for topic in TOPICS}
    for prompt in prompts:
        wordings[prompt.topic][prompt.wording] += 1
    assert len(wordings["locks"]) == 3
    assert len({tuple(sorted(counts.items())) for counts in wordings.values()}) == 1


def test_pairs_are_complete_and_of_equal_length():
    prompts = factorial_prompts(per_topic=16)
    assert not prompts.unpaired
    for harmless, harmful in zip(prompts[::2], prompts[1::2], strict=True):
        assert (harmless.harm, harmful.harm) == (False, True)
        assert (harmless.pair, harmless.wording) == (harmful.pair, harmful.wording)
        assert len(harmless.text.split()) == len(harmful.text.split())


def test_the_same_seed_gives_the_same_prompts_and_another_seed_others():
    assert factorial_prompts(8, seed=1).digest == factorial_prompts(8, seed=1).digest
    assert factorial_prompts(8, seed=1).digest != factorial_prompts(8, seed=2).digest


@pytest.mark.parametrize("cues", ["shared", "all"])
def test_the_test_split_holds_nothing_but_held_out_cells(cues):
    held_out = {
        Request(topic, template, cue, verb, thing, harm=harm).text
        for topic in TOPICS
        for cue in range(len(topic_cues(topic)))
        for template in held_out_templates(topic, cue)
        for verb in TOPICS[topic].verbs
        for thing in TOPICS[topic].objects
        for harm in (False, True)
    }
    assert held_out.issuperset(factorial_prompts(36, split="test", cues=cues).texts)
    assert held_out.isdisjoint(factorial_prompts(36, split="train", cues=cues).texts)


def test_all_cues_add_the_purposes_of_each_topic():
    wordings = factorial_prompts(18, cues="all").wordings
    assert len(set(wordings)) == 16 + 2 * 8


def test_the_set_is_built_in_under_the_name_organism():
    assert load_prompts("organism", per_topic=4).digest == factorial_prompts(4).digest


def test_asking_for_no_prompts_is_an_error():
    with pytest.raises(ValueError, match="`per_topic` must be at least 1, got 0"):
        factorial_prompts(0)


def test_no_pair_occurs_twice_and_asking_for_more_than_there_are_is_an_error():
    assert len(set(factorial_prompts(768, split="test").texts)) == 768 * 8 * 2
    with pytest.raises(DesignError, match=r"more than the 768 different pairs .* 'test'"):
        factorial_prompts(769, split="test")


def test_harm_is_known_by_no_single_word_of_the_frame():
    prompts = factorial_prompts(32)
    counts = Counter(text.split()[-1] for text in np.array(prompts.texts)[prompts.harm])
    twins = Counter(text.split()[-1] for text in np.array(prompts.texts)[~prompts.harm])
    frames = {word for word in counts if word in {".", "?", "now"}}
    assert frames
    assert all(counts[word] == twins[word] for word in frames)
