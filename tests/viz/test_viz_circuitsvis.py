import json
from types import SimpleNamespace

import pytest

from moe_interp.viz import _circuitsvis as cv

HOSTILE = ["<img/src=x onerror=alert(1)>", "</script>", "<bos>", "&amp;", "<!--", "a & b"]


@pytest.fixture
def bundle(tmp_path, monkeypatch):
    """Pretend that circuitsvis ships another script."""

    def ship(text):
        path = tmp_path / "iife.js"
        path.write_text(text, encoding="utf-8")
        installed = SimpleNamespace(locate_file=lambda _: path)
        monkeypatch.setattr(cv, "distribution", lambda _: installed)
        cv.circuitsvis_script.cache_clear()

    yield ship
    cv.circuitsvis_script.cache_clear()


@pytest.mark.parametrize("token", HOSTILE)
def test_no_tag_or_entity_survives_in_a_token(token):
    safe = cv.safe_token(token)
    assert all(safe[i + 1] == "\u2060" for i, sign in enumerate(safe) if sign in "<&")


@pytest.mark.parametrize("token", HOSTILE)
def test_a_token_reads_as_before(token):
    assert cv.safe_token(token).replace("\u2060", "") == token


def test_json_in_a_script_cannot_end_it_and_reads_back():
    value = {"tokens": [*HOSTILE, "\u2028\u2029"]}
    text = cv.to_js(value)
    assert not set("<\u2028\u2029") & set(text)
    assert json.loads(text) == value


def test_json_refuses_a_number_that_is_not_finite():
    with pytest.raises(ValueError, match="not JSON compliant"):
        cv.to_js([float("nan")])


def test_bounds_lie_symmetrically_around_zero():
    props = cv.coloured_tokens(["a", "b"], [-0.25, 4.0])
    assert (props["minValue"], props["maxValue"]) == (-4.0, 4.0)


def test_values_of_zero_keep_a_bound_above_zero():
    props = cv.coloured_tokens(["a", "b"], [0.0, 0.0])
    assert props["maxValue"] > 0 > props["minValue"]


@pytest.mark.parametrize("value", [float("inf"), -float("inf")])
def test_a_value_that_is_not_finite_is_refused_by_its_place(value):
    with pytest.raises(ValueError, match=r"must be finite, got .* at token 1"):
        cv.coloured_tokens(["a", "b"], [0.0, value])


@pytest.mark.parametrize("bound", [0.0, -1.0, float("nan")])
def test_a_bound_that_is_not_positive_is_refused(bound):
    with pytest.raises(ValueError, match="`bound` must be a positive number"):
        cv.symmetric_bound([1.0], bound)


def test_tokens_and_values_of_different_length_are_refused():
    with pytest.raises(ValueError, match="got 2 tokens and 1 values"):
        cv.coloured_tokens(["a", "b"], [1.0])


def test_the_installed_script_is_the_one_that_was_checked():
    assert cv.script_version() == "1.43.3"


def test_the_script_defines_its_global_and_has_no_source_map():
    script = cv.circuitsvis_script()
    assert script.startswith('"use strict";var CircuitsVis=')
    assert script.endswith("window.CircuitsVis=CircuitsVis;")
    assert "sourceMappingURL=iife.js.map" not in script


def test_another_script_is_refused(bundle):
    bundle("import React from 'elsewhere'")
    with pytest.raises(RuntimeError, match=r"expected .*use strict.*CircuitsVis"):
        cv.circuitsvis_script()


def test_a_changed_script_has_no_known_version(bundle):
    bundle('"use strict";var CircuitsVis=1')
    assert cv.script_version() is None


def test_a_missing_script_names_the_package(tmp_path, monkeypatch):
    installed = SimpleNamespace(locate_file=lambda name: tmp_path / name)
    monkeypatch.setattr(cv, "distribution", lambda _: installed)
    cv.circuitsvis_script.cache_clear()
    with pytest.raises(RuntimeError, match="pip install 'circuitsvis"):
        cv.circuitsvis_script()
    cv.circuitsvis_script.cache_clear()
