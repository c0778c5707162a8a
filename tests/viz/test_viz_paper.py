"""Figures for papers: the same data, the same bytes, text of others as it is."""

import contextlib
import hashlib
import io
import subprocess
import sys

import numpy as np
import plotly.graph_objects as go
import pytest

from moe_interp.errors import ResultExistsError
from moe_interp.viz import (
    Figure,
    plot_causal,
    plot_decomposition,
    plot_experts,
    plot_paths,
    plot_volcano,
)
from moe_interp.viz._paper import paper_bytes

DRAW = """
import hashlib
from moe_interp.viz import plot_dose, plot_experts
from moe_interp.viz._paper import paper_bytes
rows = [{"layer": 1, "expert": e, "effect": 1 - e / 3, "p_adjusted": 0.01} for e in range(5)]
doses = [{"dose": d, "effect": d, "null_low": -1, "null_high": 1} for d in (0, 1, 2)]
for figure in (plot_experts(rows, truth=["L1E2"]), plot_dose(doses)):
    for kind in ("pdf", "svg"):
        print(hashlib.sha256(paper_bytes(figure, kind, width=6.0)).hexdigest())
"""


@pytest.fixture
def figures(results, record):
    return {
        "map": plot_experts(results, truth=["L5E8"]),
        "shares": plot_decomposition(results),
        "null": plot_causal(results),
        "volcano": plot_volcano(results),
        "paths": plot_paths(record, by_harm=True),
    }


@pytest.mark.long
def test_two_runs_write_the_same_bytes():
    elsewhere = subprocess.run(
        [sys.executable, "-c", DRAW],
        capture_output=True,
        text=True,
        check=True,
        env={"PYTHONHASHSEED": "2", "TZ": "Asia/Tokyo", "PATH": ""},
    )
    here = io.StringIO()
    with contextlib.redirect_stdout(here):
        exec(DRAW, {})
    assert here.getvalue() == elsewhere.stdout
    assert len(set(elsewhere.stdout.split())) == 4


@pytest.mark.long
@pytest.mark.parametrize("kind", ["pdf", "svg"])
def test_every_kind_of_figure_is_written_twice_alike(figures, kind):
    for figure in figures.values():
        one, other = (hashlib.sha256(paper_bytes(figure, kind, width=6.0)).digest() for _ in "ab")
        assert one == other


def test_the_map_on_paper_has_the_same_numbers(figures):
    axes = figures["map"].to_matplotlib().axes[0]
    mesh = axes.collections[0]
    shown = np.ma.filled(mesh.get_array(), np.nan).reshape(4, 16)
    np.testing.assert_array_equal(shown, np.array(figures["map"].data[0].z, dtype=float))
    assert mesh.get_clim() == (figures["map"].data[0].zmin, figures["map"].data[0].zmax)
    assert [text.get_text() for text in axes.get_yticklabels()] == ["1", "2", "4", "5"]


def test_marks_and_intervals_on_paper_are_those_on_screen(figures):
    planted = figures["map"].to_matplotlib().axes[0].collections[-1]
    assert planted.get_offsets().tolist() == [[8.0, 3.0]]
    paper = figures["shares"].to_matplotlib()
    trace = figures["shares"].data[1]
    lines = [c for c in paper.axes[0].collections if type(c).__name__ == "LineCollection"]
    ends = [segment[:, 1].tolist() for segment in lines[0].get_segments()]
    for (low, high), y, up, down in zip(
        ends, trace.y, trace.error_y.array, trace.error_y.arrayminus, strict=True
    ):
        assert (low, high) == pytest.approx((y - down, y + up))


def test_a_null_on_paper_counts_the_same_draws(figures, results):
    axes = figures["null"].to_matplotlib().axes[0]
    assert sum(bar.get_height() for bar in axes.patches) == len(results["causal"]["null"])


def test_panels_keep_their_order_and_titles(figures):
    titles = [axes.get_title(loc="left") for axes in figures["shares"].to_matplotlib().axes]
    assert titles == ["user tokens", "prompt tokens", "last tokens"]


def test_text_in_svg_stays_text_and_dollars_are_no_formula():
    name = "$\\frac$ <b>&"
    figure = plot_experts([{"layer": 0, "expert": 0, name: 1.0}], quantity=name)
    svg = paper_bytes(figure, "svg", width=5.0).decode()
    assert "$\\frac$ &amp;" in svg
    assert "Date" not in svg.split("<defs>")[0]


def test_a_figure_is_written_once_and_only_as_known_kinds(tmp_path, figures):
    path = tmp_path / "new" / "map.pdf"
    figures["map"].save(path)
    assert path.read_bytes().startswith(b"%PDF")
    with pytest.raises(ResultExistsError, match="force=True"):
        figures["map"].save(path)
    figures["map"].save(path, force=True)
    with pytest.raises(ValueError, match=r"written as \.pdf, \.svg or \.png, got .*map\.eps"):
        figures["map"].save(tmp_path / "map.eps")


def test_an_unknown_trace_is_refused():
    with pytest.raises(ValueError, match=r"type 'pie' has no drawing for papers\. Known: h"):
        Figure(go.Pie(values=[1, 2])).to_matplotlib()


def test_a_notebook_gets_an_image_that_needs_no_trust(figures):
    bundle = figures["map"]._repr_mimebundle_()
    assert bundle["application/vnd.plotly.v1+json"]["data"][0]["type"] == "heatmap"
    html = bundle["text/html"]
    assert html.startswith('<img alt="layer by expert" ')
    assert "data:image/svg+xml;base64," in html
    assert "<script" not in html
    assert figures["map"]._ipython_display_ is None
    assert html == figures["map"]._repr_html_()
