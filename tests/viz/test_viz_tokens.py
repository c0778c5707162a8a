import re

import numpy as np
import pytest

from moe_interp import Expert
from moe_interp.errors import ResultExistsError
from moe_interp.viz import show_tokens
from moe_interp.viz._circuitsvis import circuitsvis_script

HOSTILE = ["<img src=x onerror=alert(1)>", "</script>", "<bos>", "plain"]


def test_one_prompt_and_several_prompts_are_both_understood():
    assert show_tokens(["a", "b"], [0.0, 1.0]).prompts == (("a", "b"),)
    assert show_tokens([["a"], ["b", "c"]], [[0.5], [0.0, 1.0]]).prompts == (("a",), ("b", "c"))


def test_all_prompts_share_one_symmetric_bound():
    view = show_tokens([["a"], ["b"]], [[0.5], [-2.0]])
    assert view.bound == 2.0


def test_an_array_of_values_is_understood():
    assert show_tokens(["a", "b"], np.array([0.5, -1.0])).values == ((0.5, -1.0),)


def test_values_of_another_length_are_refused():
    with pytest.raises(ValueError, match="got 2 tokens and 1 values"):
        show_tokens(["a", "b"], [1.0])


def test_another_number_of_prompts_is_refused():
    with pytest.raises(ValueError, match="2 prompts and `values` has 1"):
        show_tokens([["a"], ["b"]], [[1.0]])


def test_another_number_of_labels_is_refused():
    with pytest.raises(ValueError, match="`labels` has 2 entries for 1 prompts"):
        show_tokens(["a"], [1.0], labels=["x", "y"])


def test_a_value_that_is_not_finite_is_refused():
    with pytest.raises(ValueError, match="must be finite"):
        show_tokens(["a"], [float("inf")])


def test_an_expert_of_a_record_shows_its_routing_weights(record):
    data = record.dataset
    layer, expert = 4, int(data["expert_index"].values[0, 2, 1])
    view = show_tokens(record, Expert(layer, expert), prompts=[0])
    chosen = data["expert_index"].values[:, 2] == expert
    weights = np.where(chosen, data["routing_weights"].values[:, 2], 0).sum(-1)
    np.testing.assert_allclose(view.values[0], weights[data["prompt_index"].values == 0])
    assert view.name == f"routing weight of L4E{expert}"


def test_a_record_shows_its_first_four_prompts_by_default(record):
    assert len(show_tokens(record, "L1E0").prompts) == 4


def test_a_layer_that_the_record_lacks_is_refused_with_those_it_has(record):
    with pytest.raises(ValueError, match=r"no layer 3\. Its layers: 1, 2, 4, 5"):
        show_tokens(record, "L3E0")


def test_a_prompt_that_the_record_lacks_is_refused(record):
    with pytest.raises(ValueError, match=r"`prompts` must lie in 0 to 47, got \[99\]"):
        show_tokens(record, "L1E0", prompts=[99])


def test_a_notebook_gets_a_frame_over_a_static_view():
    html = show_tokens(HOSTILE, [0.0, 1.0, -0.5, 0.2])._repr_html_()
    static, frame = html.split("<iframe", 1)
    assert 'sandbox="allow-scripts"' in frame
    assert "&lt;bos&gt;" in static
    assert "<img" not in static
    assert "</script>" not in static


def test_the_page_holds_one_copy_of_the_script_and_no_address():
    page = show_tokens([HOSTILE, HOSTILE], [[0.1] * 4] * 2).to_html(compress=False)
    assert page.count(circuitsvis_script()[:60]) == 1
    own = page.replace(circuitsvis_script().replace("</script", "<\\/script"), "")
    assert not re.search(r"""(src|href)=["']?\s*(https?:)?//""", own)


def test_the_packed_page_is_small():
    assert len(show_tokens(["a"], [1.0]).to_html()) < 520_000


def test_a_view_does_not_replace_a_file_unless_told(tmp_path):
    view, path = show_tokens(["a"], [1.0]), tmp_path / "view.html"
    path.write_text("older", encoding="utf-8")
    with pytest.raises(ResultExistsError, match="already exists"):
        view.save(path)
    assert path.read_text(encoding="utf-8") == "older"
    view.save(path, force=True)
    assert path.read_text(encoding="utf-8").startswith("<!doctype html>")
