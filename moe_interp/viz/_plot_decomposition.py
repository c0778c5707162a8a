"""How much of the routing is topic and how much is harm, layer by layer, beside a random router."""

from collections.abc import Sequence
from typing import Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from moe_interp.viz._figure import Figure
from moe_interp.viz._tables import Rows, rows_of
from moe_interp.viz._theme import FACTORS, RANDOM_ROUTER, plain_axis, plain_figure

_COLUMNS = ("span", "layer", "topic", "harm")
_BAND = 0.17
_POOLED = "all"


def plot_decomposition(
    decomposition: Rows,
    *,
    spans: Sequence[str] | None = None,
    factors: Sequence[str] = ("topic", "harm", "interaction"),
) -> Figure:
    """Plot the shares of routing variation that topic and harm explain, per layer and span.

    Points are shares with their 95 % intervals. The grey box behind a point is the same share
    under routers drawn at random on the same hidden states: what lies inside it is inherited
    from the hidden states and says nothing about the router. "All" pools the layers.

    Args:
        decomposition: An audit's results, its ``decomposition`` rows, or a table with columns
            span, layer, topic, harm (each with ``_low``, ``_high``, ``_random_low``,
            ``_random_high``).
        spans: The token sets to show, one panel each; by default all, in order.
        factors: The shares to show, among ``topic``, ``harm`` and ``interaction``.

    Returns:
        The figure, one panel for each span below one another.

    Raises:
        ValueError: If rows, columns, spans or factors are missing or unknown.
    """
    rows = rows_of(decomposition, "decomposition", _COLUMNS)
    present = list(dict.fromkeys(str(row["span"]) for row in rows))
    wanted = list(spans) if spans is not None else present
    for name, given, known in (("spans", wanted, present), ("factors", factors, list(FACTORS))):
        unknown = [value for value in given if value not in known]
        if unknown or not given:
            raise ValueError(f"`{name}` must be among {', '.join(known)}, got {list(given)!r}.")
    figure = make_subplots(
        rows=len(wanted),
        cols=1,
        shared_xaxes=True,
        vertical_spacing=0.12 / len(wanted),
        subplot_titles=[f"{span} tokens" for span in wanted] if len(wanted) > 1 else None,
        figure=plain_figure(height=90 + 250 * len(wanted)),
    )
    for panel, span in enumerate(wanted, start=1):
        chosen = [row for row in rows if str(row["span"]) == span]
        for trace in _panel(chosen, factors, legend=panel == 1):
            figure.add_trace(trace, row=panel, col=1)
        figure.update_yaxes(
            plain_axis("share of routing variation", tickformat=".0%", rangemode="tozero"),
            row=panel,
            col=1,
        )
        figure.update_xaxes(_layer_axis(chosen, title=panel == len(wanted)), row=panel, col=1)
    figure.update_layout(
        showlegend=True,
        legend={"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom", "title": {"text": ""}},
        margin={"t": 60},
        bargap=0,
    )
    return figure


def _positions(rows: list[dict[str, Any]]) -> list[float]:
    # The pooled share stands apart from the layers, half a step further right.
    return [i + (0.5 if row["layer"] == _POOLED else 0.0) for i, row in enumerate(rows)]


def _layer_axis(rows: list[dict[str, Any]], *, title: bool) -> dict[str, Any]:
    positions = _positions(rows)
    step = max(1, round(len(rows) / 24))
    kept = [
        i for i, row in enumerate(rows) if row["layer"] == _POOLED or (i % step == 0 or step == 1)
    ]
    return plain_axis(
        "layer" if title else "",
        tickvals=[positions[i] for i in kept],
        ticktext=[str(rows[i]["layer"]) for i in kept],
        showticklabels=True,
        range=[-0.6, positions[-1] + 0.6],
        showgrid=False,
        tickangle=0,
    )


def _panel(rows: list[dict[str, Any]], factors: Sequence[str], *, legend: bool) -> list[Any]:
    traces: list[Any] = []
    for index, factor in enumerate(factors):
        offset = (index - (len(factors) - 1) / 2) * 0.23
        x = [position + offset for position in _positions(rows)]
        traces.append(_random_band(rows, x, factor, legend=legend and index == 0))
        traces.append(_shares(rows, x, factor, legend=legend))
    return traces


def _random_band(
    rows: list[dict[str, Any]], x: list[float], factor: str, *, legend: bool
) -> go.Bar:
    low = [row.get(f"{factor}_random_low") for row in rows]
    high = [row.get(f"{factor}_random_high") for row in rows]
    known = [a is not None and b is not None for a, b in zip(low, high, strict=True)]
    return go.Bar(
        x=x,
        base=[a if ok else None for a, ok in zip(low, known, strict=True)],
        y=[b - a if ok else None for a, b, ok in zip(low, high, known, strict=True)],
        width=_BAND,
        marker={"color": RANDOM_ROUTER, "line": {"width": 0}},
        name="random routers, same hidden states",
        legendgroup="random",
        showlegend=legend,
        hoverinfo="skip",
    )


def _shares(rows: list[dict[str, Any]], x: list[float], factor: str, *, legend: bool) -> go.Scatter:
    look = FACTORS[factor]
    share = [row.get(factor) for row in rows]
    # An interval is drawn only where both of its ends were measured.
    arms = [
        (high - value, value - low) if None not in (value, low, high) else (0.0, 0.0)
        for value, low, high in zip(
            share,
            (row.get(f"{factor}_low") for row in rows),
            (row.get(f"{factor}_high") for row in rows),
            strict=True,
        )
    ]
    return go.Scatter(
        x=x,
        y=share,
        mode="markers",
        marker={"color": look["colour"], "symbol": look["symbol"], "size": 9},
        error_y={
            "array": [up for up, _ in arms],
            "arrayminus": [down for _, down in arms],
            "color": look["colour"],
            "thickness": 1.6,
            "width": 0,
        },
        name=look["label"],
        legendgroup=factor,
        showlegend=legend,
        customdata=[str(row["layer"]) for row in rows],
        hovertemplate=f"layer %{{customdata}}<br>{look['label']} %{{y:.1%}}<extra></extra>",
    )
