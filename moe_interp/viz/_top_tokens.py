"""The tokens an expert works on most, each within its words."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Any

import numpy as np
import pandas as pd

from moe_interp.experts import Expert, as_expert
from moe_interp.notebook import table_html
from moe_interp.viz._circuitsvis import safe_token
from moe_interp.viz._explorer import n_experts_of
from moe_interp.viz._html import section
from moe_interp.viz._page import asset, page, page_palette
from moe_interp.viz._sample import to_base64, tokens_inside
from moe_interp.viz._tables import Recorded
from moe_interp.viz._view import View

# Tokens of all experts together that a page holds.
_MOST_LINES = 40_000


@dataclass(frozen=True, eq=False)
class TopTokens(View):
    """For every expert the tokens with its largest routing weights.

    Attributes:
        table: One row for each of these tokens: layer, expert, rank, weight, token, prompt (its
            id), pos, topic and harm where known.
        start: The expert that is shown first.
        context: How many tokens are shown on either side.
    """

    table: pd.DataFrame = field(repr=False)
    start: Expert
    context: int
    _pack: dict[str, Any] = field(repr=False)

    @property
    def title(self) -> str:
        """What is shown."""
        return "Tokens with the largest routing weights"

    def to_frame(self) -> pd.DataFrame:
        """Give one row for each token."""
        return self.table.copy()

    def to_html(self, *, compress: bool = True) -> str:
        """Give a page of its own: it needs no network and no other file.

        Args:
            compress: Pack scripts and data; without, older browsers can open the page.

        Returns:
            The whole document.
        """
        body = (
            '<div class="controls">'
            '<label for="s-layer">Layer <select id="s-layer"></select></label>'
            '<label for="s-expert">Expert <select id="s-expert"></select></label></div>'
            '<ol id="lines" class="lines" aria-live="polite" aria-label="Tokens in their words">'
            "</ol>"
            '<p class="caption">The token in the middle of each line is one of those to which the '
            "expert gave its largest routing weights; colour is its weight at every token of the "
            'line, full blue at <span id="token-scale"></span>.</p>'
        )
        return page(
            title=self.title,
            body=(
                '<div class="page"><header><p class="kicker">Tokens</p>'
                f'<h1 class="subject">{escape(self.title)}</h1></header>'
                f"<main>{section('top-tokens', 'What an expert works on', body)}</main></div>"
            ),
            style=page_palette() + asset("report.css"),
            script=asset("parts.js") + asset("top.js"),
            data=self._pack | {"start": str(self.start)},
            plotly=False,
            compress=compress,
        )

    def static_html(self) -> str:
        """Give the table of the first expert, without a script."""
        of_start = (self.table["layer"] == self.start.layer) & (
            self.table["expert"] == self.start.expert
        )
        return f"<strong>{escape(self.title)}: {self.start}</strong>" + table_html(
            self.table[of_start]
        )

    def height(self) -> int:
        """How high the frame is, in pixels."""
        return 620


def show_top_tokens(
    record: Recorded,
    experts: Sequence[Expert | tuple[int, int] | str] | Expert | str | None = None,
    *,
    n: int = 10,
    context: int = 6,
    span: str | None = None,
) -> TopTokens:
    """Show the tokens with each expert's largest routing weights, within the words around them.

    Ties are kept in the order of the record. An expert's largest weights are not all it does:
    look at `show_tokens` for prompts that were not chosen by the expert itself.

    Args:
        record: A routing record.
        experts: One expert, or those to show; by default every expert that was ever chosen.
        n: How many tokens for each expert.
        context: How many tokens to show on either side.
        span: The token set to choose from; by default all tokens.

    Returns:
        The view; a notebook displays it, ``.save(path)`` writes a page, ``.to_frame()`` is the
        table.

    Raises:
        ValueError: If no expert was chosen by these tokens, a layer or the span was not recorded,
            `n` is not positive, or there are too many tokens for a page.
    """
    if n < 1 or context < 0:
        raise ValueError(f"`n` must be at least 1 and `context` at least 0, got {n} and {context}.")
    dataset = record.dataset
    layers = [int(layer) for layer in dataset["layer"].values]
    wanted = _wanted(experts, layers)
    inside = np.flatnonzero(tokens_inside(record, span))
    index = dataset["expert_index"].transpose("token", "layer", "top_k").values
    weight = dataset["routing_weights"].transpose("token", "layer", "top_k").values
    found = [
        (layer, *_best(index[inside, row], weight[inside, row], n))
        for row, layer in enumerate(layers)
        if wanted is None or any(one.layer == layer for one in wanted)
    ]
    lines = pd.DataFrame(
        {
            "layer": np.concatenate([np.full(len(e), layer) for layer, e, *_ in found]),
            "expert": np.concatenate([e for _, e, *_ in found]),
            "rank": np.concatenate([rank for *_, rank in found]),
            "weight": np.concatenate([w for _, _, _, w, _ in found]),
            "at": inside[np.concatenate([at for _, _, at, _, _ in found])],
        }
    )
    if wanted is not None:
        keys = {(one.layer, one.expert) for one in wanted}
        lines = lines[[key in keys for key in zip(lines["layer"], lines["expert"], strict=True)]]
    if not 0 < len(lines) <= _MOST_LINES:
        raise ValueError(
            f"{len(lines)} tokens are to be shown, 1 to {_MOST_LINES} can be. Choose other "
            "`experts`, another `span` or a smaller `n`."
        )
    first = lines.iloc[int(lines["weight"].argmax())]
    return TopTokens(
        table=_described(dataset, lines),
        start=wanted[0] if wanted else Expert(int(first["layer"]), int(first["expert"])),
        context=context,
        _pack=_packed(record, lines, index, weight, layers, context),
    )


def _wanted(experts: Any, layers: list[int]) -> list[Expert] | None:  # noqa: ANN401
    if experts is None:
        return None
    if isinstance(experts, Expert | str):
        experts = [experts]
    wanted = [as_expert(one) for one in experts]
    missing = sorted({one.layer for one in wanted} - set(layers))
    if missing:
        raise ValueError(
            f"The record has no layer {missing[0]}. Its layers: {', '.join(map(str, layers))}."
        )
    return wanted


def _best(
    index: np.ndarray, weight: np.ndarray, n: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Find the n largest weights of every expert among ``[token top_k]`` choices."""
    top_k = index.shape[1]
    expert, size = index.ravel().astype(np.int64), weight.ravel().astype(float)
    order = np.lexsort((np.arange(len(expert)), -np.nan_to_num(size), expert))
    expert = expert[order]
    starts = np.searchsorted(expert, expert, side="left")
    rank = np.arange(len(expert)) - starts
    kept = rank < n
    return expert[kept], order[kept] // top_k, size[order][kept], rank[kept] + 1


def _described(dataset: Any, lines: pd.DataFrame) -> pd.DataFrame:  # noqa: ANN401
    at = lines["at"].to_numpy()
    owner = dataset["prompt_index"].values[at]
    table = lines[["layer", "expert", "rank", "weight"]].reset_index(drop=True)
    table["token"] = [str(text) for text in dataset["token_text"].values[at]]
    table["prompt"] = [str(name) for name in dataset["id"].values[owner]]
    table["pos"] = dataset["pos"].values[at]
    for name in ("topic", "harm"):
        if name in dataset.coords:
            table[name] = dataset[name].values[owner]
    return table


def _packed(
    record: Recorded,
    lines: pd.DataFrame,
    index: np.ndarray,
    weight: np.ndarray,
    layers: list[int],
    context: int,
) -> dict[str, Any]:
    """Pack each line's tokens as numbers of texts, and the expert's weight at each of them."""
    dataset = record.dataset
    owner = dataset["prompt_index"].values
    at = lines["at"].to_numpy()
    around = at[:, None] + np.arange(-context, context + 1)
    within = (around >= 0) & (around < len(owner))
    around = np.clip(around, 0, len(owner) - 1)
    within &= owner[around] == owner[at][:, None]
    texts, words = np.unique(
        dataset["token_text"].values[around].astype(object), return_inverse=True
    )
    # Number 0 stands for no token.
    words = np.where(within, words.reshape(around.shape) + 1, 0)
    rows = np.array([layers.index(layer) for layer in lines["layer"]])
    experts = lines["expert"].to_numpy()
    chosen = index[around, rows[:, None]] == experts[:, None, None]
    used = np.where(chosen, weight[around, rows[:, None]], 0).sum(-1) * within
    scale = float(np.abs(np.nan_to_num(used)).max()) or 1.0
    steps = np.ceil(np.clip(np.nan_to_num(used) / scale, 0, 1) * 255).astype("uint8")
    return {
        "lines": [
            [int(layer), int(expert), int(prompt)]
            for layer, expert, prompt in zip(
                lines["layer"], experts, dataset["prompt_index"].values[at], strict=True
            )
        ],
        "texts": [safe_token(text) for text in texts],
        "words": to_base64(words.astype("<u4")),
        "weights": to_base64(steps),
        "width": 2 * context + 1,
        "scale": scale,
        "n_experts": n_experts_of(record),
        "prompts": [str(name) for name in dataset["id"].values],
    }
