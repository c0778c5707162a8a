"""RASET on organisms: both halves of the claim, in both directions."""

import doc_pages
import numpy as np
import pytest
from study_arms import ends_refusal

import moe_interp as mi
from moe_interp.errors import DesignError, PromptError
from moe_interp.studies import raset2026
from moe_interp.studies._raset2026_contrasts import prompt_pairs, routing_contrasts, shared_tokens
from moe_interp.studies._raset2026_tuning import lessons_of

TUNED = [
    "planted",
    "contrastive",
    "attribution",
    "frequency",
    "greedy",
    "random_1",
    "random_2",
    "random_3",
    "routers_only",
    "all_experts",
    "full",
    "router_steering",
]


@pytest.fixture(scope="module")
def raset(organism, prompts):
    """The whole study on an organism, once."""
    done = {}

    def run(name):
        if name not in done:
            done[name] = raset2026(
                organism(name),
                prompts,
                rng=np.random.default_rng(0),
                n_null=39,
                n_resamples=499,
                n_random_routers=39,
            )
        return done[name]

    return run


def contrasts(found, vector="weights"):
    table = found.tables["contrasts"]
    return table[table["vector"] == vector].set_index("contrast")


def tuning(found):
    return found.tables["tuning"].set_index("arm")


@pytest.mark.long
def test_on_topic_routing_answers_to_topic_and_hardly_to_intent(raset):
    for vector in ("weights", "probabilities"):
        table = contrasts(raset("topic"), vector)
        assert table.loc["topic", "js_bits"] > 0.1
        assert table.loc["pair", "over_topic"] < 0.05
        assert table.loc["pair", "js_bits_high"] < 0.1 * table.loc["topic", "js_bits_low"]
        assert table.loc["pair", "overlap"] > 1.9
        assert table.loc["topic", "overlap"] < 1
        # The floor: other words move routing further than another intent.
        assert table.loc["paraphrase", "js_bits"] > table.loc["pair", "js_bits"]


@pytest.mark.long
def test_on_harm_routing_answers_to_intent_more_than_to_topic(raset):
    for vector in ("weights", "probabilities"):
        table = contrasts(raset("harm"), vector)
        assert table.loc["pair", "over_topic"] > 3
        assert table.loc["pair", "js_bits_low"] > table.loc["topic", "js_bits_high"]
        assert table.loc["pair", "js_bits"] > table.loc["paraphrase", "js_bits"]


@pytest.mark.long
def test_contrast_selects_the_planted_experts_of_harm(raset):
    found = raset("harm")
    planted = {"L2E14", "L2E15", "L3E14", "L3E15"}
    assert planted <= set(found.numbers["chosen"]["contrastive"])
    assert found.numbers["rank_of_truth"]["contrastive"]["p_value"] < 0.02
    assert ends_refusal(found.arm("contrastive"))


@pytest.mark.long
def test_on_topic_contrast_is_no_better_than_chance_and_causes_find_the_planted(raset):
    found = raset("topic")
    assert found.numbers["rank_of_truth"]["contrastive"]["p_value"] > 0.05
    arm = found.arm("contrastive")
    assert arm.null.observed == arm.null.baseline == 1
    assert arm.null.p_value > 0.05
    assert found.numbers["rank_of_truth"]["attribution"]["p_value"] < 0.05
    assert {"L3E8", "L3E9"} <= set(found.numbers["chosen"]["attribution"])
    assert found.numbers["chosen"]["greedy"] == ["L3E8", "L3E9"]
    for name in ("attribution", "greedy"):
        assert found.arm(name).null.observed < 0.05 < 0.9 < found.arm(name).null.null.mean()


@pytest.mark.long
@pytest.mark.parametrize("name", ["topic", "harm"])
def test_tuning_the_planted_experts_ends_refusals_and_leaves_routing(raset, name):
    row = tuning(raset(name)).loc["planted"]
    assert row["refusal_change"] <= -0.95
    assert row["slots_changed_prompt"] <= 0.005
    assert row["slots_changed_harmful"] <= 0.005
    assert row["over_refusal"] == 0
    assert row["answers_changed"] <= 0.05
    assert row["safety_apart"] == "supported"


@pytest.mark.long
@pytest.mark.parametrize("name", ["topic", "harm"])
def test_the_comparison_has_every_arm_and_what_moves_more(raset, name):
    table = tuning(raset(name))
    assert list(table.index) == TUNED
    planted = table.loc["planted"]
    for other in ("routers_only", "all_experts", "full", "router_steering"):
        assert table.loc[other, "slots_changed_prompt"] > 5 * planted["slots_changed_prompt"]
    assert table.loc["all_experts", "refused_after"] <= 0.05
    assert table.loc["full", "refused_after"] <= 0.05
    assert table.loc["routers_only", "refused_after"] >= 0.5
    assert table.loc["router_steering", "n_parameters"] == 0
    randoms = table.loc[["random_1", "random_2", "random_3"], "refused_after"]
    assert randoms.mean() > planted["refused_after"] + 0.25


@pytest.mark.long
def test_the_halves_of_the_claim_are_judged_apart(raset):
    claims = {name: raset(name).numbers["claim"] for name in ("topic", "harm")}
    assert claims["topic"]["follows_topic"]["state"] == "supported"
    assert claims["harm"]["follows_topic"]["state"] == "contradicted"
    for claim in claims.values():
        assert claim["safety_apart"]["state"] == "supported"
        assert claim["safety_apart"]["arm"] == "greedy"
    assert claims["topic"]["safety_apart_by_arm"]["full"] == "contradicted"
    assert claims["topic"]["safety_apart_by_arm"]["router_steering"] == "not tested"


@pytest.mark.long
def test_the_model_is_left_as_it_was_and_the_result_is_written(raset, organism, tmp_path):
    found = raset("topic")
    fresh = mi.load_model("organism:topic", check=False).nnsight._module.state_dict()
    for name, value in organism("topic").nnsight._module.state_dict().items():
        assert np.array_equal(value.numpy(), fresh[name].numpy()), name
    found.write(tmp_path)
    names = {path.name for path in tmp_path.iterdir()}
    assert {"contrasts.csv", "tuning.csv", "experts.csv", "results.json", "report.html"} <= names
    said = found.summary()
    assert "Neither half implies the other." in said
    assert "contrastive routing sensitivity" in said


def test_pairs_differ_in_what_their_name_says(prompts):
    lists = prompt_pairs(prompts)
    n_by = {"topic": 0, "pair": 0, "wording": 0}
    every = list(prompts)
    for i, one in enumerate(every):
        for other in every[i + 1 :]:
            same_level = one.harm == other.harm
            n_by["pair"] += one.pair == other.pair
            if same_level and one.topic != other.topic:
                n_by["topic"] += one.wording == other.wording
            n_by["wording"] += (
                same_level and one.topic == other.topic and one.wording != other.wording
            )
    assert {name: len(first) for name, (first, _, _) in lists.items()} == n_by
    for first, second in zip(*lists["pair"][:2], strict=True):
        assert (prompts[int(first)].harm, prompts[int(second)].harm) == (False, True)
    bare = mi.PromptSet(
        [mi.Prompt("a", harm=True, topic="x"), mi.Prompt("b", harm=True, topic="y")]
    )
    assert list(prompt_pairs(bare)) == ["topic"]


def test_forced_answers_are_pooled_over_the_tokens_of_the_whole_text(organism):
    """Written out for one prompt: mean weights over prompt and response tokens, base 2."""
    model = organism("harm")
    prompts = mi.load_prompts("organism", per_topic=1)[:4]
    record = mi.record_routing(
        model,
        prompts,
        quantities=("routing_weights", "router_logits"),
        spans=("user", "prompt"),
        progress=False,
    )
    refusal = model.card["refusal"]["text"]
    answers = ["sure , first log the gearbox .", "sure , first filter the acid ."]
    found = routing_contrasts(
        model, record, span="user", refusal=refusal, answers=answers, paraphrases=None
    )
    harmful = prompts.select(prompts.harm)
    means = []
    for text in (refusal, answers[0]):
        forced = mi.PromptSet([mi.Prompt(harmful[0].text, response=text)])
        one = mi.record_routing(model, forced, spans=("prompt", "response"), progress=False)
        weights = np.zeros((one.n_tokens, 4, 16))
        index = one.dataset["expert_index"].values.astype(int)
        np.put_along_axis(weights, index, one.dataset["routing_weights"].values, axis=-1)
        means.append(weights.mean(axis=0) / weights.mean(axis=0).sum(axis=-1, keepdims=True))
    p, q = means
    m = (p + q) / 2
    with np.errstate(divide="ignore", invalid="ignore"):
        parts = [np.nansum(one * np.log2(one / m), axis=-1) for one in (p, q)]
    np.testing.assert_allclose(
        found["forced", "weights"].values("js_bits")[0], sum(parts) / 2, rtol=1e-4, atol=1e-9
    )
    tops = [np.argsort(-one, axis=-1)[:, :2] for one in (p, q)]
    shared = [len(set(a) & set(b)) for a, b in zip(*map(np.ndarray.tolist, tops), strict=True)]
    assert found["forced", "weights"].overlap[0].tolist() == shared
    names = {name for name, _ in found}
    assert {"refusal_prefix", "forced_response", "other_answer", "paraphrase"} <= names


def test_shared_tokens_are_compared_one_by_one(organism):
    prompts = mi.load_prompts("organism", per_topic=1)[:4]
    record = mi.record_routing(
        organism("harm"), prompts, spans=("identical_tokens",), progress=False
    )
    found = shared_tokens(record, "identical_tokens")
    owner, inside = record.dataset["prompt_index"].values, record.inside("identical_tokens")
    index = record.dataset["expert_index"].values
    for row, (one, other) in enumerate(prompts.pair_positions):
        tokens = [np.flatnonzero((owner == n) & inside) for n in (one, other)]
        for layer in range(4):
            share = [
                len(set(index[a, layer]) & set(index[b, layer])) / 2
                for a, b in zip(*tokens, strict=True)
            ]
            assert found[row, layer] == pytest.approx(np.mean(share))


def test_organisms_are_taught_to_answer_and_other_models_to_refuse(organism, monkeypatch):
    model = organism("topic")
    prompts = mi.load_prompts("organism", per_topic=1)[:4]
    lessons = lessons_of(model, prompts, ["yes one", "yes two"], "no")
    assert [(p.harm, p.response) for p in lessons] == [(True, "yes one"), (True, "yes two")]
    monkeypatch.setattr(model, "card", None)
    lessons = lessons_of(model, prompts, ["yes one", "yes two"], "no")
    assert [(p.harm, p.response) for p in lessons] == [
        (False, "yes one"),
        (True, "no"),
        (False, "yes two"),
        (True, "no"),
    ]


def test_what_cannot_be_run_is_refused(organism, prompts):
    model = organism("topic")
    unpaired = prompts.select(prompts.harm)
    with pytest.raises(DesignError, match=r"nothing to teach: no harmful prompt has a harmless"):
        lessons_of(model, unpaired, [], "no")
    record = mi.record_routing(model, prompts[:4], spans=("user", "prompt"), progress=False)
    with pytest.raises(PromptError, match=r"There are 2 `paraphrases` of 4 prompts"):
        routing_contrasts(
            model,
            record,
            span="user",
            refusal="no",
            answers=["a", "b"],
            paraphrases=prompts[:2],
        )


def test_an_arm_that_is_not_there_is_named_with_those_that_are(organism, prompts):
    with pytest.raises(ValueError, match=r"no arm 'half'. Arms: planted, .*random_3, routers_only"):
        raset2026(organism("topic"), prompts, rng=np.random.default_rng(0), arms=["half"])


@pytest.mark.long
def test_the_code_of_the_page_finds_what_the_page_says(tmp_path):
    names, n_blocks = doc_pages.run_page("studies/raset2026.md", tmp_path)
    assert n_blocks == 1
    row = names["tuning"].iloc[0]
    assert (row["refused_before"], row["refused_after"]) == (1, 0)
    assert row["slots_changed_prompt"] <= 0.005
    states = {half: names["result"].numbers["claim"][half]["state"] for half in CLAIM}
    assert states == {"follows_topic": "contradicted", "safety_apart": "supported"}


CLAIM = ("follows_topic", "safety_apart")
