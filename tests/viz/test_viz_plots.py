import math

import pandas as pd
import pytest

from moe_interp.viz import plot_causal, plot_decomposition, plot_experts


def points(figure, name, panel=0):
    return [trace for trace in figure.data if trace.name == name][panel]


def test_the_map_holds_the_effects_of_the_results(results):
    heat = plot_experts(results).data[0]
    for row in results["experts"]:
        assert heat.z[[1, 2, 4, 5].index(row["layer"])][row["expert"]] == row["effect"]


def test_a_two_sided_map_is_symmetric_around_zero_with_positive_blue(results):
    heat = plot_experts(results, quantity="attribution").data[0]
    assert heat.zmin == -heat.zmax
    assert heat.zmax == max(abs(row["attribution"]) for row in results["experts"])
    assert heat.colorscale[-1][1] == "#2166ac"


def test_tiny_effects_are_not_painted_in_full_colour(results):
    rows = [row | {"effect": row["effect"] / 1000} for row in results["experts"]]
    assert plot_experts(rows).data[0].zmax == 0.05


def test_a_map_of_zeros_can_be_drawn(results):
    rows = [row | {"effect": 0.0} for row in results["experts"]]
    assert plot_experts(rows).data[0].zmax > 0


def test_the_map_of_evidence_is_minus_the_logarithm_of_adjusted_p(results):
    rows = [{"layer": 0, "expert": 0, "p_adjusted": 0.001}, {"layer": 0, "expert": 1}]
    heat = plot_experts([row | {"effect": 0.0} for row in rows], quantity="-log10 p_adjusted")
    assert heat.data[0].z[0][0] == pytest.approx(3.0)
    assert heat.data[0].z[0][1] is None


def test_what_was_not_measured_stays_blank(results):
    heat = plot_experts(results, quantity="ablation_effect").data[0]
    assert heat.z[3][8] == -3.1
    assert heat.z[0][0] is None


def test_nan_stays_blank(results):
    rows = [row | {"effect": float("nan")} for row in results["experts"][1:]]
    heat = plot_experts([results["experts"][0], *rows]).data[0]
    assert heat.z[0][1] is None


def test_marks_show_significance_selection_and_planted_experts(results):
    figure = plot_experts(results, truth=["L5E8"])
    marks = {trace.name: list(zip(trace.x, trace.y, strict=True)) for trace in figure.data[1:]}
    assert marks == {
        "adjusted p < 0.05": [(14, 1), (15, 1)],
        "selected": [(8, 3), (9, 3)],
        "planted": [(8, 3)],
    }


def test_rings_and_crosses_have_a_light_line_beneath_so_that_dark_cells_show_them(results):
    figure = plot_experts(results, truth=["L5E3"])
    marks = [trace for trace in figure.data if trace.type == "scatter"]
    assert [(mark.name, mark.showlegend) for mark in marks] == [
        ("adjusted p < 0.05", None), ("selected", False), ("selected", None),
        ("planted", False), ("planted", None),
    ]  # fmt: skip
    for below, mark in zip(marks[1::2], marks[2::2], strict=True):
        assert (below.x, below.y, below.marker.symbol) == (mark.x, mark.y, mark.marker.symbol)
        assert below.marker.color == "#ffffff"
        assert mark.marker.color != "#ffffff"
        assert below.marker.line.width > mark.marker.line.width


def test_a_table_of_experts_is_understood():
    table = pd.DataFrame({"layer": [3, 3], "expert": [0, 1], "attribution": [0.5, -1.0]})
    assert plot_experts(table, quantity="attribution").data[0].zmax == 1.0


def test_a_quantity_that_nobody_measured_is_refused(results):
    rows = [row | {"attribution": None} for row in results["experts"]]
    with pytest.raises(ValueError, match="No expert has a value of 'attribution'"):
        plot_experts(rows, quantity="attribution")


def test_a_table_without_the_column_is_refused_with_those_it_has():
    with pytest.raises(ValueError, match="got columns layer, expert"):
        plot_experts([{"layer": 0, "expert": 0}])


def test_shares_and_intervals_are_those_of_the_results(results):
    figure = plot_decomposition(results, spans=["last"])
    rows = [row for row in results["decomposition"] if row["span"] == "last"]
    harm = points(figure, "harm")
    assert list(harm.y) == [row["harm"] for row in rows]
    assert harm.error_y.array[0] == pytest.approx(rows[0]["harm_high"] - rows[0]["harm"])
    assert harm.error_y.arrayminus[0] == pytest.approx(rows[0]["harm"] - rows[0]["harm_low"])


def test_the_grey_band_is_that_of_random_routers(results):
    band = plot_decomposition(results, spans=["user"]).data[0]
    row = results["decomposition"][0]
    assert band.base[0] == row["topic_random_low"]
    assert band.base[0] + band.y[0] == pytest.approx(row["topic_random_high"])


def test_every_span_has_its_panel(results):
    figure = plot_decomposition(results)
    assert [note.text for note in figure.layout.annotations] == [
        "user tokens",
        "prompt tokens",
        "last tokens",
    ]


def test_layers_keep_their_absolute_numbers_and_the_pool_stands_apart(results):
    axis = plot_decomposition(results, spans=["user"]).layout.xaxis
    assert list(axis.ticktext) == ["1", "2", "4", "5", "all"]
    assert axis.tickvals[4] - axis.tickvals[3] > axis.tickvals[1] - axis.tickvals[0]


def test_shares_without_intervals_or_random_routers_are_still_drawn():
    rows = [{"span": "user", "layer": 0, "topic": 0.5, "harm": math.nan, "interaction": None}]
    figure = plot_decomposition(rows)
    assert points(figure, "topic").y == (0.5,)
    assert points(figure, "harm").y == (None,)


def test_an_unknown_span_is_refused_with_those_there_are(results):
    with pytest.raises(ValueError, match="`spans` must be among user, prompt, last"):
        plot_decomposition(results, spans=["system"])


def test_an_unknown_factor_is_refused(results):
    with pytest.raises(ValueError, match="`factors` must be among topic, harm, interaction"):
        plot_decomposition(results, factors=["cue"])


def test_the_causal_plot_holds_null_observed_and_baseline(results):
    figure = plot_causal(results)
    causal = results["causal"]
    assert list(points(figure, "matched random sets").x) == causal["null"]
    assert set(points(figure, "this set taken out").x) == {causal["observed"]}
    assert set(points(figure, "model untouched").x) == {causal["baseline"]}


def test_the_selected_set_stands_above_the_frequency_contrast(results):
    results["causal"]["sets"].reverse()
    titles = [note.text for note in plot_causal(results["causal"]).layout.annotations]
    assert titles == ["selected experts (L5E8, L5E9)", "frequency-contrast experts (L2E14, L2E15)"]


def test_a_check_without_listed_sets_is_one_panel(results):
    del results["causal"]["sets"]
    assert len(plot_causal(results).layout.annotations) == 1


def test_a_causal_check_without_a_null_is_refused(results):
    results["causal"] |= {"null": None, "sets": []}
    with pytest.raises(ValueError, match="Run the causal check first"):
        plot_causal(results)
