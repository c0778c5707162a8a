"""What taking the chosen experts out does, against random experts matched on use."""

from collections.abc import Mapping, Sequence
from typing import Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from moe_interp.viz._figure import Figure
from moe_interp.viz._tables import finite
from moe_interp.viz._theme import INK, NULL, OBSERVED, plain_axis, plain_figure

_BINS = 40
SET_NAMES = {
    "selected": "selected experts",
    "frequency_contrast": "frequency-contrast experts",
}


def causal_sets(causal: Mapping[str, Any]) -> list[dict[str, Any]]:
    """List the expert sets that were taken out, the selected one first.

    Args:
        causal: The ``causal`` part of an audit's results.

    Returns:
        One mapping for each set, with its name; the check itself where no sets are listed.
    """
    sets = [dict(causal) | dict(entry) for entry in causal.get("sets") or []]
    if not any(entry.get("name") == "selected" for entry in sets):
        sets = [dict(causal) | {"name": "selected"}, *sets]
    return sorted(sets, key=lambda entry: entry["name"] != "selected")


def set_name(entry: Mapping[str, Any]) -> str:
    """Name a set of experts in words.

    Args:
        entry: One of ``causal_sets``.

    Returns:
        Its name for people.
    """
    name = str(entry.get("name", "selected"))
    return SET_NAMES.get(name, name.replace("_", " "))


def plot_causal(causal: Mapping[str, Any]) -> Figure:
    """Plot the metric without the chosen experts against the null of matched random experts.

    Each panel is one set of experts: in grey, how often random sets matched on layer, size and
    use left the metric where; the diamond is what taking out the set itself left; the dotted
    line is the model untouched. A diamond within the grey says that any experts so much used
    would have done the same.

    Args:
        causal: The ``causal`` part of an audit's results (or the whole results).

    Returns:
        The figure, one panel for each set with a null.

    Raises:
        ValueError: If no set has both an observed value and a null.
    """
    if isinstance(causal.get("causal"), Mapping):
        causal = causal["causal"]
    shown = [
        entry
        for entry in causal_sets(causal)
        if finite(entry.get("observed")) is not None and entry.get("null")
    ]
    if not shown:
        raise ValueError(
            "No set of experts has an observed value and a null. Run the causal check first."
        )
    figure = make_subplots(
        rows=len(shown),
        cols=1,
        shared_xaxes=True,
        vertical_spacing=0.4 / len(shown) if len(shown) > 1 else 0,
        subplot_titles=[f"{set_name(entry)} ({_labels(entry)})" for entry in shown],
        figure=plain_figure(height=120 + 160 * len(shown)),
    )
    low, high = _limits(shown)
    for panel, entry in enumerate(shown, start=1):
        for trace in _panel(entry, low, high, legend=panel == 1):
            figure.add_trace(trace, row=panel, col=1)
        top = 1.2 * _tallest(entry["null"], low, (high - low) / _BINS)
        figure.update_yaxes(plain_axis("random sets", range=[0, top], nticks=4), row=panel, col=1)
        title = f"{metric_words(causal)} ({causal.get('unit') or 'no unit'})"
        figure.update_xaxes(
            plain_axis(
                title if panel == len(shown) else "",
                range=[low, high],
                showticklabels=panel == len(shown),
            ),
            row=panel,
            col=1,
        )
    figure.update_layout(
        showlegend=True,
        legend={"orientation": "h", "x": 0, "y": 1 + 0.16 / len(shown), "yanchor": "bottom"},
        margin={"t": 84},
        bargap=0.04,
    )
    figure.update_annotations(font={"size": 13}, x=0, xanchor="left", yshift=4)
    return figure


def metric_words(causal: Mapping[str, Any]) -> str:
    """Name the metric of a causal check in words.

    Args:
        causal: The ``causal`` part of an audit's results.

    Returns:
        Its name without underscores.
    """
    return str(causal.get("metric") or "metric").replace("_", " ").replace("-", " ")


def _labels(entry: Mapping[str, Any], most: int = 4) -> str:
    labels = [str(label) for label in entry.get("experts") or []]
    return ", ".join(labels[:most]) + (f" and {len(labels) - most} more" * (len(labels) > most))


def _limits(entries: Sequence[Mapping[str, Any]]) -> tuple[float, float]:
    values = [
        value
        for entry in entries
        for value in (entry["observed"], finite(entry.get("baseline")), *entry["null"])
        if value is not None
    ]
    low, high = min(values), max(values)
    room = 0.06 * ((high - low) or 1.0)
    return low - room, high + room


def _panel(entry: Mapping[str, Any], low: float, high: float, *, legend: bool) -> list[Any]:
    size = (high - low) / _BINS
    traces: list[Any] = [
        go.Histogram(
            x=list(entry["null"]),
            xbins={"start": low, "end": high, "size": size},
            marker={"color": NULL, "line": {"width": 0}},
            name="matched random sets",
            legendgroup="null",
            showlegend=legend,
            hovertemplate="%{y} random sets at %{x}<extra></extra>",
        )
    ]
    baseline = finite(entry.get("baseline"))
    top = _tallest(entry["null"], low, size)
    if baseline is not None:
        traces.append(
            go.Scatter(
                x=[baseline, baseline],
                y=[0, top],
                mode="lines",
                line={"color": INK, "width": 2, "dash": "dot"},
                name="model untouched",
                legendgroup="baseline",
                showlegend=legend,
                hovertemplate="untouched: %{x:.4g}<extra></extra>",
            )
        )
    traces.append(
        go.Scatter(
            x=[entry["observed"], entry["observed"]],
            y=[0, top],
            mode="lines+markers",
            line={"color": OBSERVED, "width": 2.5},
            marker={"symbol": "diamond", "size": [0, 13], "opacity": 1, "color": OBSERVED},
            name="this set taken out",
            legendgroup="observed",
            showlegend=legend,
            hovertemplate="taken out: %{x:.4g}<extra></extra>",
        )
    )
    return traces


def _tallest(null: Sequence[float], low: float, size: float) -> int:
    counts: dict[int, int] = {}
    for value in null:
        counts[int((value - low) // size)] = counts.get(int((value - low) // size), 0) + 1
    return max(counts.values())
