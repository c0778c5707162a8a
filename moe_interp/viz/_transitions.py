"""From expert to expert: which experts of the next layer follow each expert of a layer."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float, Int
from numpy import ndarray

from moe_interp.viz._explorer import n_experts_of
from moe_interp.viz._figure import Figure, plain_figure_data
from moe_interp.viz._html import figure as figure_place
from moe_interp.viz._html import section
from moe_interp.viz._page import asset, page, page_palette
from moe_interp.viz._sample import pack_tokens, to_base64, tokens_inside
from moe_interp.viz._tables import Recorded
from moe_interp.viz._theme import (
    DIVERGING,
    DIVERGING_DARK,
    ON_DARK,
    SEQUENTIAL,
    SEQUENTIAL_DARK,
    plain_axis,
    plain_figure,
)
from moe_interp.viz._view import View


@dataclass(frozen=True, eq=False)
class Transitions(View):
    """How often each expert follows each expert of the layer before.

    Attributes:
        layers: The recorded decoder layers, in order; each pair of neighbours is one table.
        share: Of the tokens that chose the first expert, the share that chose the second one in
            the next layer; NaN where no token chose the first. Rows sum to top-k.
        expected: The share of all tokens that chose the second expert: what `share` would be if
            the two choices had nothing to do with each other.
        count: Tokens that chose the first expert.
        span: The token set.
    """

    layers: tuple[int, ...]
    share: Float[ndarray, "pair expert next"] = field(repr=False)
    expected: Float[ndarray, "pair next"] = field(repr=False)
    count: Int[ndarray, "pair expert"] = field(repr=False)
    span: str
    _tokens: dict[str, Any] = field(repr=False)

    @property
    def title(self) -> str:
        """What is shown."""
        return f"Experts that follow experts, on {self.span}"

    def to_frame(self) -> pd.DataFrame:
        """Give one row for each pair of experts that a token chose one after the other."""
        pair, first, then = np.nonzero(np.nan_to_num(self.share))
        return pd.DataFrame(
            {
                "layer": np.array(self.layers)[pair],
                "expert": first,
                "next_layer": np.array(self.layers)[pair + 1],
                "next_expert": then,
                "tokens": self.count[pair, first],
                "share": self.share[pair, first, then],
                "expected": self.expected[pair, then],
            }
        )

    def plot(self, layer: int | None = None, *, beyond_chance: bool = False) -> Figure:
        """Draw one pair of layers as a map: from the expert at the left to the one below.

        Args:
            layer: The first of the two layers; by default the first recorded one.
            beyond_chance: Show the share less what it would be by chance.

        Returns:
            The figure.

        Raises:
            ValueError: If the layer was not recorded, or is the last one.
        """
        layer = self.layers[0] if layer is None else layer
        if layer not in self.layers[:-1]:
            known = ", ".join(map(str, self.layers[:-1]))
            raise ValueError(f"`layer` must be among {known}, got {layer!r}.")
        pair = self.layers.index(layer)
        shown = self.share[pair]
        if beyond_chance:
            shown = shown - self.expected[pair]
        bound = max(float(np.nanmax(np.abs(shown), initial=0.0)), 1e-6)
        n = shown.shape[0]
        figure = plain_figure(height=min(150 + 26 * n, 900))
        figure.add_heatmap(
            z=[[None if np.isnan(v) else float(v) for v in row] for row in shown],
            x=list(range(n)),
            y=list(range(n)),
            zmin=-bound if beyond_chance else 0,
            zmax=bound,
            colorscale=DIVERGING if beyond_chance else SEQUENTIAL,
            xgap=1 if n <= 64 else 0,
            ygap=1 if n <= 64 else 0,
            hovertemplate="from E%{y} to E%{x}: %{z:.3g}<extra></extra>",
            colorbar={
                "title": {"text": "share of tokens" + " beyond chance" * beyond_chance},
                "thickness": 12,
                "outlinewidth": 0,
            },
        )
        ticks = {"dtick": max(1, round(n / 32)), "tick0": 0, "showgrid": False}
        then = self.layers[pair + 1]
        figure.update_xaxes(plain_axis(f"expert of layer {then}", range=[-0.5, n - 0.5], **ticks))
        figure.update_yaxes(plain_axis(f"expert of layer {layer}", range=[n - 0.5, -0.5], **ticks))
        return figure

    def to_html(self, *, compress: bool = True) -> str:
        """Give a page of its own: it needs no network and no other file.

        Args:
            compress: Pack scripts and data; without, older browsers can open the page.

        Returns:
            The whole document.
        """
        body = (
            '<div class="controls"><label for="s-pair">Layers <select id="s-pair"></select></label>'
            '<label for="s-what">Show <select id="s-what"><option value="share">share of tokens'
            '</option><option value="beyond">share beyond chance</option></select></label></div>'
            + figure_place("map", "Map of experts of one layer by experts of the next", wide=True)
            + '<div class="controls"><label for="s-from">From expert <select id="s-from"></select>'
            '</label><label for="s-to">to expert <select id="s-to"></select></label></div>'
            '<p id="about" class="about" aria-live="polite"></p><div id="token-view" role="region" '
            'aria-label="Tokens that go this way"></div><p class="caption">Rows: the expert of the '
            "first layer. Columns: the expert of the next. Click a cell to see the tokens that go "
            "this way below: full blue went from the one to the other, pale blue chose the first "
            "expert only. By chance: the share of all tokens that choose the second expert.</p>"
        )
        pairs = np.nan_to_num(self.share, nan=-1.0)
        top = float(np.nanmax(self.share, initial=0.0)) or 1.0
        steps = np.where(pairs < 0, 255, np.rint(pairs / top * 254)).astype("uint8")
        return page(
            title=self.title,
            body=(
                '<div class="page"><header><p class="kicker">Routing</p>'
                f'<h1 class="subject">{escape(self.title)}</h1></header>'
                f"<main>{section('transitions', 'Who follows whom', body)}</main></div>"
            ),
            style=page_palette() + asset("report.css"),
            script=asset("parts.js") + asset("transitions.js"),
            data={
                "figure": plain_figure_data(self.plot()),
                "layers": list(self.layers),
                "n_experts": self.share.shape[1],
                "share": to_base64(steps),
                "top": top,
                "expected": [[round(float(v), 5) for v in row] for row in self.expected],
                "count": self.count.tolist(),
                "tokens": self._tokens,
                "scales": {
                    "share": [SEQUENTIAL, SEQUENTIAL_DARK],
                    "beyond": [DIVERGING, DIVERGING_DARK],
                },
                "on_dark": ON_DARK,
            },
            compress=compress,
        )

    def static_html(self) -> str:
        """Give the map of the first two layers, without a script."""
        return f"<strong>{escape(self.title)}</strong><br>{self.plot()._repr_html_()}"

    def height(self) -> int:
        """How high the frame is, in pixels."""
        return 760


def show_transitions(
    record: Recorded,
    *,
    span: str | None = None,
    layers: Sequence[int] | None = None,
    prompts: Sequence[int] | None = None,
) -> Transitions:
    """Show from which expert tokens go to which expert of the next recorded layer.

    A token chooses top-k experts in each layer; every pair of them counts. An expert that many
    tokens choose follows every other one often: ask for the share beyond chance to see more.

    Args:
        record: A routing record.
        span: The token set; by default all tokens.
        layers: Decoder layers to take, in order; by default all recorded ones.
        prompts: Prompts whose tokens can be looked at; by default a balanced sample.

    Returns:
        The view; a notebook displays it, ``.save(path)`` writes a page, ``.plot(layer)`` draws
        one pair of layers and ``.to_frame()`` is the table.

    Raises:
        ValueError: If a layer or the span was not recorded, fewer than two layers are asked for,
            or the span has no token.
    """
    dataset = record.dataset
    known = [int(layer) for layer in dataset["layer"].values]
    wanted = known if layers is None else list(layers)
    if len(wanted) < 2 or any(layer not in known for layer in wanted):
        raise ValueError(
            f"`layers` must be two or more of {', '.join(map(str, known))}, got {wanted!r}."
        )
    inside = tokens_inside(record, span)
    if not inside.any():
        raise ValueError(f"There is no token in the span {span!r}. Choose another one.")
    dataset = dataset.isel(layer=[known.index(layer) for layer in wanted])
    index = dataset["expert_index"].transpose("token", "layer", "top_k").values[inside]
    n = n_experts_of(record)
    share, expected, count = _count(index.astype(np.int64), n)
    return Transitions(
        layers=tuple(wanted),
        share=share,
        expected=expected,
        count=count,
        span="all tokens" if span is None else f"{span} tokens",
        _tokens=pack_tokens(dataset, prompts=prompts),
    )


def _count(
    index: Int[ndarray, "token layer top_k"], n: int
) -> tuple[
    Float[ndarray, "pair expert next"], Float[ndarray, "pair next"], Int[ndarray, "pair expert"]
]:
    n_tokens, n_layers, _ = index.shape
    share = np.full((n_layers - 1, n, n), np.nan)
    expected = np.zeros((n_layers - 1, n))
    count = np.zeros((n_layers - 1, n), dtype=np.int64)
    for pair in range(n_layers - 1):
        first, then = index[:, pair, :, None], index[:, pair + 1, None, :]
        both = np.bincount((first * n + then).ravel(), minlength=n * n).reshape(n, n)
        count[pair] = np.bincount(index[:, pair].ravel(), minlength=n)
        expected[pair] = np.bincount(index[:, pair + 1].ravel(), minlength=n) / n_tokens
        np.divide(both, count[pair][:, None], out=share[pair], where=count[pair][:, None] > 0)
    return share, expected, count
