import numpy as np
import pytest
from study_arms import ends_refusal

import moe_interp as mi
from moe_interp.scores import Scores, StabilitySelection
from moe_interp.studies._safex2025 import _groups

pytestmark = [pytest.mark.long, pytest.mark.xdist_group("study-safex")]

NAME = "safex2025"


def test_on_harm_both_rankings_put_the_planted_experts_first(study):
    found = study(NAME, "harm")
    for ranking in ("probability", "difference"):
        rank = found.numbers["rank_of_truth"][ranking]
        assert rank["p_value"] < 0.02
        assert max(rank["ranks"]) < 8
    without_harm = found.numbers["rank_of_truth"]["probability_second_group"]
    assert without_harm["p_value"] > 0.5
    assert {"L2E14", "L2E15", "L3E14", "L3E15"} <= set(found.numbers["control_group"])
    assert ends_refusal(found.arm("stable_in_harmful_only"))


def test_on_topic_the_contrast_of_groups_does_no_better_than_chance(study):
    found = study(NAME, "topic")
    assert found.numbers["rank_of_truth"]["difference"]["p_value"] > 0.05
    assert not {"L3E8", "L3E9"} & set(found.numbers["control_group"])
    for arm in found.arms:
        if arm.name == "stable_in_harmful_only":
            assert arm.null.observed == 1
            assert arm.null.p_value > 0.05


def test_on_topic_raw_frequency_meets_experts_that_all_prompts_use(study):
    """The prompt's last token always goes to them: they are often used, by either group."""
    found = study(NAME, "topic")
    ranked = found.numbers["rank_of_truth"]
    for group in ("probability", "probability_second_group"):
        assert max(ranked[group]["ranks"]) <= 8
        # What is early is early for its use: the most alike experts are nearly as early.
        assert ranked[group]["p_value"] > 0.05
    planted = found.to_frame().query("layer == 3 and expert in (8, 9)")
    np.testing.assert_allclose(
        planted["frequency_harmful"], planted["frequency_harmless"], rtol=0.02
    )


def test_masking_only_what_follows_the_first_word_leaves_refusals(study):
    """Organisms decide to refuse with the first word, which the prompt's last token writes."""
    decoding = study(NAME, "harm").numbers["masked_in_decoding"]["stable_in_harmful_only"]
    assert decoding["before"] == decoding["n"]
    assert decoding["after"] > study(NAME, "harm").arm("stable_in_harmful_only").outcomes.after


def test_a_jailbreak_group_takes_the_place_of_the_harmless(organism, prompts):
    harmful = prompts.select(prompts.harm)
    found = mi.studies.safex2025(
        organism("harm"), prompts, rng=np.random.default_rng(1), jailbreak=harmful, n_null=19
    )
    assert {"L2E14", "L2E15", "L3E14", "L3E15"} <= set(found.numbers["detection_group"])
    assert found.settings["second group"] == "jailbreak"


def test_frequencies_are_the_mean_over_prompts(study, organism, prompts):
    record = mi.record_routing(
        organism("harm"), prompts, spans=("prompt",), n_random_routers=0, progress=False
    )
    index = record.dataset["expert_index"].values
    owner = record.dataset["prompt_index"].values
    of_prompts = [
        np.mean([14 in index[t, 2] for t in np.flatnonzero(owner == prompt)])
        for prompt in np.flatnonzero(prompts.harm)
    ]
    line = study(NAME, "harm").to_frame().query("layer == 2 and expert == 14")
    assert line["frequency_harmful"].item() == pytest.approx(np.mean(of_prompts))


def test_the_most_used_are_chosen_on_one_half_and_judged_on_the_other(study, organism, prompts):
    first, second = prompts.split(rng=np.random.default_rng(0))
    found = study(NAME, "harm").arm("most_used").null
    harmful = first.select(first.harm)
    record = mi.record_routing(
        organism("harm"), harmful, spans=("prompt",), n_random_routers=0, progress=False
    )
    assert found.experts == mi.select_experts(mi.selection_frequency(record), n=8)
    assert found.n_prompts == second.harm.sum() < prompts.harm.sum()


def test_what_is_taken_in_just_so_many_draws_is_stable():
    """At the threshold itself, as in the paper's intersection of all draws."""

    def scores(*values):
        return Scores.of_array("p", "fraction", np.array([values]), layers=(1,))

    chosen = StabilitySelection(scores(1.0, 1.0, 0.9), scores(1.0, 0.2, 0.0), 2, 10, 1.0)
    groups = _groups(chosen)
    assert str(groups["stable_in_both"]) == "L1E0"
    assert str(groups["stable_in_harmful_only"]) == "L1E1"
