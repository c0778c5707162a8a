"""Public layouts, with harmless words in the place of theirs: fields, pairs, topics, licences."""

import json
import warnings

import pytest

from moe_interp.errors import PromptError
from moe_interp.prompts import load_prompts

JBB = """Index,Goal,Target,Behavior,Category,Source
0,Write about {0} bread,Sure,Bread,Food,Original
1,Write about {0} paint,Sure,Paint,Art,Original
2,Write about {0} wood,Sure,Wood,Art,Original
"""
HARMBENCH = """Behavior,FunctionalCategory,SemanticCategory,Tags,ContextString,BehaviorID
Bake bread,standard,food,,,bread
"What is missing, in this recipe?",contextual,food,[context],Flour and water,recipe
Paint a wall,standard,art,,,wall
"""
STRONGREJECT = "category,source,forbidden_prompt\nFood,custom,Bake bread\nArt,custom,Paint a wall\n"
ADVBENCH = 'goal,target\nBake bread,"Sure, here is bread"\nPaint a wall,Sure\n'
BEAVERTAILS = [
    ("how to bake", "with flour", [], True),
    ("how to paint", "with paint", ["mess"], False),
    ("how to bake", "with mud", ["mess", "taste"], False),
    ("how to bake", "with sand", ["taste"], False),
    ("how to bake", "with love", ["taste"], False),
    ("how to sing", "softly", [], True),
    ("how to bake", "with yeast", [], True),
]
WILDJAILBREAK = (
    "vanilla\tadversarial\tcompletion\tdata_type\n"
    "bake bread\t\tI will not.\tvanilla_harmful\n"
    "paint a wall\t\tTake paint.\tvanilla_benign\n"
    "bake bread\tYou are a baker; bake\tNo.\tadversarial_harmful\n"
    "sing\tYou are a bird; sing\tTweet.\tadversarial_benign\n"
)


def jbb_folder(written, *, harmful=None, benign=None):
    harmful = JBB.format("burnt") if harmful is None else harmful
    benign = JBB.format("good") if benign is None else benign
    return [written("harmful-behaviors.csv", harmful), written("benign-behaviors.csv", benign)]


def beavertails(rows=BEAVERTAILS):
    names = ("mess", "noise", "taste")
    return "\n".join(
        json.dumps(
            {
                "prompt": prompt,
                "response": response,
                "category": {name: name in flags for name in names},
                "is_safe": safe,
            }
        )
        for prompt, response, flags, safe in rows
    )


def test_jailbreakbench_is_paired_by_index_within_its_category(written, tmp_path):
    jbb_folder(written)
    prompts = load_prompts(tmp_path)
    assert len(prompts) == 6
    assert prompts.n_pairs == 3
    assert prompts.unpaired == ()
    for benign, harmful in prompts.pair_positions:
        assert prompts[benign].text.replace("good", "burnt") == prompts[harmful].text
        assert prompts[benign].topic == prompts[harmful].topic
    assert set(prompts.topics) == {"Food", "Art"}
    assert prompts.ids[:3] == ("benign-0", "benign-1", "benign-2")


def test_jailbreakbench_by_its_two_files_in_any_order(written, tmp_path):
    paths = jbb_folder(written)
    assert set(load_prompts(paths)) == set(load_prompts(paths[::-1])) == set(load_prompts(tmp_path))


@pytest.mark.parametrize(("given", "missing"), [("harmful", "benign"), ("benign", "harmful")])
def test_half_of_jailbreakbench_loads_with_a_warning(written, given, missing):
    path = written(f"{given}-behaviors.csv", JBB.format("good"))
    message = f"only JailbreakBench's {given} behaviours.*holds {missing}-behaviors.csv too"
    with pytest.warns(UserWarning, match=message):
        prompts = load_prompts(path)
    assert prompts.n_pairs == 0
    assert prompts.harm.tolist() == [given == "harmful"] * 3


def test_jailbreakbench_rows_without_a_partner_are_named(written):
    without = "\n".join(JBB.format("good").splitlines()[:-1]) + "\n"
    with pytest.warns(UserWarning, match=r"1 of 5 prompts .* of their `Index`: 'harmful-2'"):
        prompts = load_prompts(jbb_folder(written, benign=without))
    assert prompts.unpaired == ("harmful-2",)


def test_jailbreakbench_under_another_name_does_not_say_what_is_harmful(written):
    with pytest.raises(PromptError, match=r"mine.csv, row 2: .* do not say whether a row is harm"):
        load_prompts(written("mine.csv", JBB.format("good")))


def test_jailbreakbench_pairs_across_categories_are_refused(written):
    other = JBB.format("good").replace("Food", "Tools")
    with pytest.raises(PromptError, match=r"Pair '0' joins topic 'Food' \(harmful-behaviors.csv"):
        load_prompts(jbb_folder(written, benign=other))


def test_jailbreakbench_with_an_index_twice_is_refused_with_both_rows(written):
    twice = JBB.format("burnt") + "1,Write about burnt glue,Sure,Glue,Art,Original\n"
    with pytest.raises(PromptError, match=r"harmful-behaviors.csv, row 3 and .*row 5 are both"):
        load_prompts(jbb_folder(written, harmful=twice))


def test_jailbreakbench_without_an_index_is_refused(written):
    with pytest.raises(PromptError, match=r"harmful-behaviors.csv, row 2: `Index` is empty"):
        load_prompts(jbb_folder(written, harmful=JBB.format("burnt").replace("\n0,", "\n,")))


def test_harmbench_puts_the_context_before_the_behaviour(written):
    prompts = load_prompts(written("h.csv", HARMBENCH))
    assert prompts[0].text == "Bake bread"
    assert prompts[1].text == "Flour and water\n\n---\n\nWhat is missing, in this recipe?"
    assert prompts.topics == ("food", "food", "art")
    assert prompts.ids == ("bread", "recipe", "wall")


@pytest.mark.parametrize(
    ("content", "topics"),
    [
        (HARMBENCH, ("food", "food", "art")),
        (STRONGREJECT, ("Food", "Art")),
        (ADVBENCH, (None, None)),
    ],
)
def test_sets_of_harmful_prompts_alone_are_harmful_and_unpaired(written, content, topics):
    prompts = load_prompts(written("h.csv", content))
    assert prompts.topics == topics
    assert prompts.harm.all()
    assert len(prompts.unpaired) == len(prompts)
    assert prompts.texts[-1] == "Paint a wall"


def test_beavertails_pairs_safe_with_unsafe_responses_to_one_prompt(written):
    prompts = load_prompts(written("b.jsonl", beavertails()))
    pairs = {
        (prompts[safe].response, prompts[unsafe].response)
        for safe, unsafe in prompts.pair_positions
    }
    assert pairs == {("with flour", "with mud"), ("with yeast", "with sand")}
    assert {prompts.responses[prompts.ids.index(name)] for name in prompts.unpaired} == {
        "with love",
        "with paint",
        "softly",
    }
    for safe, unsafe in prompts.pair_positions:
        assert prompts[safe].text == prompts[unsafe].text == "how to bake"
    assert {one.pair for one in prompts if one.id in prompts.unpaired} == {None}


def test_beavertails_keeps_all_responses_to_a_prompt_in_one_unit(written):
    prompts = load_prompts(written("b.jsonl", beavertails()))
    wordings = {text: set() for text in prompts.texts}
    for prompt in prompts:
        wordings[prompt.text].add(prompt.wording)
    assert all(len(found) == 1 for found in wordings.values())
    assert len(set.union(*wordings.values())) == 3


def test_beavertails_topic_is_what_most_unsafe_responses_are_flagged_for(written):
    prompts = load_prompts(written("b.jsonl", beavertails()))
    topics = {prompt.text: prompt.topic for prompt in prompts}
    assert topics == {"how to bake": "taste", "how to paint": "mess", "how to sing": None}


def test_beavertails_counts_every_flag_of_unsafe_responses_and_none_of_safe_ones(written):
    rows = [
        ("how to bake", "with mud", ["mess", "taste"], False),
        ("how to bake", "with sand", ["noise", "taste"], False),
        *(("how to bake", f"with flour {n}", ["mess"], True) for n in range(3)),
    ]
    assert set(load_prompts(written("b.jsonl", beavertails(rows))).topics) == {"taste"}


def test_beavertails_responses_judged_twice_are_counted_once_or_not_at_all(written):
    repeated = ("how to bake", "with flour", [], True)
    contrary = ("how to sing", "softly", ["noise"], False)
    path = written("b.jsonl", beavertails([*BEAVERTAILS, repeated, contrary]))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        prompts = load_prompts(path)
    said = "\n".join(str(one.message) for one in caught)
    assert "1 of 9 responses of b.jsonl repeat another one" in said
    assert "'b.jsonl, line 8'" in said
    assert "2 of 9 responses of b.jsonl are judged safe in one row and unsafe in another" in said
    assert "'b.jsonl, line 6', 'b.jsonl, line 9'" in said
    assert prompts.responses.count("with flour") == 1
    assert "softly" not in prompts.responses


def test_a_set_of_contradictions_alone_is_refused(written):
    rows = [("sing", "softly", [], True), ("sing", "softly", [], False)]
    path = written("b.jsonl", beavertails(rows))
    with (
        pytest.warns(UserWarning, match="are judged safe in one row"),
        pytest.raises(PromptError, match=r"All 2 rows of b.jsonl were left out"),
    ):
        load_prompts(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"is_safe": None}, r"b.jsonl, line 1: `is_safe` is missing or empty; true or false"),
        ({"is_safe": "perhaps"}, r"b.jsonl, line 1: `is_safe` is 'perhaps'"),
        ({"response": " "}, r"b.jsonl, line 1: `response` is ' '; a text is needed"),
        ({"category": ["mess"]}, r"b.jsonl, line 1: `category` is \['mess'\]; an object is need"),
        ({"category": {"mess": "yes"}}, r"`category` is {'mess': 'yes'}; an object is needed"),
        ({"category": "{mess"}, r"`category` is '{mess'; an object is needed"),
    ],
)
def test_a_broken_judgement_is_named_with_its_row(written, change, message):
    row = {"prompt": "sing", "response": "softly", "category": {}, "is_safe": True, **change}
    with pytest.raises(PromptError, match=message):
        load_prompts(written("b.jsonl", json.dumps(row)))


def test_beavertails_categories_may_be_json_in_a_table(written):
    row = (
        'prompt,response,category,is_safe\nsing,badly,"{""noise"": true, ""mess"": false}",false\n'
    )
    assert load_prompts(written("b.csv", row)).topics == ("noise",)


def test_saferlhf_gives_two_prompts_a_row(written):
    row = {
        "prompt": "how to sing",
        "prompt_source": "me",
        "response_0": "loudly",
        "response_1": "softly",
        "is_response_0_safe": False,
        "is_response_1_safe": True,
        "response_0_harm_category": {"Noise": True},
        "response_1_harm_category": {"Noise": False},
        "better_response_id": 1,
        "safer_response_id": 1,
    }
    prompts = load_prompts(written("s.jsonl", json.dumps(row)))
    assert prompts.responses == ("loudly", "softly")
    assert prompts.harm.tolist() == [True, False]
    assert prompts.n_pairs == 1
    assert prompts.topics == ("Noise", "Noise")


def test_wildjailbreak_takes_the_words_of_its_form(written):
    prompts = load_prompts(written("train.tsv", WILDJAILBREAK))
    assert prompts.texts == (
        "bake bread",
        "paint a wall",
        "You are a baker; bake",
        "You are a bird; sing",
    )
    assert prompts.harm.tolist() == [True, False, True, False]
    assert prompts.topics == ("vanilla", "vanilla", "adversarial", "adversarial")
    assert prompts.responses == ("I will not.", "Take paint.", "No.", "Tweet.")


def test_wildjailbreak_binds_a_request_to_its_disguises(written):
    wordings = load_prompts(written("train.tsv", WILDJAILBREAK)).wordings
    assert wordings[0] == wordings[2] is not None
    assert wordings[1] is wordings[3] is None


def test_wildjailbreak_of_evaluation_has_labels_that_must_agree(written):
    rows = (
        "adversarial\tlabel\tdata_type\n"
        "sing\t0\tadversarial_benign\n"
        "bake\t{}\tadversarial_harmful\n"
    )
    assert load_prompts(written("a.tsv", rows.format(1))).harm.tolist() == [False, True]
    with pytest.raises(PromptError, match=r"b.tsv, row 3: .*'adversarial_harmful' and label '0'"):
        load_prompts(written("b.tsv", rows.format(0)))


def test_wildjailbreak_of_an_unknown_type_is_refused(written):
    with pytest.raises(PromptError, match=r"row 2: `data_type` is 'plain'; .* 'vanilla_harmful'"):
        load_prompts(written("a.tsv", "vanilla\tadversarial\tdata_type\nx\ty\tplain\n"))


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("h.csv", HARMBENCH, "HarmBench (Mazeika et al., 2024), licence MIT; topic: `SemanticC"),
        ("s.csv", STRONGREJECT, "StrongREJECT (Souly et al., 2024), licence MIT; topic: `categ"),
        ("a.csv", ADVBENCH, "AdvBench (Zou et al., 2023), licence MIT; topic: none in the file"),
        ("b.jsonl", beavertails(), "BeaverTails (Ji et al., 2023), licence CC-BY-NC-4.0; topic:"),
        ("w.tsv", WILDJAILBREAK, "WildJailbreak (Jiang et al., 2024), licence ODC-BY; topic: the"),
    ],
)
def test_the_summary_names_licence_topic_and_pairs(written, name, content, told):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        prompts = load_prompts(written(name, content))
    counts, card = prompts.summary().splitlines()
    assert counts.startswith(f"{len(prompts)} prompts from {name}: ")
    assert card.startswith(told)
    assert "; pairs: " in card
    assert prompts.select([0]).card == prompts[:1].card == prompts.card
    assert prompts.to_dict()["card"]["licence"] == prompts.card.licence


def test_our_own_layout_has_no_card(written):
    prompts = load_prompts(written("a.csv", "text\nx\n"))
    assert prompts.card is None
    assert len(prompts.summary().splitlines()) == 1


def test_an_unknown_layout_is_answered_with_the_known_ones(written):
    message = r"XSTest \(prompt, type, focus\); JailbreakBench behaviours \(Index, Goal"
    with pytest.raises(PromptError, match=message):
        load_prompts(written("a.csv", "question,answer\nx,y\n"))
