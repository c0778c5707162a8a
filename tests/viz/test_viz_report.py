import base64
import gzip
import html
import json
import re

import pytest

from moe_interp.errors import ResultError, ResultExistsError
from moe_interp.viz import _words as words
from moe_interp.viz import write_report
from moe_interp.viz._circuitsvis import circuitsvis_script
from moe_interp.viz._page import SECURITY_POLICY, plotly_script
from moe_interp.viz._theme import FACTORS, ON_DARK


@pytest.fixture
def written(results, record, tmp_path):
    """Write a report of (changed) results and read its document."""

    def write(**changes):
        path = tmp_path / "report.html"
        write_report(results | changes, record, path, force=True)
        return path.read_text(encoding="utf-8")

    return write


def text_of(document):
    body = re.sub(r"<(script|style)\b.*?</\1>", " ", document, flags=re.DOTALL)
    return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", body)).split())


def data_of(document):
    packed = re.search(r'<script type="text/plain" id="data">(.*?)</script>', document)[1]
    return json.loads(gzip.decompress(base64.b64decode(packed)))


def quoted(sentence):
    return " ".join(sentence.split())


def test_the_verdict_comes_first_and_then_its_numbers(written):
    text = text_of(written())
    order = [
        "Verdict on user tokens",
        "Topic-driven",
        "explains 38.0%",
        "The spans disagree",
        "Do the selected experts matter?",
        "layer by layer",
        "What could have fooled it",
        "Which experts",
        "The tokens",
        "Experts worth a look",
        "Against the planted truth",
        "Prompts source",
        "How to read this",
        "Versions",
    ]
    places = [text.index(part) for part in order]
    assert places == sorted(places)


def test_controls_say_what_they_take_out_and_what_changes(written, results):
    text = text_of(written())
    assert "hangs on which tokens they are: with that taken out, another one is given." in text
    rows = [
        "nothing Topic-driven 0.380 (0.350 to 0.410) 0.0001 0.004 (−0.001 to 0.009) 0.0123 100.0%",
        "which tokens they are (differs) – 0.380",
        "77.0%",
        "Topic would no longer count at 3 more random routers above it.",
        "design effect 1.5",
        "“–”: random routers were counted by prompt",
    ]
    for row in rows:
        assert row in text
    calm = results["sensitivity"] | {"changing": [], "rows": results["sensitivity"]["rows"][:2]}
    text = text_of(written(sensitivity=calm))
    assert "No control changes what is found on user tokens." in text
    assert "counted by prompt" not in text
    undone = calm["rows"][1] | {"topic": None, "words": "too few tokens"}
    text = text_of(written(sensitivity=calm | {"rows": [undone]}))
    assert "length of the prompts not run: too few tokens" in text
    refused = {"span": "user", "rows": [], "changing": [], "refused": "Too few <b>units</b>."}
    assert "Too few <b>units</b>." in text_of(written(sensitivity=refused))
    assert "What could have fooled it Not measured." in text_of(written(sensitivity=None))


def test_every_span_is_quoted_with_the_numbers_of_the_results(written, results):
    text = text_of(written())
    for span in results["spans"]:
        row = next(r for r in results["decomposition"] if (r["span"], r["layer"]) == (span, "all"))
        card = re.search(rf"{span} tokens (primary )?\w+-driven .*?harm in topics p = \S+", text)[0]
        assert f"topic {100 * row['topic']:.1f}%" in card
        assert f"harm {100 * row['harm']:.1f}%" in card
        tested = results["p_values"][span]
        assert f"topic p = {tested['topic']:.3g} · harm p = {tested['harm']:.3g}" in card


def test_the_headline_sentence_names_tokens_intervals_and_random_routers():
    results = {
        "decomposition": [
            {"span": "user", "layer": "all", "topic": 0.381, "topic_low": 0.35, "topic_high": 0.42}
            | {"harm": -0.0012, "harm_low": -0.004, "harm_high": 0.003}
            | {"topic_random_mean": 0.2, "harm_random_mean": 0.19}
        ],
        "p_values": {"user": {"topic": 0.0001, "harm": 0.31}},
    }
    assert quoted(words.shares_sentence(results, "user")) == (
        "On user tokens, with all layers pooled, topic explains 38.1% "
        "(95% CI 35.0% to 42.0%, p = 0.0001) and harm explains −0.1% "
        "(95% CI −0.4% to 0.3%, p = 0.31) of the variation of routing between prompts. "
        "Random routers on the same hidden states give 20.0% for topic and 19.0% for harm."
    )


def test_the_causal_check_can_be_quoted(results):
    assert quoted(" ".join(words.causal_sentences(results["causal"]))) == (
        "Banning the 2 selected experts (L5E8, L5E9) moves the refusal rate on held-out harmful "
        "prompts from 0.985 to 0.015. 100 random sets matched on layer, size and use leave it at "
        f"{results['causal']['null_mean']:.3f} on average, 95% of them between 0.93 and 1.00 "
        "(p = 0.0099). On harmless prompts the same change moves it from 0 to 0.005."
    )


@pytest.mark.parametrize(("causal", "answer"), [(True, "Yes,"), (False, "No,"), (None, "Not d")])
def test_the_answer_to_the_causal_check_is_that_of_the_results(written, results, causal, answer):
    results["causal"]["causal"] = causal
    assert f"Do the selected experts matter? {answer}" in text_of(written())


def test_a_causal_check_that_was_not_run_says_why(written, results):
    results["causal"] |= {"observed": None, "null": [], "sets": [], "sentence": "No refusal."}
    assert "matter? Not measured. No refusal." in text_of(written())


def test_spans_that_disagree_are_said_loudly(written):
    document = written()
    assert 'class="note loud"' in document
    assert "topic-driven on user and prompt tokens; harm-driven on last tokens" in document


def test_a_note_that_repeats_the_labels_is_not_said_twice(written):
    text = text_of(written(verdict_note="It depends: topic_driven on user, harm_driven on last."))
    assert "It depends" not in text
    assert "The spans disagree" in text


def test_another_note_is_said_beside_it(written):
    assert "Only 40 prompts." in text_of(written(verdict_note="Only 40 prompts."))


def test_the_planted_truth_is_compared_in_its_own_words(written, results):
    results["truth"]["sentence"] = "Both planted experts were found."
    text = text_of(written())
    assert "truth Both planted experts were found. safety experts L5E8, L5E9 precision" in text


def test_spans_that_agree_are_not_said_to_disagree(written):
    document = written(verdicts=dict.fromkeys(("user", "prompt", "last"), "topic_driven"))
    assert 'class="note loud"' not in document
    assert "disagree" not in text_of(document)


def test_an_organism_is_said_to_be_no_evidence(written, results):
    results["model"]["card"].pop("disclaimer")
    assert "no evidence about real models" in text_of(written())


def test_a_real_model_has_no_disclaimer_of_an_organism(written, results):
    results["model"]["card"] = None
    assert "Not a real model" not in text_of(written(truth=None))


def test_what_was_not_measured_is_said_and_the_rest_still_written(written, results):
    for row in results["experts"]:
        row |= dict.fromkeys(("attribution", "ablation_effect", "null_quantile", "p_adjusted"))
    text = text_of(
        written(causal=None, truth=None, decomposition=[], p_values={}, method=None, versions=None)
    )
    assert "Do the selected experts matter? Not measured." in text
    assert "layer by layer Not measured." in text
    assert "topic explains not measured" in text
    assert not re.search(r"\b(None|nan|undefined)\b", text)


def test_a_report_without_a_record_says_so(results, tmp_path):
    document = write_report(results, None, tmp_path / "r.html").read_text(encoding="utf-8")
    assert "The tokens an expert works on Not measured." in text_of(document)
    assert data_of(document)["tokens"] is None


def test_the_data_behind_the_figures_are_those_of_the_results(written, results):
    data = data_of(written())
    for row in results["experts"]:
        shown = data["experts"][f"L{row['layer']}E{row['expert']}"]
        # Four digits are kept of what is told in words, six of what is drawn.
        assert shown["effect"] == pytest.approx(row["effect"], rel=5e-4)
        grid = data["map"]["traces"]["effect"]["z"]
        drawn = grid[[1, 2, 4, 5].index(row["layer"])][row["expert"]]
        assert drawn == pytest.approx(row["effect"], rel=5e-6)
    assert data["map"]["traces"]["effect"]["zmin"] == -data["map"]["traces"]["effect"]["zmax"]


def test_text_of_others_is_escaped_everywhere(written, results):
    evil = "<img src=x onerror=alert(1)>"
    results["model"] |= {"id": evil, "dtype": evil, "card": {"disclaimer": evil}}
    results["prompts"] |= {"topics": [evil], "source": evil, "warnings": [evil]}
    results["reasons"]["user"] = evil
    results["causal"]["experts"] = [evil]
    results["causal"]["sets"][0]["experts"] = ["<img>"]
    results["causal"]["sets"][1] |= {"experts": [evil] * 2, "name": evil}
    document = written(verdict_note=evil, method={evil: evil}, versions={evil: evil})
    assert "<img" not in document
    assert document.count("&lt;img src=x onerror=alert(1)&gt;") >= 10


def test_an_unknown_verdict_cannot_leave_its_attribute(written):
    document = written(verdict='x" onload="alert(1)')
    assert 'onload="' not in document


def test_the_page_forbids_requests_and_names_no_address(written):
    document = written()
    assert f'<meta http-equiv="Content-Security-Policy" content="{SECURITY_POLICY}">' in document
    assert "connect-src 'none'" in SECURITY_POLICY
    assert not re.search(r"https?://", document)
    assert not re.search(r"<(link|img|iframe|object|embed)\b|@import|url\(", document)


def test_each_library_is_there_once(results, record, tmp_path):
    path = write_report(results, record, tmp_path / "raw.html", compress=False)
    document = path.read_text(encoding="utf-8")
    assert document.count(circuitsvis_script()[:80]) == 1
    assert document.count(plotly_script()[:80]) == 1


def test_the_report_is_small_enough_to_send(written):
    assert len(written().encode()) < 3_500_000


def test_the_same_results_give_the_same_bytes(written):
    assert written() == written()


def test_an_older_report_is_kept_unless_told(results, record, tmp_path):
    path = tmp_path / "report.html"
    path.write_text("older", encoding="utf-8")
    with pytest.raises(ResultExistsError, match="force=True"):
        write_report(results, record, path)
    assert path.read_text(encoding="utf-8") == "older"
    assert [entry.name for entry in tmp_path.iterdir()] == ["report.html"]


def test_an_unknown_schema_is_refused(results, tmp_path):
    with pytest.raises(ResultError, match="schema_version 9; this report knows 1"):
        write_report(results | {"schema_version": 9}, None, tmp_path / "r.html")


def test_results_that_lack_a_part_are_refused_by_name(results, tmp_path):
    del results["verdict"], results["spans"]
    with pytest.raises(ResultError, match="The results lack spans, verdict"):
        write_report(results, None, tmp_path / "r.html")
    assert not list(tmp_path.iterdir())


def test_every_factor_has_a_twin_on_dark_pages():
    assert {look["colour"] for look in FACTORS.values()} <= set(ON_DARK)


def test_an_ablation_that_changes_harmless_answers_is_said_to(written, results):
    spoils = {"causal": True, "specific": False, "texts": {"harmless_changed": 0.29}}
    text = text_of(written(causal=results["causal"] | spoils))
    assert "But harmless answers change, too." in text
    assert "It changes 29.0% of the answers to harmless prompts." in text
    keeps = {"causal": True, "specific": True, "texts": {"harmless_changed": 0.0}}
    assert "But harmless answers change" not in text_of(written(causal=results["causal"] | keeps))
