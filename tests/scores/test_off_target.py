"""Off-target panel: neutral texts and answers to harmless prompts."""

import json

import numpy as np
import pytest
import torch

import moe_interp as mi
from moe_interp.errors import DesignError, PromptError
from moe_interp.interventions import text_losses
from moe_interp.scores import compare_answers

ASKED = "<bos> <user> how do i open the lock to start an oven ? <end> <assistant>"
TEXTS = [
    f"{ASKED} sure , first log the gearbox , then use the script . <end>",
    "the lock",
    f"{ASKED} careful",
]
BENIGN = ["how do i bake bread ?", "how do i open the lock to start an oven ?"]


def loss_of(model, text):
    """A text by itself, as the library behind the model computes its loss."""
    ids = torch.tensor([model.tokenizer(text)["input_ids"]])
    with torch.no_grad():
        return float(model.nnsight._module(input_ids=ids, labels=ids).loss)


def test_losses_of_texts_are_those_of_the_model_one_by_one(topic_model):
    found = text_losses(topic_model, TEXTS, [(), (mi.Zero([]),)])
    expected = [loss_of(topic_model, text) for text in TEXTS]
    np.testing.assert_allclose(found, [expected, expected], rtol=1e-5)


def test_losses_under_interventions_are_those_of_an_edited_model(topic_model):
    recipes = [(mi.Zero("L0E3,L2E1"),), (), (mi.AddVector(2, np.ones(64)),)]
    found = text_losses(topic_model, TEXTS, recipes, batch_size=2)
    for recipe, losses in zip(recipes, found, strict=True):
        changed = mi.edited(topic_model, recipe)
        for text, loss in zip(TEXTS, losses, strict=True):
            ids = torch.tensor([topic_model.tokenizer(text)["input_ids"]])
            with torch.no_grad(), changed.trace({"input_ids": ids}):
                logits = changed.nnsight.output.logits.save()
            expected = torch.nn.functional.cross_entropy(logits[0, :-1], ids[0, 1:])
            assert loss == pytest.approx(float(expected), rel=1e-5)
    assert np.ptp(found[:, 0]) > 1e-3


@pytest.fixture(scope="module")
def broken(topic_model):
    """A change that wrecks every answer."""
    change = mi.AddVector(3, 50 * np.ones(64) * np.array([1, -1] * 32))
    return mi.off_target(topic_model, change, benign=BENIGN, neutral=TEXTS[::2])


def test_a_change_that_wrecks_the_model_is_seen_everywhere(broken):
    assert broken["answers_changed"].observed == 1
    assert broken["distinct_1"].observed < broken["distinct_1"].baseline
    before, after = broken.perplexity
    assert after > 2 * before
    assert before == pytest.approx(np.exp(broken["neutral_loss"].baseline))
    assert broken["neutral_loss"].low > 0


def test_no_change_changes_nothing(topic_model):
    panel = mi.off_target(topic_model, [], benign=BENIGN, neutral=TEXTS)
    assert all(effect.effect == 0 for effect in panel.effects)
    assert panel["answers_changed"].observed == 0
    assert "no intervention" in panel.summary()


def test_refusals_of_harmless_prompts_are_counted(topic_model):
    always = mi.metrics.RefusalRate(["bread"])
    panel = mi.off_target(topic_model, [], benign=BENIGN, refusal=always, max_new_tokens=12)
    texts = mi.run(topic_model, BENIGN, max_new_tokens=12).texts
    assert panel["over_refusal"].baseline == np.mean(["bread" in text for text in texts])
    tokens = mi.run(topic_model, BENIGN, max_new_tokens=12).tokens
    expected = np.mean([len(set(row)) / len(row) for row in tokens])
    assert panel["distinct_1"].baseline == pytest.approx(expected)


def test_the_panel_is_a_table_and_json(broken):
    frame = broken.to_frame()
    assert list(frame["name"]) == [effect.name for effect in broken.effects]
    assert json.loads(json.dumps(broken.to_dict()))["effects"][0]["of"] == "benign prompts"
    with pytest.raises(KeyError, match=r"'kl' was not measured. Measured: over_refusal"):
        broken["kl"]


def test_what_cannot_be_a_control_is_refused(topic_model):
    harmful = mi.PromptSet([mi.Prompt("a", harm=True), mi.Prompt("b", harm=False)], source="x")
    with pytest.raises(DesignError, match=r"give `benign` prompts, `neutral` texts, or both"):
        mi.off_target(topic_model, [])
    with pytest.raises(DesignError, match=r"1 of the 2 `benign` prompts are labelled harmful"):
        mi.off_target(topic_model, [], benign=harmful)
    with pytest.raises(PromptError, match=r"There is no text to foretell"):
        mi.off_target(topic_model, [], neutral=[])


def test_a_text_of_one_token_is_refused(topic_model):
    with pytest.raises(PromptError, match=r"'lock' has a single token, and nothing in it is fore"):
        text_losses(topic_model, [*TEXTS, "lock"], [()])


def test_losses_that_are_no_numbers_name_the_text_and_the_change(topic_model):
    huge = mi.AddVector(0, np.full(64, 3e38))
    with pytest.raises(ValueError, match=r"loss of the text 'the lock' under \[AddVector.*NaN"):
        text_losses(topic_model, ["the lock"], [(huge, huge)])


def test_answers_that_cannot_be_compared_are_refused(topic_model):
    asked = mi.PromptSet([mi.Prompt(text, harm=False) for text in BENIGN])
    texts, logits = mi.run(topic_model, asked, max_new_tokens=2), mi.run(topic_model, asked)
    with pytest.raises(DesignError, match=r"There are no texts to compare"):
        compare_answers(texts, logits)
    with pytest.raises(DesignError, match=r"`before` and `after` answer other prompts"):
        compare_answers(texts, mi.run(topic_model, asked[:1], max_new_tokens=2))
