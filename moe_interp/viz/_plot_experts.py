"""One number for every expert, as a map of layers and experts, with what is known marked on it."""

import math
from collections.abc import Iterable
from typing import Any

import plotly.graph_objects as go

from moe_interp.experts import Expert, as_expert
from moe_interp.viz._figure import Figure
from moe_interp.viz._tables import Rows, rows_of
from moe_interp.viz._theme import DIVERGING, INK, SEQUENTIAL, plain_axis, plain_figure

# Quantity -> (words for people, unit and sign at the colour bar, two-sided?).
QUANTITIES = {
    "effect": ("use by harmful minus harmless prompts", "difference in share of slots", True),
    "-log10 p_adjusted": ("evidence that use depends on harm", "−log₁₀ adjusted p", False),
    "attribution": ("gradient attribution to the metric", "attribution", True),
    "ablation_effect": ("change when the expert is taken out", "change of the metric", True),
    "selection_frequency": ("how often tokens choose the expert", "fraction of tokens", False),
}
_SMALLEST_P = 1e-12
# A scale that ended below these would paint what does not matter in full colour.
_SMALLEST_SCALE = {"effect": 0.05, "-log10 p_adjusted": 2.0}


def plot_experts(
    experts: Rows,
    *,
    quantity: str = "effect",
    alpha: float = 0.05,
    truth: Iterable[Expert | tuple[int, int] | str] = (),
) -> Figure:
    """Plot one number for every expert as a map: experts from left to right, layers upwards.

    A dot marks experts whose adjusted p-value is below `alpha`, a ring those that were selected,
    a cross those that are known to be planted. Experts without a measurement stay blank.
    Two-sided quantities use one symmetric scale around zero, positive blue.

    Args:
        experts: An audit's results, its ``experts`` rows, a table with the columns layer, expert
            and `quantity`, or a result with ``to_frame()``.
        quantity: A column, or ``"-log10 p_adjusted"``.
        alpha: Level below which an adjusted p-value is marked.
        truth: Experts to mark as planted, e.g. from an organism's card.

    Returns:
        The figure.

    Raises:
        ValueError: If rows or columns are missing or nothing was measured.

    Example:
        >>> rows = [{"layer": 3, "expert": e, "effect": e / 10} for e in range(4)]
        >>> figure = plot_experts(rows)
        >>> figure.data[0].zmax
        0.3
    """
    column = "p_adjusted" if quantity == "-log10 p_adjusted" else quantity
    rows = rows_of(experts, "experts", ("layer", "expert", column))
    layers = sorted({row["layer"] for row in rows})
    n_experts = 1 + max(row["expert"] for row in rows)
    values = expert_grid(rows, quantity, layers, n_experts)
    measured = [value for line in values for value in line if value is not None]
    if not measured:
        raise ValueError(
            f"No expert has a value of {quantity!r}, so there is no map of it. Choose another "
            "`quantity`, or measure this one first."
        )
    named = quantity.replace("_", " ")
    words, unit, two_sided = QUANTITIES.get(quantity, (named, named, min(measured) < 0))
    bound = max(*(abs(value) for value in measured), _SMALLEST_SCALE.get(quantity, 1e-9))
    figure = plain_figure(height=176 + max(24, min(44, 900 // len(layers))) * len(layers))
    labels = [[f"L{layer}E{e}" for e in range(n_experts)] for layer in layers]
    figure.add_trace(
        go.Heatmap(
            z=values,
            x=list(range(n_experts)),
            y=list(range(len(layers))),
            customdata=labels,
            zmin=-bound if two_sided else 0,
            zmax=bound,
            colorscale=DIVERGING if two_sided else SEQUENTIAL,
            xgap=1,
            ygap=1,
            hoverongaps=True,
            hovertemplate=f"%{{customdata}}<br>{words}: %{{z:.4g}}<extra></extra>",
            colorbar=_colour_bar(unit),
        )
    )
    for trace in _marks(rows, layers, alpha, truth):
        figure.add_trace(trace)
    _label_axes(figure, layers, n_experts)
    figure.update_layout(
        showlegend=True,
        legend={"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom"},
        margin={"t": 44, "b": 116},
    )
    return figure


def _colour_bar(unit: str) -> dict[str, Any]:
    return {
        "title": {"text": unit, "side": "bottom", "font": {"size": 13}},
        "orientation": "h",
        "yref": "container",
        "y": 0,
        "yanchor": "bottom",
        "x": 0.5,
        "len": 0.6,
        "thickness": 12,
        "outlinewidth": 0,
    }


def _label_axes(figure: Figure, layers: list[int], n_experts: int) -> None:
    """Name experts and layers; of many only every so-manieth, so that labels stay apart."""
    figure.update_xaxes(
        plain_axis(
            "expert",
            showgrid=False,
            dtick=max(1, round(n_experts / 32)),
            tick0=0,
            range=[-0.5, n_experts - 0.5],
            tickangle=0,
        )
    )
    step = max(1, round(len(layers) / 24))
    figure.update_yaxes(
        plain_axis(
            "layer",
            showgrid=False,
            tickvals=list(range(0, len(layers), step)),
            ticktext=[str(layer) for layer in layers[::step]],
            range=[-0.5, len(layers) - 0.5],
        )
    )


def expert_grid(
    rows: list[dict[str, Any]], quantity: str, layers: list[int], n_experts: int
) -> list[list[float | None]]:
    """Lay one quantity out as rows of layers and columns of experts.

    Args:
        rows: One row for each expert.
        quantity: A column, or ``"-log10 p_adjusted"``.
        layers: The layers, in the order of the grid's rows.
        n_experts: Number of columns.

    Returns:
        The grid; None where nothing was measured.
    """
    grid: list[list[float | None]] = [[None] * n_experts for _ in layers]
    place = {layer: i for i, layer in enumerate(layers)}
    for row in rows:
        if quantity == "-log10 p_adjusted":
            p = row.get("p_adjusted")
            value = None if p is None else abs(math.log10(max(p, _SMALLEST_P)))
        else:
            value = row.get(quantity)
            value = value if value is None else float(value)
        grid[place[row["layer"]]][row["expert"]] = value
    return grid


def _marks(
    rows: list[dict[str, Any]],
    layers: list[int],
    alpha: float,
    truth: Iterable[Expert | tuple[int, int] | str],
) -> list[go.Scatter]:
    place = {layer: i for i, layer in enumerate(layers)}
    planted = {(known.layer, known.expert) for known in map(as_expert, truth)}
    kinds = (
        (
            f"adjusted p < {alpha:g}",
            [row for row in rows if (row.get("p_adjusted") or 1.0) < alpha],
            {"symbol": "circle", "size": 8, "line": {"width": 1.5, "color": "#ffffff"}},
        ),
        (
            "selected",
            [row for row in rows if row.get("selected")],
            {"symbol": "circle-open", "size": 17, "line": {"width": 2.2}},
        ),
        (
            "planted",
            [row for row in rows if (row["layer"], row["expert"]) in planted],
            {"symbol": "x-thin", "size": 8, "line": {"width": 2.2, "color": INK}},
        ),
    )
    traces = []
    for name, chosen, marker in kinds:
        if not chosen:
            continue
        places = {
            "x": [row["expert"] for row in chosen if row["layer"] in place],
            "y": [place[row["layer"]] for row in chosen if row["layer"] in place],
            "mode": "markers",
            "name": name,
            "hoverinfo": "skip",
        }
        if marker["symbol"] != "circle":
            # A ring or a cross is a line: on dark cells it needs a light one beneath.
            line = {"width": marker["line"]["width"] + 2.6, "color": "#ffffff"}
            below = marker | {"line": line, "color": "#ffffff"}
            traces.append(go.Scatter(**places, marker=below, showlegend=False))
        traces.append(go.Scatter(**places, marker=marker | {"color": INK}))
    return traces
