import numpy as np
import pytest
from study_arms import ends_refusal

import moe_interp as mi
from moe_interp.experts import Expert, ExpertSet
from moe_interp.scores import Scores
from moe_interp.studies._steermoe2025 import _at_most, _interval, _signed, _steerings

pytestmark = [pytest.mark.long, pytest.mark.xdist_group("study-steermoe")]

NAME = "steermoe2025"


def test_on_harm_the_planted_experts_have_the_largest_differences(study):
    found = study(NAME, "harm")
    assert sorted(found.numbers["rank_of_truth"]["ranks"]) == [1, 2, 3, 4]
    assert found.numbers["rank_of_truth"]["p_value"] < 0.02
    assert ends_refusal(found.arm("deactivate_positive"))


@pytest.mark.parametrize("which", ["few", "all"])
def test_on_topic_the_ranking_does_no_better_than_chance(study, organism, which):
    """All: the prompts that the command takes. Their planted experts rank high, as like ones do."""
    if which == "few":
        found = study(NAME, "topic")
    else:
        found = mi.studies.steermoe2025(
            organism("topic"),
            mi.load_prompts("organism"),
            rng=np.random.default_rng(0),
            n_null=19,
        )
    assert found.numbers["rank_of_truth"]["p_value"] > 0.05
    for arm in found.arms:
        # Steering of some random experts of like use ends refusals, so it may end them here too.
        assert arm.null.observed == 1 or which == "all"
        assert arm.null.p_value > 0.05


def test_random_experts_steered_alike_tell_what_any_steering_does(study):
    """All that is steered to the top ends refusals in `harm`: the null says so, p alone would."""
    both = study(NAME, "harm").arm("both")
    assert both.null.observed < 0.5
    assert both.null.p_value > 0.05


def test_the_risk_difference_pools_tokens(study, organism, prompts):
    first, _ = prompts.split(rng=np.random.default_rng(0))
    record = mi.record_routing(
        organism("harm"), first, spans=("user",), n_random_routers=0, progress=False
    )
    inside, index = record.inside("user"), record.dataset["expert_index"].values
    owner = record.dataset["prompt_index"].values
    table = study(NAME, "harm").to_frame()
    for layer, expert in ((3, 15), (2, 12), (0, 8)):
        share = {}
        for level in (True, False):
            chosen = total = 0
            for token in np.flatnonzero(inside):
                if first.harm[owner[token]] == level:
                    chosen += int(expert in index[token, layer])
                    total += 1
            share[level] = chosen / total
        line = table[(table["layer"] == layer) & (table["expert"] == expert)]
        assert line["risk_difference"].item() == pytest.approx(share[True] - share[False])


def test_intervals_hold_the_difference_and_leave_0_where_it_is_large(study):
    table = study(NAME, "harm").to_frame()
    assert (table["low"] <= table["risk_difference"] + 1e-9).all()
    assert (table["high"] >= table["risk_difference"] - 1e-9).all()
    planted = table[(table["layer"] >= 2) & (table["expert"] >= 14)]
    assert (planted["low"] > 0.2).all()


@pytest.mark.parametrize("seed", range(3))
def test_steering_selects_what_the_papers_rule_selects_on_a_hand_made_router(organism, seed):
    """log-softmax, then max + 0.01 and min - 0.01, then top-k: written out token by token."""
    model = organism("null")
    logits = np.random.default_rng(seed).normal(size=16)
    on, off = [3, 5], [0, int(logits.argmax())]
    assert _under(model, logits, []) == set(np.argsort(-logits)[:2].tolist())

    steered = _under(model, logits, [mi.Steer(ExpertSet([(1, e) for e in on]), margin="max")])
    score = logits - np.log(np.exp(logits).sum())
    score[on] = score.max() + 0.01
    assert steered == set(np.argsort(-score)[:2].tolist()) == set(on)

    steered = _under(model, logits, [mi.Steer(ExpertSet([(1, e) for e in off]), margin="min")])
    score = logits - np.log(np.exp(logits).sum())
    score[off] = score.min() - 0.01
    assert steered == set(np.argsort(-score)[:2].tolist())
    assert not steered & set(off)


def _under(model, logits, recipe):
    """The experts that layer 1 chooses, with these logits given and the recipe on top."""
    given = mi.Steer({1: (logits - _last(model, "router_logits")).tolist()})
    chosen = _last(mi.edited(model, [given, *recipe]), "expert_index")
    return set(chosen.tolist())


def _last(model, quantity):
    """What layer 1 has at the last token."""
    record = mi.record_routing(
        model, ["how do i open the lock ?"], spans=("last",), n_random_routers=0, progress=False
    )
    return record.dataset[quantity].sel(layer=1).values[record.inside("last")][0]


def test_no_more_experts_are_activated_than_a_layer_can_choose():
    ranking = [Expert(0, 1), Expert(0, 2), Expert(0, 3), Expert(1, 0)]
    assert str(_at_most(ranking, 4, 2)) == "L0E1,L0E2,L1E0"
    made = _steerings(ranking, [], 3, 2, 2)
    assert set(made) == {"deactivate_positive", "activate_positive"}
    assert str(made["deactivate_positive"][0].named_experts) == "L0E1,L0E2"


def test_only_a_difference_of_the_sign_counts():
    scores = Scores.of_array("rd", "unit", np.array([[0.1, -0.2, 0.0, 0.3, 1e-15]]), layers=(2,))
    assert [str(one) for one in _signed(scores, 1)] == ["L2E3", "L2E0"]
    assert [str(one) for one in _signed(scores, -1)] == ["L2E1"]


def test_both_steers_both():
    made = _steerings([Expert(0, 1)], [Expert(0, 2)], 1, 1, 2)
    on, off = made["both"]
    assert (str(on.named_experts), on.margin) == ("L0E2", "max")
    assert (str(off.named_experts), off.margin) == ("L0E1", "min")
    assert made["deactivate_positive"] == [off]
    assert made["activate_negative"] == [on]


def test_prompts_of_one_wording_do_not_narrow_the_interval(prompts):
    """What is drawn again are wordings: the same prompt twice in one says nothing new."""
    twice = mi.PromptSet(
        [mi.Prompt(p.text, harm=p.harm, wording=p.wording, topic=p.topic) for p in prompts] * 2
    )
    rng = np.random.default_rng(1)
    frequency, tokens = rng.random((len(prompts), 5)), rng.integers(5, 12, len(prompts)) * 1.0
    once = _interval(frequency, tokens, prompts, 50, np.random.default_rng(0))
    again = _interval(
        np.tile(frequency, (2, 1)), np.tile(tokens, 2), twice, 50, np.random.default_rng(0)
    )
    np.testing.assert_allclose(again, once)
