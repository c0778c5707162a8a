import base64
import gzip
import json
import re

import pandas as pd
import plotly.graph_objects as go
import pytest

from moe_interp.errors import ResultExistsError
from moe_interp.viz import Part, write_document


@pytest.fixture
def written(tmp_path):
    """The text of a page with one part."""

    def write(part, **options):
        words = {"kicker": "Study", "title": "a <b>model</b>", "facts": ["4 <i>prompts</i>"]}
        path = write_document(tmp_path / "page.html", parts=[part], **(words | options))
        return path.read_text(encoding="utf-8")

    return write


def test_every_text_is_escaped(written):
    table = pd.DataFrame({"<col>": ["<img src=x onerror=alert(1)>"]})
    page = written(
        Part("<h1>", ["<script>alert(1)</script>"], tables={"<table>": table}), note="<u>note</u>"
    )
    for raw in ("<b>model", "<i>prompts", "<h1>", "<script>alert", "<img", "<col>", "<u>note"):
        assert raw not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page


def test_a_long_table_is_cut_and_says_so(written):
    rows = pd.DataFrame({"row": range(41)})
    page = written(Part("Tables", tables={"experts": rows}))
    assert "experts (first 40 of 41)" in page
    assert "<td>39</td>" in page
    assert "<td>40</td>" not in page
    assert (
        "first"
        not in written(Part("Tables", tables={"experts": rows[:40]}), force=True, compress=False)
        .split("<main>")[1]
        .split("</main>")[0]
    )


def test_each_figure_has_its_place_and_its_data(written):
    figures = {
        name: go.Figure(go.Scatter(x=[0], y=[number]))
        for number, name in enumerate(["first", "second"])
    }
    page = written(Part("Figures", figures=figures))
    packed = re.search(r'id="data">(.*?)</script>', page)[1]
    data = json.loads(gzip.decompress(base64.b64decode(packed)))
    assert list(data["figures"]) == re.findall(r'id="figure-(\w+)"', page) == ["f0", "f1"]
    assert [one["data"][0]["y"] for one in data["figures"].values()] == [[0], [1]]
    assert "default-src 'none'" in page


def test_an_older_page_stays_unless_forced(written):
    written(Part("One"))
    with pytest.raises(ResultExistsError, match="already exists"):
        written(Part("Two"))
    assert ">Two<" in written(Part("Two"), force=True)
