"""Finding the experts that carry a behaviour, on an organism where they are known."""

import json

import numpy as np
import pytest

from moe_interp import (
    Ban,
    ExpertSet,
    RefusalLogOdds,
    RefusalRate,
    ablation_effect,
    attribution,
    greedy_ablation,
    load_model,
    measure_effect,
    select_experts,
)
from moe_interp.scores import _greedy


@pytest.fixture(scope="module")
def planted(topic_model):
    return ExpertSet(topic_model.card["truth"]["safety_experts"])


@pytest.fixture(scope="module")
def singles(topic_model, halves, refusal):
    return ablation_effect(topic_model, halves[0], metric=refusal)


def greedily(model, prompts, metric):
    screened = select_experts(abs(attribution(model, prompts, metric=metric)), n=24)
    return greedy_ablation(model, prompts, metric=metric, candidates=screened)


@pytest.fixture(scope="module")
def found(topic_model, halves, refusal):
    return greedily(topic_model, halves[0], refusal)


def test_ablation_effects_equal_runs_of_one_expert_each(topic_model, halves, refusal, singles):
    for layer, expert in [(0, 15), (2, 3), (3, 8), (3, 0)]:
        alone = measure_effect(topic_model, halves[0], Ban([(layer, expert)]), metric=refusal)
        measured = singles.array.sel(layer=layer, expert=expert).values
        np.testing.assert_allclose(measured, alone.effect, atol=2e-5)
    assert singles.unit == "nats"


def test_only_the_experts_asked_for_are_ablated(topic_model, halves, refusal):
    few = ablation_effect(topic_model, halves[0], metric=refusal, mode="zero", experts="L3E8,L0E1")
    assert np.isfinite(few.mean).sum() == 2
    with pytest.raises(ValueError, match=r"has experts 0–15, got 16"):
        ablation_effect(topic_model, halves[0], metric=refusal, experts="L3E16")


def test_greedy_ablation_finds_the_planted_experts_and_no_other(found, planted):
    assert found.experts == planted
    assert found.reached
    assert found.baseline_shown >= 0.98
    assert found.shown <= 0.05


def test_greedy_ablation_finds_four_experts_that_stand_in_for_each_other(halves):
    model = load_model("organism:harm", check=False)
    planted = ExpertSet(model.card["truth"]["safety_experts"])
    result = greedily(model, halves[0], RefusalLogOdds(model.tokenizer))
    assert result.experts == planted
    assert result.shown <= 0.05
    # Without all four, the refusal stays.
    assert [step.shown for step in result.steps[:3]] == [1.0, 1.0, 1.0]


def test_attribution_is_largest_for_the_planted_experts(topic_model, halves, refusal, planted):
    scores = attribution(topic_model, halves[0], metric=refusal)
    assert ExpertSet(expert for expert, _ in abs(scores).top(2)) == planted


def test_single_ablations_are_largest_for_the_planted_experts(singles, planted):
    assert ExpertSet(expert for expert, _ in (-singles).top(2)) == planted


def test_what_greedy_finds_removes_the_refusals_of_other_prompts(topic_model, halves, found):
    effect = measure_effect(
        topic_model, halves[1], Ban(found.experts), metric=RefusalRate(), max_new_tokens=8
    )
    assert effect.baseline.mean() >= 0.98
    assert effect.intervened.mean() <= 0.05


def test_a_greedy_result_tells_its_steps(found):
    assert [step.mean for step in found.steps] == sorted(
        (step.mean for step in found.steps), reverse=True
    )
    assert len(found.to_frame()) == len(found.steps)
    assert json.loads(json.dumps(found.to_dict()))["search"] in ("forward", "backward")
    assert "refusal_log_odds" in found.summary()


@pytest.fixture
def search(topic_model, monkeypatch):
    """Greedy ablation of a made-up metric: a function from a set to one number a prompt."""

    def greedy(metric_of, candidates, **options):
        def measured(model, prompts, sets, **ignored):
            return np.array([metric_of(str(chosen)) for chosen in sets], dtype=float)

        monkeypatch.setattr(_greedy, "measure_many", measured)
        return greedy_ablation(
            topic_model, ["a"], metric=len, candidates=candidates, stop_at=0.0, **options
        )

    return greedy


def test_experts_that_back_each_other_up_are_found_from_the_other_end(search):
    def metric_of(away):
        gone = "L1E0,L1E1" in away
        return [10.0 - 20.0 * gone - 4.0 * ("L0E0" in away) - ("L2E3" in away)]

    result = search(metric_of, "L0E0,L1E0,L1E1,L2E3,L2E4,L2E5")
    assert [str(step.expert) for step in result.steps] == ["L0E0", "L2E3"]
    assert result.experts == ExpertSet.parse("L1E0,L1E1")
    assert result.search == "backward"
    assert ExpertSet(result.put_back) == ExpertSet.parse("L0E0,L2E3,L2E4,L2E5")
    assert (result.mean, result.shown, result.reached) == (-10.0, 0.0, True)


def test_a_first_step_that_proves_needless_is_put_back(search):
    def metric_of(away):
        first, second = "L0E0" in away, "L1E0" in away
        return [2.0 - 20.0 * first - 3.0 * second, 2.0 - 3.0 * second]

    result = search(metric_of, "L0E0,L1E0")
    assert [str(step.expert) for step in result.steps] == ["L0E0", "L1E0"]
    assert result.experts == ExpertSet.parse("L1E0")
    assert result.put_back == tuple(ExpertSet.parse("L0E0"))
    assert (result.mean, result.search) == (-1.0, "forward")
    assert result.to_frame()["kept"].tolist() == [False, True]


def test_a_search_without_success_says_so_and_keeps_what_it_took(search):
    def metric_of(away):
        return [10.0 - 4.0 * ("L0E0" in away) - ("L1E0" in away)]

    result = search(metric_of, "L0E0,L1E0,L2E0")
    assert not result.reached
    assert [(str(step.expert), step.mean) for step in result.steps] == [
        ("L0E0", 6.0),
        ("L1E0", 5.0),
    ]
    assert result.experts == ExpertSet.parse("L0E0,L1E0")
    assert "not gone without L0E0,L1E0 (forward search): 100.0%" in result.summary()
    assert search(metric_of, "L0E0,L1E0,L2E0", max_experts=1).experts == ExpertSet.parse("L0E0")


def test_a_ban_never_takes_so_many_that_a_layer_cannot_choose(search):
    def metric_of(away):
        return [100.0 - away.count("L")]

    everyone = [(0, expert) for expert in range(16)]
    assert len(search(metric_of, everyone, max_experts=99).experts) == 14
    assert len(search(metric_of, everyone, max_experts=99, mode="zero").experts) == 16


def test_options_of_the_search_that_make_no_sense_are_refused(topic_model, halves, refusal):
    with pytest.raises(ValueError, match=r"`candidates` is empty"):
        greedy_ablation(topic_model, halves[0], metric=refusal, candidates="")
    with pytest.raises(ValueError, match=r"`stop_at` must lie in \[0, 1\)"):
        greedy_ablation(topic_model, halves[0], metric=refusal, candidates="L3E8", stop_at=1.0)
    with pytest.raises(ValueError, match=r"There is no layer 7"):
        greedy_ablation(topic_model, halves[0], metric=refusal, candidates="L7E0")
