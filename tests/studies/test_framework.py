import json
import re

import numpy as np
import pandas as pd
import pytest

from moe_interp.errors import MoEInterpError, ResultExistsError
from moe_interp.experts import ExpertSet
from moe_interp.scores import Scores
from moe_interp.studies import STUDIES, find_study, study_table
from moe_interp.studies._causal import rank_of_truth, said_of_ranks, unit_means

NAME = "steermoe2025"


def whole_study(test):
    """Mark what needs a whole study, so that one worker makes it once."""
    return pytest.mark.long(pytest.mark.xdist_group("study-steermoe")(test))


def test_every_study_says_paper_claim_and_where_its_formulas_come_from():
    table = study_table()
    assert list(table["study"]) == list(STUDIES)
    assert not (table == "").any().any()
    sources = ("read in full", "read in code", "abstract", "secondary notes", "reconstruction")
    for study in STUDIES.values():
        assert re.fullmatch(r"\d{4}\.\d{5}", study.arxiv)
        for source in study.status.values():
            assert any(known in source for known in sources), source
        assert study.run.__name__ == study.name
        assert study.arxiv in study.run.__doc__
        assert set(study.to_dict()) == {"name", "paper", "arxiv", "claim", "status", "adds"}


def test_a_study_that_is_not_there_is_named_with_those_that_are():
    with pytest.raises(
        MoEInterpError, match=r"There is no study 'siddiki'. Studies: .*siddiky2026"
    ):
        find_study("siddiki")


@whole_study
def test_a_result_is_written_whole_and_survives_json(study, tmp_path):
    found = study(NAME, "topic")
    found.write(tmp_path / "out")
    written = json.loads((tmp_path / "out" / "results.json").read_text())
    assert written == json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert written["study"] == NAME
    assert written["status"] == dict(STUDIES[NAME].status)
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"results.json", "report.html", "experts.csv", "arms.csv"}
    table = pd.read_csv(tmp_path / "out" / "experts.csv")
    np.testing.assert_allclose(table["risk_difference"], found.to_frame()["risk_difference"])
    assert list(pd.read_csv(tmp_path / "out" / "arms.csv")["name"]) == [a.name for a in found.arms]


@whole_study
def test_the_report_holds_every_finding_and_asks_nothing_of_the_network(study, tmp_path):
    found = study(NAME, "harm")
    found.write(tmp_path)
    page = (tmp_path / "report.html").read_text()
    assert "default-src 'none'" in page
    assert not re.search(r'(src|href)="(https?:)?//', page)
    for answer in found.answers:
        assert answer.split(":")[0] in page
    assert page.count('class="plot"') == len(found.figures())
    assert "Our reconstruction" in page
    assert found.model["card"]["disclaimer"].split(".")[0] in page


@whole_study
def test_an_older_result_stays_unless_forced(study, tmp_path):
    found = study(NAME, "topic")
    (tmp_path / "results.json").write_text("old")
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ResultExistsError, match=r"already holds a result \(results.json\)"):
        found.write(tmp_path)
    assert (tmp_path / "results.json").read_text() == "old"
    found.write(tmp_path, force=True)
    assert json.loads((tmp_path / "results.json").read_text())["study"] == NAME
    assert (tmp_path / "notes.txt").read_text() == "mine"
    with pytest.raises(ResultExistsError, match="is a file; a study needs a folder"):
        found.write(tmp_path / "notes.txt", force=True)


@whole_study
def test_figures_are_the_maps_and_the_changes(study):
    found = study(NAME, "harm")
    assert set(found.figures()) == {
        *found.maps,
        "Changes beside random experts matched on layer and use",
    }


@whole_study
def test_the_summary_names_the_reconstructions(study):
    said = study(NAME, "harm").summary()
    assert "Our reconstruction, the paper's own formula not being at hand: pairs of" in said
    assert "arXiv 2509.09660" in said


@whole_study
def test_an_unknown_change_is_named_with_those_that_are(study):
    with pytest.raises(KeyError, match=r"There is no arm 'ban'\. Arms: deactivate_positive"):
        study(NAME, "harm").arm("ban")


@whole_study
def test_p_values_are_corrected_for_all_changes(study):
    arms = study(NAME, "harm").arms
    smallest = min(arms, key=lambda arm: arm.null.p_value)
    assert smallest.p_holm == pytest.approx(min(1, smallest.null.p_value * len(arms)))
    assert all(arm.p_holm >= arm.null.p_value for arm in arms)


@whole_study
def test_reversals_are_what_moves_against_the_intention(study):
    found = study(NAME, "harm")
    lowering, raising = found.arm("deactivate_positive"), found.arm("activate_positive")
    assert (lowering.raises, raising.raises) == (False, True)
    assert lowering.reversals == lowering.outcomes.gained
    assert raising.reversals == raising.outcomes.lost


@whole_study
def test_the_same_seed_gives_the_same_numbers(study, organism, prompts):
    again = STUDIES[NAME].run(organism("topic"), prompts, rng=np.random.default_rng(0), n_null=39)
    assert again.to_dict() == study(NAME, "topic").to_dict()


def test_where_nothing_is_planted_no_rank_is_told():
    rng = np.random.default_rng(0)
    scores = Scores.of_array("score", "unit", rng.random((2, 4)), layers=(2, 5))
    assert rank_of_truth(scores, ExpertSet(), use=scores, rng=rng) is None
    assert said_of_ranks({"score": None}) == []
    found = rank_of_truth(scores, ExpertSet(["L2E0"]), use=scores, rng=rng)
    assert said_of_ranks({"score": found}) == [f"Planted experts: {found.summary()}"]


def test_units_average_their_prompts(prompts):
    values = np.arange(len(prompts), dtype=float)[:, None]
    harmful, harmless = unit_means(values, prompts)
    wordings = np.array(prompts.wordings)
    assert len(harmful) == len(set(prompts.wordings))
    expected = {values[(wordings == w) & prompts.harm].mean() for w in set(prompts.wordings)}
    assert set(harmful.ravel().tolist()) == expected
    assert set(harmless.ravel().tolist()) == {
        values[(wordings == w) & ~prompts.harm].mean() for w in set(prompts.wordings)
    }
