import math
from collections import Counter
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from moe_interp.experts import Expert
from moe_interp.interventions import Effect
from moe_interp.prompts import Prompt, PromptSet
from moe_interp.scores import AblationCurve, Scores, compare
from moe_interp.stats._transfer_calibration import Calibration
from moe_interp.viz import (
    plot_calibration,
    plot_compare,
    plot_dose,
    plot_paths,
    plot_volcano,
)


def test_a_volcano_places_every_expert_by_effect_and_evidence(results):
    figure = plot_volcano(results)
    drawn = {
        label: (x, y)
        for trace in figure.data
        for label, x, y in zip(trace.customdata, trace.x, trace.y, strict=True)
    }
    assert len(drawn) == len(results["experts"])
    for row in results["experts"]:
        x, y = drawn[f"L{row['layer']}E{row['expert']}"]
        assert x == row["effect"]
        assert y == pytest.approx(-math.log10(row["q"]), abs=1e-12)


def test_a_volcano_tells_the_sure_from_the_others_and_names_them(results):
    figure = plot_volcano(results)
    sure, unsure = figure.data
    assert set(sure.customdata) == {"L2E14", "L2E15"}
    assert "L5E8" in unsure.customdata
    assert {note.text for note in figure.layout.annotations} == {"L2E14", "L2E15"}
    assert figure.layout.shapes[0].y0 == pytest.approx(-math.log10(0.05))


def test_a_volcano_colours_by_sign():
    rows = [{"layer": 0, "expert": e, "effect": (-1) ** e, "q": 0.01} for e in range(2)]
    assert list(plot_volcano(rows).data[0].marker.color) == ["#2166ac", "#b2182b"]


def test_a_volcano_without_both_numbers_says_what_is_missing():
    rows = [{"layer": 0, "expert": 0, "effect": None, "q": 0.1}]
    with pytest.raises(ValueError, match=r"No expert has both 'effect' and 'q'.*Measure both"):
        plot_volcano(rows)


def comparison():
    rng = np.random.default_rng(0)
    use = rng.beta(1, 7, size=(9, 2, 8))
    cause = use + rng.normal(0, 0.05, size=use.shape)
    scores = (
        Scores.of_array("use", "fraction", use, layers=(3, 5)),
        Scores.of_array("cause", "nats", cause, layers=(3, 5)),
    )
    return compare(*scores, rng=rng, n_resamples=99)


def test_count_against_cause_shows_both_scores_and_their_correlation():
    found = comparison()
    figure = plot_compare(found, named=["L5E7"])
    frame = found.to_frame().set_index(["layer", "expert"])
    for trace in figure.data:
        for label, x, y in zip(trace.customdata, trace.x, trace.y, strict=True):
            one = Expert.parse(label)
            row = frame.loc[one.layer, one.expert]
            assert (x, y) == (row["use"], row["cause"])
    assert list(figure.data[0].customdata) == ["L5E7"]
    said = [note.text for note in figure.layout.annotations]
    rho = stats.spearmanr(frame["use"], frame["cause"]).statistic
    assert any(f"rank correlation {rho:.2f} (95% interval" in text for text in said)


def test_count_against_cause_needs_two_experts():
    with pytest.raises(ValueError, match="1 experts have both 'a' and 'b'; at least 2"):
        plot_compare([{"layer": 0, "expert": 0, "a": 1.0, "b": 2.0}])


def effect(change):
    return Effect(
        prompts=PromptSet(Prompt(text) for text in ("one", "two", "three")),
        metric="refusal_log_odds",
        unit="nats",
        interventions=("x",),
        baseline=np.zeros(3),
        intervened=change * np.array([0.5, 1.0, 1.5]),
    )


def test_doses_of_effects_are_ordered_and_have_t_intervals():
    figure = plot_dose({1.0: effect(-2.0), 0.5: effect(-1.0)})
    (trace,) = figure.data
    assert trace.x == (0.5, 1.0)
    assert trace.y == pytest.approx((-1.0, -2.0))
    values = -2.0 * np.array([0.5, 1.0, 1.5])
    low, high = stats.t.interval(0.95, 2, values.mean(), stats.sem(values))
    assert trace.error_y.array[1] == pytest.approx(high + 2.0)
    assert trace.error_y.arrayminus[1] == pytest.approx(-2.0 - low)
    assert figure.layout.yaxis.title.text == "change of refusal log odds (nats)"


def test_an_ablation_curve_is_drawn_over_its_random_orders():
    null = np.array([[1.0, 0.9, 0.8], [1.0, 0.7, 0.6]])
    curve = AblationCurve((Expert(0, 1), Expert(0, 2)), np.array([1.0, 0.4, 0.0]), null, "r", 0.0)
    band, line = plot_dose(curve).data
    assert line.y == (1.0, 0.4, 0.0)
    low, high = np.quantile(null, [0.025, 0.975], axis=0)
    assert band.y == pytest.approx((*low, *high[::-1]))
    assert band.x == (0, 1, 2, 2, 1, 0)


def test_several_curves_have_their_own_markers():
    rows = [{"dose": d, "effect": d, "set": s} for s in "ab" for d in (1, 0)]
    one, other = plot_dose(rows, series="set").data
    assert (one.name, other.name) == ("a", "b")
    assert one.marker.symbol != other.marker.symbol
    with pytest.raises(ValueError, match="`series` has 5 values; 4 curves can be told apart"):
        plot_dose([{"dose": 0, "effect": 0, "set": s} for s in "abcde"], series="set")


def test_calibration_has_wilson_intervals_of_prompts():
    rng = np.random.default_rng(0)
    probability = rng.random(300)
    found = Calibration("platt", 0.2, 0.25, rng.random(300) < probability, probability)
    diagonal, points = plot_calibration({"routing": found}).data
    assert (diagonal.x, diagonal.y) == ((0, 1), (0, 1))
    table = found.to_frame()
    assert points.x == pytest.approx(table["predicted"])
    for i, row in table.iterrows():
        n = int(row["n_prompts"])
        wilson = stats.binomtest(round(row["harmful"] * n), n).proportion_ci(method="wilson")
        assert points.y[i] + points.error_y.array[i] == pytest.approx(wilson.high, abs=1e-6)
        assert points.y[i] - points.error_y.arrayminus[i] == pytest.approx(wilson.low, abs=1e-6)
    assert points.name == "routing (Brier score 0.200)"


def test_too_many_calibrations_are_refused():
    rows = [{"predicted": 0.5, "harmful": 0.5, "n_prompts": 2}]
    with pytest.raises(ValueError, match="There are 5 calibrations; 4 can be told apart"):
        plot_calibration(dict.fromkeys("abcde", pd.DataFrame(rows)))


def counted(record, rows, pair):
    """Count, one token at a time, the ways between first choices."""
    index = record.dataset["expert_index"].values[:, :, 0].tolist()
    return Counter((index[t][pair], index[t][pair + 1]) for t in rows)


def segments(trace):
    points = list(zip(trace.x, trace.y, strict=True))
    return {(*points[i], *points[i + 1]) for i in range(0, len(points), 3)}


def test_paths_draw_the_widest_ways_between_first_choices(record):
    figure = plot_paths(record, n_ways=3)
    lines = [trace for trace in figure.data if trace.mode == "lines"]
    drawn = set().union(*map(segments, lines))
    assert len(drawn) == 9
    for pair in range(3):
        ways = counted(record, range(record.dataset.sizes["token"]), pair)
        least = sorted(ways.values())[-3]
        for x0, y0, x1, y1 in drawn:
            if x0 == pair:
                assert x1 == pair + 1
                assert ways[y0, y1] >= least


def test_wider_lines_are_taken_by_more_tokens(record):
    figure = plot_paths(record, n_ways=40)
    every = range(record.dataset.sizes["token"])
    by_width = sorted(
        (
            trace.line.width,
            [counted(record, every, x0)[y0, y1] for x0, y0, _, y1 in segments(trace)],
        )
        for trace in figure.data
        if trace.mode == "lines"
    )
    assert len(by_width) > 1
    for (_, fewer), (_, more) in pairwise(by_width):
        assert max(fewer) <= min(more)


def test_paths_by_harm_split_the_prompts(record):
    figure = plot_paths(record, by_harm=True, span="user", n_ways=1)
    owner = record.dataset["prompt_index"].values
    inside = record.dataset["in_span"].sel(span="user").values
    harm = record.dataset["harm"].values[owner]
    for axis, wanted in (("y", ~harm), ("y2", harm)):
        rows = np.flatnonzero(inside & wanted)
        lines = [t for t in figure.data if t.mode == "lines" and t.yaxis == axis]
        drawn = set().union(*map(segments, lines))
        for x0, y0, _, y1 in drawn:
            ways = counted(record, rows, x0)
            assert ways[y0, y1] == max(ways.values())


@pytest.mark.parametrize("layers", [[1], [1, 3]])
def test_paths_need_two_layers_that_were_recorded(record, layers):
    with pytest.raises(ValueError, match="`layers` must be two or more of 1, 2, 4, 5"):
        plot_paths(record, layers=layers)


def test_paths_of_an_unknown_or_empty_span_are_refused(record):
    with pytest.raises(ValueError, match=r"'answer' was not recorded. Recorded: user, prompt, la"):
        plot_paths(record, span="answer")
    unlabelled = record.dataset.assign_coords(harm=("prompt", np.full(48, np.nan)))
    with pytest.raises(ValueError, match="no token of harmless prompts"):
        plot_paths(SimpleNamespace(dataset=unlabelled), by_harm=True)
