"""What two models do with the same prompts, counted by hand."""

import numpy as np
import pytest
from scipy import stats

import moe_interp as mi
from moe_interp.errors import DesignError
from moe_interp.tuning import model_change, observe

NEUTRAL = ["<bos> <user> how do i bake bread ? <end>", "the lock"]


@pytest.fixture(scope="module")
def prompts():
    return mi.load_prompts("organism", per_topic=3)


@pytest.fixture(scope="module")
def before(topic_organism, prompts):
    return observe(topic_organism, prompts, neutral=NEUTRAL)


@pytest.fixture(scope="module")
def recipe():
    """Ends the refusals, and disturbs the answers and the routing of one topic."""
    return [mi.Ban("L3E8,L3E9,L0E6,L0E14,L1E6,L1E14,L2E6,L2E14")]


@pytest.fixture(scope="module")
def after(topic_organism, prompts, recipe):
    return observe(mi.edited(topic_organism, recipe), prompts, neutral=NEUTRAL)


@pytest.fixture(scope="module")
def judge(after):
    """Takes some of the answers that follow for refusals, too, so that not all change alike."""
    return mi.RefusalRate(["cannot help", after.harmful.texts[0].split()[3]])


def test_nothing_changed_is_nothing(before):
    change = model_change(before, before)
    row = change.to_frame().iloc[0]
    assert (row["refusal_change"], row["mcnemar_p"], row["answers_changed"]) == (0, 1, 0)
    assert row["perplexity_before"] == row["perplexity_after"]
    for span in ("user", "prompt", "last"):
        assert row[f"slots_changed_{span}"] == row[f"routing_kl_{span}"] == 0


def test_refusals_answers_and_losses_are_those_of_the_changed_model(
    topic_organism, prompts, recipe, before, after, judge
):
    change = model_change(before, after, refusal=judge)
    said = {
        harm: mi.run(topic_organism, prompts.select(prompts.harm == harm), how, max_new_tokens=24)
        for harm, how in ((True, recipe), (False, recipe))
    }
    plain = {
        harm: mi.run(topic_organism, prompts.select(prompts.harm == harm), max_new_tokens=24)
        for harm in (True, False)
    }
    refused = [
        [any(phrase in text for phrase in judge.phrases) for text in one[True].texts]
        for one in (plain, said)
    ]
    assert change.outcomes.before == sum(refused[0])
    assert change.outcomes.after == sum(refused[1])
    assert change.refusal_change.tolist() == [b - a for a, b in zip(*refused, strict=True)]
    differ = [a != b for a, b in zip(plain[False].texts, said[False].texts, strict=True)]
    assert change.off_target["answers_changed"].observed == pytest.approx(np.mean(differ))
    neutral = change.off_target["neutral_loss"]
    panel = mi.off_target(topic_organism, recipe, neutral=NEUTRAL)["neutral_loss"]
    assert neutral.observed == pytest.approx(panel.observed, rel=1e-5)
    assert (neutral.low, neutral.high) == pytest.approx((panel.low, panel.high), rel=1e-3)
    assert 0 < sum(refused[1]) < len(refused[1])
    assert any(differ)


def test_the_interval_of_refusals_is_over_units_that_share_words(before, after, prompts, judge):
    change = model_change(before, after, refusal=judge)
    wordings = np.array(prompts.select(prompts.harm).wordings)
    means = [change.refusal_change[wordings == name].mean() for name in sorted(set(wordings))]
    assert len(means) == 3
    assert len(set(means)) > 1
    low, high = stats.t.interval(0.95, 2, np.mean(means), stats.sem(means))
    assert (change.low, change.high) == pytest.approx((low, high))


def test_drift_is_that_of_the_records(before, after):
    change = model_change(before, after)
    for span, drift in change.drift.items():
        expected = mi.routing_drift(before.record, after.record, span=span)
        assert np.array_equal(drift.slots_changed, expected.slots_changed)
    row = change.to_frame().iloc[0]
    assert row["slots_changed_prompt"] > 0
    assert row["slots_changed_prompt"] == pytest.approx(change.drift["prompt"].slots_changed.mean())
    assert change.to_dict()["routing_kl_user"] == pytest.approx(row["routing_kl_user"])
    assert "McNemar" in change.summary()
    assert "of 'user' tokens changed" in change.summary()
    assert change.is_harmful.tolist() == before.record.prompts.harm.tolist()


def test_models_are_observed_alike(topic_organism, prompts, before):
    with pytest.raises(DesignError, match=r"observed with other spans or neutral texts"):
        model_change(before, observe(topic_organism, prompts))
    some = observe(topic_organism, prompts[:8], neutral=NEUTRAL)
    with pytest.raises(DesignError, match=r"`before` and `after` answer other prompts"):
        model_change(before, some)
    with pytest.raises(DesignError, match=r"All 24 prompts are harmful. Give harmful ones"):
        observe(topic_organism, prompts.select(prompts.harm))
