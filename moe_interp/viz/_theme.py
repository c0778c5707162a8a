"""Colours, number signs and the plain layout that every figure of the package shares.

The hues of the factors are Okabe and Ito's (2008) and each has its own marker, so that neither
colour vision nor a black-and-white print is needed to tell them apart. One sign colour holds
everywhere: positive is blue, negative is red, as circuitsvis colours tokens.
"""

from typing import Any

from moe_interp.viz._figure import Figure

FACTORS = {
    "topic": {"label": "topic", "colour": "#2b7bba", "symbol": "circle"},
    "harm": {"label": "harm", "colour": "#d55e00", "symbol": "diamond"},
    "interaction": {"label": "harm by topic", "colour": "#009e73", "symbol": "square"},
}
OBSERVED = "#c2187a"
INK = "#1a212b"
# The same hues on a dark page, bright enough to be read there.
ON_DARK = {
    "#2b7bba": "#5aa7e0",
    "#d55e00": "#ff8a3d",
    "#009e73": "#35bf95",
    "#c2187a": "#ff6fbd",
    INK: "#e7ebf0",
    "#ffffff": "#14181d",
}
RANDOM_ROUTER = "rgba(128,136,148,0.38)"
NULL = "rgba(128,136,148,0.62)"
POSITIVE, NEGATIVE = "#2166ac", "#b2182b"

# Stops of ColorBrewer's RdBu and Blues, and the same hues around a dark middle for dark pages.
DIVERGING = [[0, "#b2182b"], [0.25, "#f4a582"], [0.5, "#f7f7f7"], [0.75, "#92c5de"], [1, "#2166ac"]]
DIVERGING_DARK = [
    [0, "#f2836b"],
    [0.25, "#93413a"],
    [0.5, "#252a31"],
    [0.75, "#2c6391"],
    [1, "#7cc1f2"],
]
SEQUENTIAL = [[0, "#f7fbff"], [0.35, "#b5d4e9"], [0.7, "#4b98c9"], [1, "#08306b"]]
SEQUENTIAL_DARK = [[0, "#20252c"], [0.35, "#25496b"], [0.7, "#3f8dc8"], [1, "#b9e0ff"]]

FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"


def plain_figure(**layout: Any) -> Figure:  # noqa: ANN401  Plotly's own layout keywords.
    """Start a figure without Plotly's heavy default template.

    Args:
        **layout: Further layout of the figure, in Plotly's words.

    Returns:
        An empty figure: white paper, thin grid, no title, room for axis labels.
    """
    figure = Figure()
    figure.update_layout(
        template={"layout": {}},
        font={"family": FONT, "size": 13, "color": INK},
        paper_bgcolor="#ffffff",
        plot_bgcolor="rgba(0,0,0,0)",
        margin={"l": 64, "r": 16, "t": 16, "b": 52},
        hoverlabel={"font": {"family": FONT}},
        showlegend=False,
    )
    figure.update_layout(**layout)
    return figure


def plain_axis(title: str, **more: Any) -> dict[str, Any]:  # noqa: ANN401
    """Describe an axis: its title with the unit, a thin grid, no box.

    Args:
        title: What the axis shows, with its unit.
        **more: Further properties, in Plotly's words.

    Returns:
        The axis in Plotly's words.
    """
    axis = {
        "title": {"text": title, "standoff": 10, "font": {"size": 13}},
        "gridcolor": "rgba(128,136,148,0.22)",
        "zeroline": False,
        "automargin": True,
        "ticks": "",
    }
    return axis | more
