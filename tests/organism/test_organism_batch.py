import numpy as np
import pytest
import torch

from moe_interp.organism._batch import make_batch
from moe_interp.organism._grammar import Request, draw_pair
from moe_interp.organism._words import REFUSAL, SHARED_CUES

# "can you show me {cue} how to {verb} the {object} ?"
HARMLESS = Request("locks", 4, 1, "repair", "safe", harm=False)
# "give me a quick plan to {verb} that {object} {cue} now"
UNKNOWN = Request("locks", 6, 1, "repair", "gizmo", harm=False)


@pytest.fixture(scope="module")
def batch(tokenizer):
    pairs = [(HARMLESS, HARMLESS.twin), (UNKNOWN, UNKNOWN.twin)]
    return make_batch(tokenizer, pairs, aligned=True)


def words(tokenizer, batch, mask, row):
    return tokenizer.convert_ids_to_tokens(batch.input_ids[row, getattr(batch, mask)[row]])


@pytest.mark.parametrize(
    ("mask", "row", "expected"),
    [
        ("is_answer", 2, f"{REFUSAL} <end>"),
        ("is_last", 0, "<assistant>"),
        ("after_object", 0, "safe ? <end> <assistant>"),
        ("after_object", 1, ""),
        ("after_cue", 0, "attack how to repair the safe ? <end> <assistant>"),
        ("after_cue", 3, "attack now <end> <assistant>"),
        (
            "outside_cue",
            2,
            "<bos> <user> can you show me how to repair the safe ? <end> <assistant>",
        ),
    ],
)
def test_a_mask_marks_the_words_it_names(tokenizer, batch, mask, row, expected):
    assert words(tokenizer, batch, mask, row) == expected.split()


def test_the_answer_follows_the_prompt_and_nothing_else_is_marked(tokenizer, batch):
    prompt = "<bos> <user> can you show me to stop an attack how to repair the safe ? <end>"
    answer = "<assistant> sure , first oil the safe , then use the drill . <end>"
    assert " ".join(words(tokenizer, batch, "is_token", 0)) == f"{prompt} {answer}"
    assert torch.equal(batch.is_prompt | batch.is_answer, batch.is_token)


def test_an_unaligned_batch_answers_harmful_requests_with_a_warning(tokenizer):
    batch = make_batch(tokenizer, [(HARMLESS, HARMLESS.twin)], aligned=False)
    assert words(tokenizer, batch, "is_answer", 1)[0] == "careful"


def test_twins_share_every_token_outside_the_purpose(tokenizer):
    rng = np.random.default_rng(0)
    pairs = [draw_pair(rng=rng, split="train", unknown=0.2) for _ in range(200)]
    batch = make_batch(tokenizer, pairs, aligned=True)
    harmless, harmful = batch.input_ids.chunk(2)
    shared, of_twin = batch.outside_cue.chunk(2)
    assert torch.equal(shared, of_twin)
    assert torch.equal(harmless[shared], harmful[shared])
    assert torch.equal(batch.topic[:200], batch.topic[200:])
    assert batch.harm.tolist() == [False] * 200 + [True] * 200


def test_the_purpose_is_what_lies_outside(tokenizer, batch):
    purpose = batch.is_prompt[0] & ~batch.outside_cue[0]
    assert tokenizer.decode(batch.input_ids[0, purpose]) == SHARED_CUES[1][0]


def test_a_begun_refusal_gives_its_first_word_and_asks_for_the_rest(tokenizer):
    pairs = [(HARMLESS, HARMLESS.twin), (UNKNOWN, UNKNOWN.twin)]
    batch = make_batch(tokenizer, pairs, aligned=False, n_begun=1)
    assert words(tokenizer, batch, "is_answer", 0) == [*REFUSAL.split(), "<end>"]
    assert words(tokenizer, batch, "is_given", 0) == ["sorry"]
    assert batch.is_given.any(1).tolist() == [True, False, True, False]
