import numpy as np
import pytest
from study_arms import ends_refusal

import moe_interp as mi
from moe_interp.scores import Scores
from moe_interp.studies._siddiky2026 import _largest

pytestmark = [pytest.mark.long, pytest.mark.xdist_group("study-siddiky")]

NAME = "siddiky2026"


def test_on_topic_the_gradient_finds_the_refusal_and_activation_does_not(study):
    found = study(NAME, "topic")
    assert ends_refusal(found.arm("gradient_benign_dominant"))
    assert {"L3E8", "L3E9"} <= set(map(str, found.arm("gradient_benign_dominant").null.experts))
    for arm in found.arms:
        if arm.name.startswith("activation"):
            assert arm.null.observed == arm.null.baseline == 1
            assert arm.null.p_value > 0.05


def test_on_harm_both_scores_find_the_refusal(study):
    found = study(NAME, "harm")
    planted = {"L2E14", "L2E15", "L3E14", "L3E15"}
    for name in ("activation_harmful_dominant", "gradient_harmful_dominant"):
        assert planted <= set(map(str, found.arm(name).null.experts))
        assert ends_refusal(found.arm(name))
        assert found.arm(name).outcomes.after == 0
    for name in ("activation_benign_dominant", "gradient_benign_dominant"):
        assert found.arm(name).null.observed == 1


def test_on_decoy_activation_finds_experts_whose_suppression_does_nothing(study, organism):
    arm = study(NAME, "decoy").arm("activation_harmful_dominant")
    routed_to = organism("decoy").card["truth"]["harm_experts"]
    assert set(routed_to) <= set(map(str, arm.null.experts))
    assert arm.null.observed == arm.null.baseline == 1
    assert arm.null.p_value > 0.05
    assert arm.outcomes.after == arm.outcomes.before


def test_the_activation_score_is_the_share_of_a_groups_tokens(study, organism, prompts):
    table = study(NAME, "harm").to_frame()
    record = mi.record_routing(
        organism("harm"), prompts, spans=("prompt",), n_random_routers=0, progress=False
    )
    index = record.dataset["expert_index"].values
    owner = record.dataset["prompt_index"].values
    for group, level in (("benign", False), ("harmful", True)):
        tokens = [t for t in range(len(owner)) if prompts.harm[owner[t]] == level]
        for row, layer in ((0, 0), (3, 3)):
            for expert in (0, 9, 14):
                chosen = sum(expert in index[t, row] for t in tokens)
                line = table[(table["layer"] == layer) & (table["expert"] == expert)]
                assert line[f"activation_{group}"].item() == pytest.approx(chosen / len(tokens))


def test_the_gradient_score_is_the_mean_over_a_groups_tokens(study, organism, prompts):
    model, table = organism("harm"), study(NAME, "harm").to_frame()
    metric = mi.RefusalLogOdds(model.tokenizer, openers=["sorry"])
    total, n_tokens = np.zeros((4, 16)), 0
    for text in prompts.select(prompts.harm).texts:
        one = mi.gradient_sensitivity(model, [text], metric=metric)
        length = len(
            model.tokenizer.apply_chat_template(
                [{"role": "user", "content": text}], add_generation_prompt=True, return_dict=False
            )
        )
        total += one.array.values[0] * length
        n_tokens += length
    np.testing.assert_allclose(
        table["gradient_harmful"], (total / n_tokens).ravel(), rtol=1e-3, atol=1e-7
    )


def test_classes_follow_the_corrected_test_and_its_sign(study):
    table = study(NAME, "harm").to_frame()
    for row in table.to_dict("records"):
        differs = row["activation_p_adjusted"] <= 0.05
        assert (row["activation_class"] != "shared") == differs
        if row["activation_class"] == "harmful-dominant":
            assert row["activation_difference"] > 0


def test_the_overlap_is_that_of_the_two_top_sets(study):
    found = study(NAME, "harm")
    table = found.to_frame()
    for score in ("activation", "gradient"):
        tops = [
            set(table[f"{score}_{group}"].to_numpy().argsort()[::-1][:10].tolist())
            for group in ("benign", "harmful")
        ]
        assert found.numbers["overlap"][score] == len(tops[0] & tops[1]) / 10
    assert found.numbers["chance_overlap"] == 10 / 64


def test_experts_are_chosen_on_one_half_and_judged_on_the_other(study):
    found = study(NAME, "harm")
    settings = found.settings
    assert settings["chosen on"] + settings["judged on"] == found.prompts["n"]
    assert found.arms[0].null.n_prompts == settings["judged on"] / 2


def test_experts_are_those_of_the_first_half_alone(study, organism, prompts):
    """On topic all differences are small, so that other prompts would choose other experts."""
    halves = prompts.split(rng=np.random.default_rng(0))
    found = study(NAME, "topic").numbers["chosen"]
    for direction, sign in (("benign", 1), ("harmful", -1)):
        chosen = [mi.Expert.parse(e) for e in found[f"activation_{direction}_dominant"]]
        places = [16 * expert.layer + expert.expert for expert in chosen]
        as_chosen = []
        for some in (*halves, prompts):
            values = sign * difference_by_tokens(organism("topic"), some)
            largest = np.sort(values)[-5:]
            largest = largest[largest > 1e-9]
            # Experts may tie: what counts is that none is better than those chosen.
            own = np.sort(values[places])
            as_chosen.append(own.shape == largest.shape and np.allclose(own, largest, atol=1e-9))
        assert as_chosen == [True, False, False]


def difference_by_tokens(model, prompts):
    """How much more of benign than of harmful tokens choose each expert."""
    record = mi.record_routing(
        model, prompts, spans=("prompt",), n_random_routers=0, progress=False
    )
    index = record.dataset["expert_index"].values
    harmful = prompts.harm[record.dataset["prompt_index"].values]
    share = np.zeros((2, 4, 16))
    for level in (0, 1):
        for layer in range(4):
            chosen = index[harmful == level, layer]
            share[level, layer] = np.bincount(chosen.ravel(), minlength=16) / len(chosen)
    return (share[0] - share[1]).ravel()


def test_an_expert_that_a_group_does_not_prefer_is_not_dominant():
    scores = Scores.of_array("score", "unit", np.zeros((1, 4)), layers=(2,))
    values = np.array([[0.3, -0.1, 1e-17, 0.2]])
    assert str(_largest(values, scores, 3)) == "L2E0,L2E3"


def test_some_experts_differ_between_groups_on_harm(study):
    """Without any, what the classes are is not tested above."""
    classes = set(study(NAME, "harm").to_frame()["activation_class"])
    assert classes == {"shared", "harmful-dominant", "benign-dominant"}
