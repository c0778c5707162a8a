"""A plotly figure that every notebook can show, and that is written as a figure for a paper."""

import base64
from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import plotly.graph_objects as go

from moe_interp.errors import ResultExistsError
from moe_interp.viz._tables import finite

if TYPE_CHECKING:
    import matplotlib.figure

FORMATS = (".pdf", ".svg", ".png")


class Figure(go.Figure):
    """An interactive figure with a vector twin of the same data.

    A notebook that knows plotly shows it interactively; any other, also an untrusted one, shows
    the vector picture. ``figure.save("map.pdf")`` writes what a paper needs.
    """

    # Plotly's own display loads its script from the network or repeats it in every cell.
    _ipython_display_ = None

    def to_matplotlib(self, *, width: float = 6.5) -> "matplotlib.figure.Figure":
        """Draw the same data with matplotlib.

        Args:
            width: Width in inches.

        Returns:
            A matplotlib figure.

        Raises:
            ValueError: If the figure holds a kind of trace that this package does not draw.
        """
        from moe_interp.viz._paper import paper_figure

        return paper_figure(self, width=width)

    def save(self, path: str | Path, *, width: float = 6.5, force: bool = False) -> None:
        """Write the figure for a paper; the same figure always gives the same bytes.

        Args:
            path: A file ending in ``.pdf``, ``.svg`` or ``.png``; missing folders are made.
            width: Width in inches.
            force: Replace a file that stands there.

        Raises:
            ResultExistsError: If there is a file already and `force` is not set.
            ValueError: If the ending is another one.

        Example:
            >>> from moe_interp.viz import plot_experts
            >>> figure = plot_experts([{"layer": 3, "expert": e, "effect": e} for e in range(4)])
            >>> figure.save("map.eps")
            Traceback (most recent call last):
            ValueError: A figure is written as .pdf, .svg or .png, got 'map.eps'.
        """
        from moe_interp.viz._paper import paper_bytes

        path = Path(path)
        if path.suffix.lower() not in FORMATS:
            raise ValueError(f"A figure is written as .pdf, .svg or .png, got {str(path)!r}.")
        if path.exists() and not force:
            raise ResultExistsError(
                f"{str(path)!r} already exists. Choose another path, or pass force=True to "
                "replace it."
            )
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(paper_bytes(self, path.suffix.lower()[1:], width=width))

    def _repr_html_(self) -> str:
        from moe_interp.viz._paper import paper_bytes

        # An image, and not inline SVG: notebooks that do not trust a cell take SVG elements out.
        packed = base64.b64encode(paper_bytes(self, "svg", width=7.5)).decode("ascii")
        return (
            f'<img alt="{escape(self.said(), quote=True)}" '
            f'style="max-width:100%;background:#fff" src="data:image/svg+xml;base64,{packed}">'
        )

    def _repr_mimebundle_(
        self,
        include: Any = None,  # noqa: ANN401  IPython's protocol.
        exclude: Any = None,  # noqa: ANN401
        validate: bool = True,
        **more: Any,  # noqa: ANN401
    ) -> dict[str, Any]:
        return {
            "application/vnd.plotly.v1+json": self.to_plotly_json(),
            "text/html": self._repr_html_(),
            "text/plain": repr(self),
        }

    def __repr__(self) -> str:
        return f"<Figure: {self.said()}>"

    def said(self) -> str:
        """Say in words what the axes are, for those who cannot see the figure."""
        layout = self.to_plotly_json()["layout"]
        titles = [
            str((layout[key].get("title") or {}).get("text") or "")
            for key in sorted(layout)
            if key.startswith(("xaxis", "yaxis"))
        ]
        return " by ".join(dict.fromkeys(title for title in reversed(titles) if title)) or "figure"


def plain_figure_data(figure: Any) -> dict[str, Any]:  # noqa: ANN401  A plotly figure.
    """Give a figure as plain values that a page can carry."""
    return rounded(figure.to_plotly_json())


def rounded(value: Any, digits: int = 6) -> Any:  # noqa: ANN401
    """Round numbers to six digits: more than a figure shows, and a third of the bytes."""
    if isinstance(value, Mapping):
        return {str(key): rounded(inner, digits) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(inner, digits) for inner in value]
    value = finite(value)
    return float(f"{value:.{digits}g}") if isinstance(value, float) else value
