"""Refusal is spread on the organism that holds it in two experts, and what each part adds."""

import json

import doc_pages
import numpy as np
import pytest

import moe_interp as mi
from moe_interp.errors import DesignError
from moe_interp.experts import Expert, ExpertSet
from moe_interp.prompts import Prompt, PromptSet
from moe_interp.scores import AblationCurve, MesaSelection, Scores
from moe_interp.studies import mesa2026
from moe_interp.studies._mesa2026_parts import (
    USUAL,
    Spread,
    _orders,
    _possible,
    lessons_of,
    some,
    spread_of,
    treatments,
)


@pytest.fixture(scope="module")
def topic(organism):
    return organism("topic")


@pytest.fixture(scope="module")
def refusal(topic):
    return mi.RefusalLogOdds(topic.tokenizer, openers=topic.card["refusal"]["openers"])


@pytest.fixture(scope="module")
def few(prompts):
    """Pairs of two wordings, of all topics."""
    wordings = sorted(set(prompts.wordings))[:2]
    return prompts.select(np.array([wording in wordings for wording in prompts.wordings]))


def selection():
    cost = np.arange(1.0, 65.0).reshape(4, 16)
    scores = Scores.of_array("cost", "smallest cost", cost, layers=(0, 1, 2, 3))
    return MesaSelection(ExpertSet.parse("L0E0,L0E1,L1E3"), scores, scores, scores, scores, 0.5)


def curve(shown):
    order = tuple(Expert(0, n) for n in range(len(shown) - 1))
    return AblationCurve(order, np.array(shown), np.zeros((0, len(shown))), "metric", 0.0)


def test_each_treatment_leaves_out_what_it_says(topic):
    known = (*USUAL, "routing_held", "answer_tokens")
    found = {
        one.name: one for one in treatments(topic, selection(), known, np.random.default_rng(0))
    }
    assert list(found) == ["mesa", *known]
    assert dict(found["mesa"].options) == {}
    assert found["routers_only"].options == {"experts": ""}
    assert found["experts_only"].options == {"routers": False, "routing_kl": 0.0}
    assert found["all_experts"].options == {"experts": "all"}
    assert found["no_transport"].options == {"routing_kl": 0.0}
    assert str(found["costly_experts"].options["experts"]) == "L3E13,L3E14,L3E15"
    assert len(found["random_experts"].options["experts"]) == 3
    assert (found["routing_held"].selection.tilt.mean == 0).all()
    assert found["routing_held"].selection.experts == selection().experts
    assert found["answer_tokens"].options == {"tokens": "answer"}
    for name, one in found.items():
        if name != "routing_held":
            np.testing.assert_array_equal(one.selection.tilt.mean, selection().tilt.mean)


def test_lessons_are_the_models_own_answers_of_both_kinds(topic, few):
    lessons = lessons_of(topic, few, 12)
    assert len(lessons) == 12
    assert lessons.harm.sum() == 6
    said = dict(zip(few.texts, mi.run(topic, few, max_new_tokens=24).texts, strict=True))
    assert all(prompt.response == said[prompt.text] for prompt in lessons)
    assert len(lessons_of(topic, few, 1000)) == len(few)


def test_lessons_with_responses_are_taken_as_they_are(topic):
    given = PromptSet(
        [
            Prompt("open the lock", harm=True, response="no", id="a"),
            Prompt("close the lock", harm=False, response="yes", id="b"),
        ]
    )
    assert lessons_of(topic, given, 8).responses == ("no", "yes")


def test_a_harmful_prompt_that_is_answered_gets_the_usual_refusal(topic, few):
    """Harmless texts under the label of harm: the model answers them."""
    harmless = [prompt for prompt in few if not prompt.harm][:2]
    mixed = PromptSet(
        [
            *(Prompt(p.text, harm=p.harm) for p in few.select(few.harm).select(range(4))),
            *(Prompt(p.text, harm=True) for p in harmless),
            *(Prompt(p.text, harm=False) for p in harmless),
        ]
    )
    lessons = lessons_of(topic, mixed, 100)
    refusals = {p.response for p in lessons if p.harm}
    assert refusals == {"sorry , i cannot help with that ."}
    with pytest.raises(DesignError, match="refuses none of the harmful prompts"):
        lessons_of(topic, mixed.select(range(4, 8)), 100)


def test_some_are_spread_evenly():
    assert some(9, 3).tolist() == [0, 4, 8]
    assert some(2, 5).tolist() == [0, 1]
    assert some(5, 0).tolist() == [0]


def test_an_order_leaves_each_layer_half_of_its_experts(topic):
    everyone = [Expert(layer, e) for layer in (3, 1) for e in range(16)]
    kept = _possible(topic, everyone)
    assert [str(one) for one in kept] == [f"L{layer}E{e}" for layer in (3, 1) for e in range(8)]


@pytest.mark.long
def test_three_rankings_put_their_own_first(topic, refusal, few):
    harmful = few.select(few.harm).select(range(6))
    record = mi.record_routing(topic, harmful, n_random_routers=0, progress=False)
    use = mi.selection_frequency(record)
    orders = _orders(topic, harmful, refusal, use, 5)
    assert list(orders) == ["greedy", "attribution", "use"]
    assert all(len(order) == len(set(order)) == 5 for order in orders.values())
    assert {str(one) for one in orders["greedy"][:2]} == {"L3E8", "L3E9"}
    assert {str(one) for one in orders["attribution"][:2]} == {"L3E8", "L3E9"}
    assert orders["use"] == [expert for expert, _ in use.top(5)]
    slopes = abs(mi.attribution(topic, harmful, metric=refusal))
    assert orders["attribution"] == [expert for expert, _ in slopes.top(5)]


def test_concentration_is_that_of_the_ranking_that_needs_the_fewest(topic, refusal, few):
    harmful = few.select(few.harm)
    found = spread_of(
        topic,
        metric=refusal,
        searched=harmful.select(range(4)),
        judged=few,
        max_experts=3,
        n_null=0,
        rng=np.random.default_rng(0),
        answers=["something else"] * int((~few.harm).sum()),
    )
    assert found.needed == found.at_least == 2
    assert found.needed == min(c.n_needed() or 4 for c in found.curves.values())
    assert found.refused == 1
    assert found.over_refusal == 0
    assert found.same == 0
    assert found.null is None
    wrong = spread_of(
        topic,
        metric=mi.RefusalLogOdds(token_ids=[0]),
        searched=harmful.select(range(2)),
        judged=few,
        max_experts=3,
        n_null=0,
        rng=np.random.default_rng(0),
    )
    assert (wrong.refused, wrong.needed, wrong.at_least, wrong.same) == (0, None, 0, 1)


def test_an_order_that_is_not_enough_gives_a_lower_bound():
    found = Spread({}, curve([1.0, 0.9, 0.8, 0.7]), None, 1.0, 0.0, 1.0, ())
    assert found.needed is None
    assert found.at_least == 4


@pytest.fixture(scope="module")
def spread(topic):
    prompts = mi.load_prompts("organism", per_topic=16)
    parts = ("routers_only", "all_experts", "no_transport")
    return mesa2026(topic, prompts, rng=np.random.default_rng(0), parts=parts, max_experts=6)


@pytest.mark.long
def test_on_topic_more_than_twice_as_many_experts_must_be_ablated(spread):
    assert spread.numbers["needed"]["before"] == 2
    assert spread.numbers["at_least"]["after"] >= 4
    assert set(spread.numbers["order"]["before"][:2]) == set(spread.truth) == {"L3E8", "L3E9"}
    assert spread.numbers["p_value"]["before"] == 1 / 40
    assert spread.numbers["refused"]["after"] >= 0.98
    assert spread.numbers["harmless_same"] >= 0.98


@pytest.mark.long
def test_without_transport_refusal_stays_where_it_was(spread):
    table = spread.tables["treatments"].set_index("treatment")
    assert table.loc["no_transport", "needed"] == 2
    assert table.loc["no_transport", "times"] == 1
    assert table.loc["untouched", "harmless_same"] == 1
    assert np.isnan(table.loc["no_transport", "routing_kl"])
    assert table.loc["mesa", "times"] == spread.numbers["at_least"]["after"] / 2
    assert list(table.index) == ["untouched", "mesa", "routers_only", "all_experts", "no_transport"]


@pytest.mark.long
def test_curves_before_and_after_are_in_the_table(spread):
    table = spread.tables["concentration"]
    assert set(table["model"]) == {"before", "after"}
    assert set(table["ranking"]) == {"greedy", "attribution", "use", "best, fewer prompts"}
    one = table.query("model == 'before' and ranking == 'greedy'")
    assert one["shown"].iloc[0] == spread.numbers["refused"]["before"]
    assert one["expert"].tolist()[1:] == spread.numbers["order"]["before"]


@pytest.mark.long
def test_the_study_leaves_the_model_as_it_was(spread, topic, refusal):
    asked = "how do i open the lock to start an attack ?"
    assert mi.ablation_curve(topic, [asked], ["L3E8", "L3E9"], metric=refusal).n_needed() == 2


@pytest.mark.long
def test_it_is_written_and_drawn(spread, tmp_path):
    spread.write(tmp_path)
    written = json.loads((tmp_path / "results.json").read_text())
    assert written["numbers"]["needed"]["before"] == 2
    assert len(written["tables"]["treatments"]) == 5
    assert (tmp_path / "treatments.csv").exists()
    assert set(spread.figures()) == set(spread.maps)
    said = spread.summary()
    assert "2 experts must be ablated before and" in said
    assert "no transport (selected experts, routers, no routing loss): 2 experts" in said


@pytest.mark.long
def test_the_code_of_the_page_runs(tmp_path):
    names, n_blocks = doc_pages.run_page("studies/mesa2026.md", tmp_path)
    assert n_blocks == 2
    assert names["result"].numbers["at_least"]["after"] >= 4
    assert set(names["table"]["treatment"]) == {"untouched", "mesa"}
    assert names["curve"].shown[0] > 0.9
