"""The same figure for a paper: matplotlib draws what a plotly figure of this package holds.

One description of the data serves both, so that screen and paper cannot differ. The fonts stay
text in SVG and TrueType in PDF, no date is written, and ids are salted with a constant: the same
figure gives the same bytes.
"""

import io
import re
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import plotly.graph_objects as go

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as PaperFigure

# Pixels of a plotly figure that make one inch on paper.
_PIXELS = 105
_SETTINGS = {
    "font.family": "DejaVu Sans",
    "font.size": 8,
    "axes.titlesize": 8,
    "axes.labelsize": 8,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.fontsize": 7.5,
    "legend.frameon": False,
    "lines.linewidth": 1.2,
    "pdf.fonttype": 42,
    "svg.fonttype": "none",
    "svg.hashsalt": "moe_interp",
    # A prompt or a name may hold dollar signs that are no formula.
    "text.parse_math": False,
    "figure.max_open_warning": 0,
}
_NO_DATE = {"pdf": {"CreationDate": None}, "svg": {"Date": None}, "png": {}}
_MARKERS = {
    "circle": "o",
    "circle-open": "o",
    "diamond": "D",
    "diamond-open": "D",
    "square": "s",
    "square-open": "s",
    "triangle-up": "^",
    "triangle-down": "v",
    "x-thin": "x",
    "x": "X",
    "cross": "P",
}
_DASHES = {"dot": ":", "dash": "--", "dashdot": "-.", "solid": "-", None: "-"}


def paper_bytes(figure: go.Figure, kind: str, *, width: float) -> bytes:
    """Write a figure as PDF, SVG or PNG.

    Args:
        figure: A figure of this package.
        kind: ``"pdf"``, ``"svg"`` or ``"png"``.
        width: Width in inches.

    Returns:
        The file's content; the same for the same figure.
    """
    import matplotlib as mpl

    with mpl.rc_context(_SETTINGS):
        file = io.BytesIO()
        drawn = paper_figure(figure, width=width)
        drawn.savefig(file, format=kind, metadata=_NO_DATE[kind], dpi=200)
    return file.getvalue()


def paper_figure(figure: go.Figure, *, width: float) -> "PaperFigure":
    """Draw a plotly figure of this package with matplotlib.

    Args:
        figure: The figure.
        width: Width in inches.

    Returns:
        The matplotlib figure.

    Raises:
        ValueError: If it holds a kind of trace that this package does not draw.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure as PaperFigure

    with mpl.rc_context(_SETTINGS):
        content = figure.to_plotly_json()
        layout, traces = content["layout"], content["data"]
        height = float(layout.get("height") or 360) / _PIXELS
        drawn = PaperFigure(figsize=(width, height), layout="constrained")
        panels = _panels(drawn, layout)
        legend: dict[str, Any] = {}
        for trace in traces:
            axes = panels[_number(trace.get("xaxis"))]
            draw = _DRAWERS.get(trace["type"])
            if draw is None:
                raise ValueError(
                    f"A trace of type {trace['type']!r} has no drawing for papers. Known: "
                    f"{', '.join(_DRAWERS)}."
                )
            handle = draw(axes, trace)
            if trace.get("name") and trace.get("showlegend") is not False and handle is not None:
                legend.setdefault(str(trace["name"]), handle)
        for number, axes in panels.items():
            _finish(axes, layout, number)
        _annotate(panels, layout)
        if legend and layout.get("showlegend"):
            drawn.legend(
                legend.values(),
                legend.keys(),
                loc="outside upper left",
                ncols=min(len(legend), 4),
                handletextpad=0.5,
                columnspacing=1.4,
            )
    return drawn


def _number(reference: str | None) -> int:
    return int(re.sub(r"\D", "", reference or "") or 1)


def _axis(layout: Mapping[str, Any], letter: str, number: int) -> Mapping[str, Any]:
    return layout.get(f"{letter}axis{number if number > 1 else ''}") or {}


def _panels(drawn: "PaperFigure", layout: Mapping[str, Any]) -> dict[int, "Axes"]:
    numbers = sorted(_number(key) for key in layout if re.fullmatch(r"xaxis\d*", key)) or [1]
    tops = {n: -(_axis(layout, "y", n).get("domain") or (0, 1))[1] for n in numbers}
    lefts = {n: (_axis(layout, "x", n).get("domain") or (0, 1))[0] for n in numbers}
    rows, columns = sorted(set(tops.values())), sorted(set(lefts.values()))
    grid = drawn.subplots(len(rows), len(columns), squeeze=False)
    return {n: grid[rows.index(tops[n]), columns.index(lefts[n])] for n in numbers}


def _colour(value: Any) -> Any:  # noqa: ANN401  A colour as plotly writes it.
    """Read ``rgba(…)`` as numbers; hexadecimal colours and lists of them are known already."""
    if isinstance(value, str) and value.startswith("rgb"):
        numbers = [float(part) for part in re.findall(r"[\d.]+", value)]
        return (*(part / 255 for part in numbers[:3]), *numbers[3:])
    return value


def _values(values: Any) -> np.ndarray:  # noqa: ANN401  Numbers, None where there is none.
    return np.array([np.nan if value is None else value for value in values], dtype=float)


def _heatmap(axes: "Axes", trace: Mapping[str, Any]) -> None:
    from matplotlib.colors import LinearSegmentedColormap

    shown = np.array(
        [[np.nan if value is None else value for value in row] for row in trace["z"]], dtype=float
    )
    colours = LinearSegmentedColormap.from_list(
        "map", [(stop, _colour(colour)) for stop, colour in trace["colorscale"]]
    )
    axes.set_facecolor("#eceef0")
    n_rows, n_columns = shown.shape
    mesh = axes.pcolormesh(
        np.arange(n_columns + 1) - 0.5,
        np.arange(n_rows + 1) - 0.5,
        np.ma.masked_invalid(shown),
        cmap=colours,
        vmin=trace.get("zmin"),
        vmax=trace.get("zmax"),
        edgecolors="white",
        linewidth=0.3 if n_columns <= 64 else 0.1,
    )
    title = ((trace.get("colorbar") or {}).get("title") or {}).get("text")
    bar = axes.figure.colorbar(mesh, ax=axes, shrink=0.8, pad=0.015, aspect=24)
    bar.outline.set_visible(False)
    if title:
        bar.set_label(_plain(title))


def _markers(marker: Mapping[str, Any]) -> dict[str, Any]:
    symbol = marker.get("symbol") or "circle"
    colour = _colour(marker.get("color") or "#1a212b")
    line = marker.get("line") or {}
    look: dict[str, Any] = {
        "marker": _MARKERS.get(str(symbol), "o"),
        "alpha": marker.get("opacity"),
    }
    width = 0.55 * float(line.get("width") or 0)
    if symbol == "x-thin":
        return look | {"color": _colour(line.get("color") or colour), "linewidths": width}
    if str(symbol).endswith("-open"):
        return look | {"facecolors": "none", "edgecolors": colour, "linewidths": width or 0.9}
    return look | {
        "color": colour,
        "edgecolors": _colour(line.get("color") or "none"),
        "linewidths": width,
    }


def _scatter(axes: "Axes", trace: Mapping[str, Any]) -> Any:  # noqa: ANN401
    mode = trace.get("mode") or "markers"
    x, y = trace["x"], _values(trace["y"])
    x = _values(x) if not any(isinstance(value, str) for value in x) else list(x)
    handle = None
    if trace.get("fill"):
        colour = _colour(trace.get("fillcolor"))
        handle = axes.fill(x, y, color=colour, linewidth=0)[0]
    elif "lines" in mode:
        line = trace.get("line") or {}
        handle = axes.plot(
            x,
            y,
            color=_colour(line.get("color") or "#1a212b"),
            linewidth=0.6 * float(line.get("width") or 2),
            linestyle=_DASHES[line.get("dash")],
            alpha=trace.get("opacity"),
        )[0]
    for letter in "xy":
        _intervals(axes, trace, letter)
    if "markers" in mode:
        marker = trace.get("marker") or {}
        sizes = np.broadcast_to(np.asarray(marker.get("size", 6), dtype=float), len(y))
        points = axes.scatter(x, y, s=(0.62 * sizes) ** 2, zorder=3, **_markers(marker))
        handle = handle if handle is not None and "lines" in mode else points
    if "text" in mode:
        for place, height, text in zip(x, y, trace.get("text") or [], strict=True):
            if text:
                axes.annotate(
                    _plain(text), (place, height), (3, 3), textcoords="offset points", fontsize=6.5
                )
    return handle


def _intervals(axes: "Axes", trace: Mapping[str, Any], letter: str) -> None:
    error = trace.get(f"error_{letter}") or {}
    if error.get("array") is None:
        return
    up = _values(error["array"])
    down = _values(error["arrayminus"]) if error.get("arrayminus") is not None else up
    axes.errorbar(
        _values(trace["x"]),
        _values(trace["y"]),
        **{f"{letter}err": np.nan_to_num(np.stack([down, up]))},
        fmt="none",
        ecolor=_colour(error.get("color") or "#1a212b"),
        elinewidth=0.55 * float(error.get("thickness") or 1.5),
    )


def _bar(axes: "Axes", trace: Mapping[str, Any]) -> Any:  # noqa: ANN401
    place, size = _values(trace["x"]), _values(trace["y"])
    base = _values(trace["base"]) if trace.get("base") is not None else np.zeros(len(size))
    known = np.isfinite(size) & np.isfinite(base) & np.isfinite(place)
    if not known.any():
        return None
    colour = _colour((trace.get("marker") or {}).get("color") or "#808894")
    width = trace.get("width") or 0.8
    return axes.bar(
        place[known], size[known], bottom=base[known], width=width, color=colour, linewidth=0
    )


def _histogram(axes: "Axes", trace: Mapping[str, Any]) -> Any:  # noqa: ANN401
    bins = trace["xbins"]
    n_bins = max(1, round((bins["end"] - bins["start"]) / bins["size"]))
    edges = bins["start"] + bins["size"] * np.arange(n_bins + 1)
    colour = _colour((trace.get("marker") or {}).get("color") or "#808894")
    return axes.hist(_values(trace["x"]), bins=edges, color=colour, rwidth=0.96)[2]


_DRAWERS: dict[str, Callable[..., Any]] = {
    "heatmap": _heatmap,
    "scatter": _scatter,
    "bar": _bar,
    "histogram": _histogram,
}


def _finish(axes: "Axes", layout: Mapping[str, Any], number: int) -> None:
    """Set titles, ranges, ticks, grid and straight lines as the plotly figure has them."""
    for letter in "xy":
        axis = _axis(layout, letter, number)
        getattr(axes, f"set_{letter}label")(_plain((axis.get("title") or {}).get("text") or ""))
        if axis.get("type") == "log":
            getattr(axes, f"set_{letter}scale")("log")
        if axis.get("range") is not None:
            low, high = axis["range"]
            ends = (10**low, 10**high) if axis.get("type") == "log" else (low, high)
            getattr(axes, f"set_{letter}lim")(*ends)
        elif axis.get("rangemode") == "tozero":
            low, high = getattr(axes, f"get_{letter}lim")()
            getattr(axes, f"set_{letter}lim")(min(low, 0.0), max(high, 0.0))
        _ticks(axes, letter, axis)
        if axis.get("showgrid") is not False:
            axes.grid(axis=letter, color="#dfe3e8", linewidth=0.5)
    axes.set_axisbelow(True)
    for shape in layout.get("shapes") or []:
        if _number(shape.get("xref")) == number:
            _line(axes, shape)


def _ticks(axes: "Axes", letter: str, axis: Mapping[str, Any]) -> None:
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    own = getattr(axes, f"{letter}axis")
    if axis.get("tickvals") is not None:
        own.set_ticks(list(axis["tickvals"]), [str(text) for text in axis["ticktext"]])
    elif axis.get("dtick") is not None:
        low, high = getattr(axes, f"get_{letter}lim")()
        first = float(axis.get("tick0") or 0)
        own.set_ticks(np.arange(first, high + 1e-9, float(axis["dtick"])))
        getattr(axes, f"set_{letter}lim")(low, high)
    elif axis.get("nticks"):
        own.set_major_locator(MaxNLocator(axis["nticks"]))
    if axis.get("tickvals") is None:
        percent = axis.get("tickformat") == ".0%"
        own.set_major_formatter(
            FuncFormatter(
                lambda value, _: (f"{100 * value:.3g}%" if percent else f"{value:.4g}").replace(
                    "-", "−"
                )
            )
        )
    if axis.get("showticklabels") is False:
        own.set_ticklabels([])
    own.set_tick_params(length=2, width=0.5)


def _line(axes: "Axes", shape: Mapping[str, Any]) -> None:
    line = shape.get("line") or {}
    look = {
        "color": _colour(line.get("color") or "#1a212b"),
        "linewidth": 0.6 * float(line.get("width") or 1),
        "linestyle": _DASHES[line.get("dash")],
        "zorder": 1,
    }
    if str(shape.get("yref", "")).endswith("domain") or shape.get("yref") == "paper":
        axes.axvline(shape["x0"], **look)
    elif str(shape.get("xref", "")).endswith("domain") or shape.get("xref") == "paper":
        axes.axhline(shape["y0"], **look)
    else:
        axes.plot([shape["x0"], shape["x1"]], [shape["y0"], shape["y1"]], **look)


def _annotate(panels: Mapping[int, "Axes"], layout: Mapping[str, Any]) -> None:
    """Put titles above their panels; other notes stand at the point they belong to."""
    tops = {round((_axis(layout, "y", n).get("domain") or (0, 1))[1], 6): n for n in panels}
    for note in layout.get("annotations") or []:
        text = _plain(note.get("text") or "")
        if note.get("yref") == "paper":
            number = tops.get(round(float(note["y"]), 6))
            if number is not None:
                panels[number].set_title(text, loc="left")
        else:
            axes = panels[_number(note.get("xref"))]
            left = note.get("xanchor") == "right"
            axes.annotate(
                text,
                (note["x"], note["y"]),
                (-3 if left else 3, 3),
                textcoords="offset points",
                fontsize=7,
                ha="right" if left else "left",
            )


def _plain(text: str | Sequence[str]) -> str:
    return re.sub(r"</?(b|i|sub|sup)>", "", str(text).replace("<br>", "\n"))
