import re

import numpy as np
import pandas as pd
import pytest

from moe_interp import Expert, ExpertSet, Prompt, PromptSet
from moe_interp.notebook import Shown, table_html
from moe_interp.scores import Scores, compare
from moe_interp.stats import paired_permutation_test


def test_a_set_of_experts_shows_its_experts_by_layer():
    html = ExpertSet.parse("L7E3,L7E5,L9E12")._repr_html_()
    assert "3 experts in 2 layers" in html
    assert "<td>7</td><td>3, 5</td>" in html
    assert "<td>9</td><td>12</td>" in html


def test_an_empty_set_of_experts_has_no_table():
    html = ExpertSet()._repr_html_()
    assert "0 experts in 0 layers" in html
    assert "<table" not in html


def test_scores_show_the_largest_and_their_table():
    scores = Scores.of_array("use", "fraction", np.array([[0.125, np.nan]]), layers=(7,))
    html = scores._repr_html_()
    assert "largest first" in html
    assert "<td>7</td><td>0</td><td>0.125</td>" in html
    assert "<td>7</td><td>1</td><td>–</td>" in html


def test_tests_and_comparisons_show_their_summary():
    rng = np.random.default_rng(0)
    a = rng.normal(size=(12, 3))
    test = paired_permutation_test(a + 1, a, n_resamples=99, rng=rng)
    assert test.summary().split("\n")[0][:30] in test._repr_html_()
    one = Scores.of_array("one", "nats", rng.normal(size=(5, 1, 8)), layers=(3,))
    other = Scores.of_array("other", "nats", rng.normal(size=(5, 1, 8)), layers=(3,))
    assert "Spearman" in compare(one, other, rng=rng)._repr_html_()


def test_text_of_others_is_escaped():
    evil = "<img src=x onerror=alert(1)>"
    html = PromptSet([Prompt(evil, topic=evil, harm=False)], source=evil)._repr_html_()
    assert "<img" not in html
    assert "&lt;img src=x" in html


def test_nothing_in_it_needs_trust():
    html = Scores.of_array("use", "1", np.ones((2, 3)), layers=(0, 1))._repr_html_()
    assert not re.search(r"<(script|style|iframe|link)\b|\bon\w+=", html)


def test_a_long_table_says_what_it_leaves_out():
    frame = pd.DataFrame({f"c{i}": range(13) for i in range(15)})
    html = table_html(frame)
    assert html.count("<tr>") == 11
    assert html.count("<th ") == 14
    assert "3 more rows and 1 more columns" in html


def test_a_named_index_is_a_column_and_long_cells_are_cut():
    frame = pd.DataFrame({"text": ["x" * 200]}, index=pd.Index([4], name="prompt"))
    html = table_html(frame)
    assert "prompt</th>" in html
    assert "<td>4</td>" in html
    assert f"<td>{'x' * 89}…</td>" in html


def test_what_has_no_summary_shows_its_repr():
    class Bare(Shown):
        def __repr__(self):
            return "<bare>"

    assert "&lt;bare&gt;" in Bare()._repr_html_()


@pytest.mark.parametrize("value", [None, float("nan"), float("inf")])
def test_a_cell_without_a_value_is_a_dash(value):
    assert "<td>–</td>" in table_html(pd.DataFrame({"a": [value]}, dtype=object))


def test_an_expert_set_is_still_light():
    assert not hasattr(ExpertSet([Expert(1, 2)]), "__dict__")
