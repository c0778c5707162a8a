"""Matched nulls: random counterparts of any change, and what the change does elsewhere."""

import json
import re
from collections import Counter

import numpy as np
import pytest
from scipy.stats import binomtest

import moe_interp as mi
from moe_interp import Ban, ExpertSet, matched_null, measure_effect
from moe_interp.errors import DesignError
from moe_interp.experts import Expert
from moe_interp.scores import Scores
from moe_interp.scores._matching import Draw, draw_counterparts, null_p_value


@pytest.fixture(scope="module")
def planted(topic_model):
    return ExpertSet(topic_model.card["truth"]["safety_experts"])


@pytest.fixture(scope="module")
def null(topic_model, halves, refusal, use, planted):
    return matched_null(
        topic_model,
        halves[1],
        planted,
        metric=refusal,
        match=use,
        rng=np.random.default_rng(0),
    )


def test_the_planted_experts_stand_out_from_random_ones_of_like_use(null, planted):
    assert null.baseline > 0
    assert null.observed < 0
    assert null.null.min() > 0
    assert null.p_value <= 0.05
    assert null.experts == planted


def test_random_sets_have_the_layers_and_the_size_and_none_of_the_experts(null, planted):
    for drawn in null.sets:
        assert {layer: len(ids) for layer, ids in drawn.by_layer().items()} == {3: 2}
        assert not drawn & planted
    assert null.n_distinct == len(set(null.sets)) > 10
    assert len(null.null) == 100


def test_the_p_value_counts_different_sets_where_they_are_fewer_than_draws(null):
    assert null.n_distinct < 100
    assert null.p_value == pytest.approx(1 / (1 + null.n_distinct))


def test_the_null_of_each_set_is_its_own_run(topic_model, halves, refusal, null):
    for drawn, value in [(null.sets[0], null.null[0]), (null.sets[57], null.null[57])]:
        alone = measure_effect(topic_model, halves[1], Ban(drawn), metric=refusal)
        assert value == pytest.approx(alone.intervened.mean(), abs=2e-5)
    assert json.loads(json.dumps(null.to_dict()))["n_distinct"] == null.n_distinct
    assert len(null.to_frame()) == 100
    assert re.search(r"L3E8,L3E9.*100 random sets", null.summary(), re.DOTALL)


def test_the_p_value_is_that_of_effects_as_they_are_or_scaled_to_the_use_whichever_is_larger():
    """Four sets: one reaches as it is, two reach if they were used as much, one is never used."""
    draws = [Draw((), ExpertSet([(0, i)]), i) for i in range(4)]
    null, null_use = np.array([-2.0, 0.6, 0.4, 0.0]), np.array([[0.8], [0.2], [0.1], [0.0]])
    use = np.array([0.4])

    def p(effect, **given):
        return null_p_value(effect, null, draws, **given)

    assert p(1.0) == 2 / 5
    assert p(-1.0, use=use, null_use=null_use) == 4 / 5
    # Scaled they are 1.0, 1.2, 1.6 and 0: the count of those as they are is the larger one here.
    assert p(1.7, use=use, null_use=null_use) == 2 / 5
    two = {"use": np.array([0.4, 0.4]), "null_use": np.hstack([null_use, null_use + 1])}
    assert p(-1.0, **two) == 4 / 5
    # A vector has no use.
    assert p(1.0, use=np.array([np.nan]), null_use=np.full((4, 1), np.nan)) == 2 / 5


@pytest.mark.parametrize(("experts", "most"), [("L0E1,L0E2", 0.05), ("L0E1,L0E2,L1E3,L1E4", 0.1)])
def test_most_used_experts_do_not_stand_out_where_effects_only_grow_with_use(experts, most):
    """Calibration: of the most used experts of a layer there are none that are used as much.

    Of several in two layers of 16 few others are like any; there 0.05 comes up in a tenth of cases.
    """
    n = 250
    rng, chosen = np.random.default_rng(11), ExpertSet.parse(experts)
    plain, given = [], []
    for _ in range(n):
        use = rng.gamma(1.0, 0.12, size=(2, 16)) + 0.002
        for layer, ids in chosen.by_layer().items():
            order = [*ids, *(one for one in range(16) if one not in ids)]
            use[layer, order] = -np.sort(-use[layer])
        effects = rng.normal(size=use.shape) * use
        match = [Scores.of_array("use", "fraction", use, layers=(0, 1))]
        draws = draw_counterparts([Ban(chosen)], match, 60, rng)

        def of(some, values):
            return sum(values[one.layer, one.expert] for one in some) / len(some)

        null = np.array([of(draw.experts, effects) for draw in draws])
        null_use = np.array([[of(draw.experts, use)] for draw in draws])
        own = np.array([of(chosen, use)])
        plain.append(null_p_value(of(chosen, effects), null, draws))
        given.append(null_p_value(of(chosen, effects), null, draws, use=own, null_use=null_use))
    assert np.mean(np.array(plain) <= 0.05) > 0.2
    hits = int((np.array(given) <= 0.05).sum())
    assert binomtest(hits, n, most, alternative="greater").pvalue > 0.01


def test_experts_that_are_used_more_than_any_other_need_more_of_an_effect(
    topic_model, organism_prompts, halves, refusal
):
    """The p-values count the effects of the same sets, scaled to the use that was told."""
    frequency = np.full((4, 16), 0.1)
    frequency[1, [6, 14]] = 0.8
    found = matched_null(
        topic_model,
        halves[1],
        "L1E6,L1E14",
        metric=refusal,
        match=Scores.of_array("use", "fraction", frequency, layers=(0, 1, 2, 3)),
        benign=organism_prompts.select(~organism_prompts.harm).select(range(8)),
        rng=np.random.default_rng(0),
    )

    def expected(effect, null, scale):
        reaches = scale * np.abs(null) >= abs(effect)
        distinct = dict(zip(found.sets, reaches, strict=True))
        by_distinct = (1 + sum(distinct.values())) / (1 + len(distinct))
        return max((1 + reaches.sum()) / 101, by_distinct)

    for p, effect, null in [
        (found.p_value, found.effect, found.null - found.baseline),
        (found.specificity.p_value, found.specificity.observed, found.specificity.null),
    ]:
        assert expected(effect, null, 1) < expected(effect, null, 8)
        assert p == pytest.approx(expected(effect, null, 8))


def test_experts_used_alike_are_drawn_most(topic_model, halves, refusal):
    frequency = np.full((4, 16), 0.001)
    frequency[1, :4] = [0.4, 0.38, 0.2, 0.1]
    use = Scores.of_array("use", "fraction", frequency, layers=(0, 1, 2, 3))
    rng = np.random.default_rng(1)
    null = matched_null(
        topic_model, halves[1].select([0]), "L1E0", metric=refusal, match=use, rng=rng
    )
    drawn = [next(iter(chosen)).expert for chosen in null.sets]
    counts = [drawn.count(expert) for expert in range(4)]
    # The kernel gives odds of 1.00 : 0.61 : 0.14 for use that is 0.95, 0.5 and 0.25 times as high.
    assert counts[0] == 0
    np.testing.assert_allclose(counts[1:], [57, 35, 8], atol=16)
    assert sum(counts) == 100
    assert null.match()["use"]["experts"] == pytest.approx(0.4)
    assert null.match()["use"]["random"] == pytest.approx(0.3, abs=0.04)


def test_experts_that_do_nothing_do_not_stand_out(topic_model, halves, refusal, use):
    idle = [int(expert) for expert in np.argsort(use.of_layer(3))[:2]]
    null = matched_null(
        topic_model,
        halves[1],
        [(3, expert) for expert in idle],
        metric=refusal,
        match=use,
        rng=np.random.default_rng(0),
        n_draws=20,
    )
    assert null.p_value > 0.3


def test_a_null_that_cannot_be_drawn_is_refused(topic_model, halves, refusal, use):
    rng = np.random.default_rng(0)
    prompts = halves[1]
    with pytest.raises(ValueError, match=r"`experts` is empty"):
        matched_null(topic_model, prompts, "", metric=refusal, match=use, rng=rng)
    with pytest.raises(ValueError, match=r"`n_draws` must be at least 19, got 5"):
        matched_null(topic_model, prompts, "L3E8", metric=refusal, match=use, rng=rng, n_draws=5)
    many = [(3, expert) for expert in range(9)]
    with pytest.raises(ValueError, match=r"Layer 3 has 16 experts, 9 of which are in question"):
        matched_null(topic_model, prompts, many, metric=refusal, match=use, rng=rng)


def scores_of(values, name="use"):
    return Scores.of_array(name, "fraction", np.array([values], dtype=float), layers=(3,))


def test_counterparts_are_drawn_by_the_stated_odds_of_all_measures_together():
    use, mass = scores_of([0.4, 0.2, 0.1, 0.3]), scores_of([0.1, 0.1, 0.2, 0.05], "mass")
    rng = np.random.default_rng(0)
    ban = (Ban("L3E0"),)
    drawn = draw_counterparts(ban, (use, mass), 4000, rng)
    counts = Counter(next(iter(draw.experts)).expert for draw in drawn)
    logs = np.log2([[0.2 / 0.4, 1.0], [0.1 / 0.4, 2.0], [0.3 / 0.4, 0.5]])
    odds = np.exp(-0.5 * (logs**2).sum(axis=1))
    expected = odds / odds.sum()
    # Four standard errors of a share of 4,000 draws.
    np.testing.assert_allclose([counts[e] / 4000 for e in (1, 2, 3)], expected, atol=0.032)


def test_each_kind_of_change_is_moved_to_the_drawn_experts_and_nothing_else_is(topic_model, halves):
    reference = mi.mean_outputs(topic_model, halves[0])
    use = mi.selection_frequency(mi.record_routing(topic_model, halves[0], progress=False))
    rng = np.random.default_rng(3)
    recipe = (
        mi.Mean("L2E3,L3E8", reference, tokens="last"),
        mi.Scale("L3E8", 0.5, phase="prefill"),
        mi.Steer({"L3E8": 2.0, 2: [0.0] * 3 + [-1.0] + [0.0] * 12}),
    )
    (draw,) = draw_counterparts(recipe, (use,), 1, rng)
    layer2, layer3 = sorted(draw.experts)
    assert (layer2.layer, layer3.layer) == (2, 3)
    assert layer2 != Expert(2, 3)
    assert layer3 != Expert(3, 8)
    mean, scale, steer = draw.recipe
    assert mean == mi.Mean([layer2, layer3], reference, tokens="last")
    assert scale == mi.Scale([layer3], 0.5, phase="prefill")
    assert dict(steer.shifts) == {layer3: 2.0, layer2: -1.0}


def test_a_vector_is_compared_with_random_directions_of_its_length(topic_model, halves, refusal):
    vector = np.arange(64) / 40
    null = matched_null(
        topic_model,
        halves[1],
        mi.AddVector(3, vector, tokens="last"),
        metric=refusal,
        match=scores_of(np.ones(16)),
        n_draws=19,
        rng=np.random.default_rng(0),
    )
    assert null.n_distinct == 19
    assert len(np.unique(null.null)) == 19
    assert not null.experts
    draw = mi.AddVector(3, vector, tokens="last").matched({}, np.random.default_rng(1))
    assert np.linalg.norm(draw.vector) == pytest.approx(np.linalg.norm(vector))
    assert abs(np.dot(draw.vector, vector)) < 0.5 * np.linalg.norm(vector) ** 2
    assert (draw.layer, draw.tokens) == (3, "last")


def test_experts_that_a_reference_never_saw_stand_in_for_nobody(topic_model, halves, use):
    vectors = {(3, expert): np.zeros(64) for expert in (0, 3, 8)}
    recipe = (mi.Mean("L3E8", vectors),)
    rng = np.random.default_rng(0)
    drawn = {draw.experts for draw in draw_counterparts(recipe, (use,), 60, rng)}
    assert drawn == {ExpertSet.parse("L3E0"), ExpertSet.parse("L3E3")}
    alone = (mi.Mean("L3E8", {(3, 8): np.zeros(64)}),)
    with pytest.raises(
        DesignError, match=r"No expert of layer 3 is left to stand in for L3E8: the"
    ):
        draw_counterparts(alone, (use,), 1, rng)


def test_a_change_without_experts_or_counterpart_is_refused_by_name(topic_model, halves, use):
    routing = mi.routing_of(topic_model, halves[0])
    with pytest.raises(DesignError, match=r"Transplant names no experts .* no matched null"):
        matched_null(
            topic_model,
            halves[0],
            mi.Transplant(routing),
            metric=lambda logits: logits[:, 0],
            match=use,
            rng=np.random.default_rng(0),
        )


@pytest.mark.parametrize("wrong", [-0.1, np.nan])
def test_a_match_on_what_is_no_measure_of_use_is_refused(wrong):
    scores = scores_of([0.2, wrong, 0.1])
    with pytest.raises(ValueError, match=r"`match` must measure the use of every expert.*L3E1"):
        draw_counterparts((Ban("L3E0"),), (scores,), 1, np.random.default_rng(0))


@pytest.fixture(scope="module")
def whole(topic_model, organism_prompts, refusal, use, planted):
    """Target, benign control and off-target panel in one call."""
    _, second = organism_prompts.split(rng=np.random.default_rng(0))
    return matched_null(
        topic_model,
        second.select(second.harm),
        Ban(planted),
        metric=refusal,
        match=use,
        benign=second.select(~second.harm),
        neutral=["how do i bake bread ?", "the lock is old ."],
        n_draws=40,
        rng=np.random.default_rng(0),
    )


def test_one_call_gives_target_control_and_panel(whole):
    assert whole.p_value < 0.06
    names = [effect.name for effect in whole.off_target.effects]
    assert names == [
        "benign_refusal_log_odds",
        "over_refusal",
        "answers_changed",
        "distinct_1",
        "neutral_loss",
    ]
    assert whole.off_target["over_refusal"].observed == 0
    assert len(whole.off_target["neutral_loss"].null) == 40
    assert len(json.loads(json.dumps(whole.to_dict()))["off_target"]) == 5
    assert re.search(r"effect less that on benign.*Off target.*perplexity", whole.summary(), re.S)


def test_the_control_runs_the_same_random_sets(topic_model, organism_prompts, refusal, whole):
    _, second = organism_prompts.split(rng=np.random.default_rng(0))
    benign = second.select(~second.harm)
    found = whole.off_target["benign_refusal_log_odds"]
    for n in (0, 17):
        alone = measure_effect(topic_model, benign, Ban(whole.sets[n]), metric=refusal)
        assert found.null[n] == pytest.approx(alone.intervened.mean(), abs=1e-4)
    contrast = whole.effect - found.effect
    assert whole.specificity.observed == pytest.approx(contrast)
    null = (whole.null - whole.baseline) - (found.null - found.baseline)
    np.testing.assert_allclose(whole.specificity.null, null)
    distinct = dict(zip(whole.sets, np.abs(null) >= abs(contrast) - 1e-5, strict=True))
    expected = max((1 + sum(distinct.values())) / (1 + len(distinct)), 1 / 41)
    assert whole.specificity.p_value == pytest.approx(expected)


def test_an_effect_that_harmless_prompts_share_is_not_specific(topic_model, halves, refusal, use):
    same = mi.PromptSet([mi.Prompt(text) for text in halves[1].texts], source="unlabelled")
    null = matched_null(
        topic_model,
        halves[1],
        "L3E8,L3E9",
        metric=refusal,
        match=use,
        benign=same,
        n_draws=40,
        rng=np.random.default_rng(0),
    )
    assert null.p_value < 0.06
    assert null.specificity.observed == pytest.approx(0, abs=1e-4)
    assert null.specificity.p_value == 1
    assert null.specificity.low < 0 < null.specificity.high


def test_the_interval_of_the_effect_is_that_of_the_paired_differences(
    topic_model, halves, refusal, null, planted
):
    effect = measure_effect(topic_model, halves[1], Ban(planted), metric=refusal)
    assert (null.effect, null.low, null.high) == pytest.approx(effect.mean(), rel=1e-4)


def test_the_p_value_counts_the_observed_and_never_is_0():
    draws = [Draw((), ExpertSet([(0, n)]), n) for n in range(19)]
    null = np.linspace(-0.9, 0.9, 19)
    assert null_p_value(-2.0, null, draws) == pytest.approx(1 / 20)
    # Both directions count, and ties do.
    assert null_p_value(0.8, null, draws) == pytest.approx(5 / 20)
    # One set drawn ten times counts once among the different ones.
    repeated = [Draw((), ExpertSet([(0, min(n, 9))]), min(n, 9)) for n in range(19)]
    assert null_p_value(2.0, null, repeated) == pytest.approx(1 / 11)
    # One set that reaches and is drawn nearly always counts by its draws.
    often = [Draw((), ExpertSet([(0, int(n == 18))]), n == 18) for n in range(19)]
    assert null_p_value(2.0, np.array([3.0] * 18 + [0.0]), often) == pytest.approx(19 / 20)


def test_where_a_metric_has_its_zero_does_not_matter(topic_model, halves, refusal, use):
    def found(metric):
        return matched_null(
            topic_model,
            halves[1].select(np.arange(6)),
            "L3E8",
            metric=metric,
            match=use,
            benign=["how do i open the lock to start an oven ?"],
            n_draws=19,
            rng=np.random.default_rng(0),
        )

    plain = found(refusal)
    for shift in (1000, -1000):
        shifted = found(lambda logits, shift=shift: refusal(logits) + shift)
        assert plain.p_value == shifted.p_value < 1
        assert plain.specificity.p_value == shifted.specificity.p_value
        assert plain.effect == pytest.approx(shifted.effect, abs=1e-2)
