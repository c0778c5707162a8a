"""Tokens of many prompts with selectors of prompt, layer and expert."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Any

import numpy as np
import xarray as xr

from moe_interp.experts import Expert
from moe_interp.viz._page import asset, page, page_palette
from moe_interp.viz._sample import pack_tokens, sample_prompts, weights_of
from moe_interp.viz._sections import tokens as token_section
from moe_interp.viz._tables import Recorded
from moe_interp.viz._token_view import TokenView, lines_of
from moe_interp.viz._view import View

# Magnitudes are kept in 127 steps of the largest one.
_WEIGHTS = "routing weight"


@dataclass(frozen=True)
class TokenExplorer(View):
    """Prompts whose tokens are coloured by the expert that one selects.

    Attributes:
        name: What the numbers are, with their unit.
        layers: Decoder layers that can be selected.
        n_experts: Experts of each layer.
        start: The expert that is shown first.
        still: What is shown where scripts do not run: the first prompts and the first expert.
    """

    name: str
    layers: tuple[int, ...]
    n_experts: int
    start: Expert
    still: TokenView
    _pack: dict[str, Any] = field(repr=False, compare=False)
    _pages: dict[bool, str] = field(default_factory=dict, repr=False, compare=False)

    @property
    def title(self) -> str:
        """What the numbers are."""
        return self.name

    def to_html(self, *, compress: bool = True) -> str:
        """Give a page of its own: it needs no network and no other file.

        Args:
            compress: Pack scripts and data; without, older browsers can open the page.

        Returns:
            The whole document.
        """
        if compress not in self._pages:
            self._pages[compress] = page(
                title=f"Tokens by {self.name}",
                body=(
                    '<div class="page"><header><p class="kicker">Tokens</p>'
                    f'<h1 class="subject">{escape(self.name)}</h1></header>'
                    f"<main>{token_section(True, words=self.name, signed=self._pack['signed'])}"
                    "</main></div>"
                ),
                style=page_palette() + asset("report.css"),
                script=asset("parts.js") + asset("report.js"),
                data={"tokens": self._pack, "n_experts": self.n_experts, "experts": {}},
                plotly=False,
                compress=compress,
            )
        return self._pages[compress]

    def static_html(self) -> str:
        """Give the first prompts with coloured grounds, without a script."""
        return self.still.static_html()

    def height(self) -> int:
        """How high the frame is, in pixels."""
        return 640


def explore(
    record: Recorded,
    values: np.ndarray | xr.DataArray | None,
    *,
    prompts: Sequence[int] | None,
    name: str | None,
    bound: float | None,
) -> TokenExplorer:
    """Make a view of a record with selectors.

    Args:
        record: A routing record.
        values: Numbers ``[token layer expert]`` or ``[token layer top_k]``; None for routing
            weights.
        prompts: The prompts that can be selected; None for a balanced sample.
        name: What the numbers are.
        bound: The magnitude painted fully.

    Returns:
        The view.

    Raises:
        ValueError: If the values do not fit the record, or one is infinite.
    """
    dataset = record.dataset
    layers = tuple(int(layer) for layer in dataset["layer"].values)
    n_experts = n_experts_of(record)
    if values is not None:
        values = _checked(dataset, values, n_experts)
    shown = list(prompts) if prompts is not None else sample_prompts(dataset)
    outside = [prompt for prompt in shown if not 0 <= prompt < dataset.sizes["prompt"]]
    if outside or not shown:
        raise ValueError(
            f"`prompts` must lie in 0 to {dataset.sizes['prompt'] - 1}, got {outside or shown}."
        )
    pack = pack_tokens(dataset, prompts=shown, values=values, bound=bound)
    start, of_start = most_at_work(record, values)
    tokens, numbers, labels = lines_of(record, of_start, shown[:2])
    still = TokenView(
        prompts=tuple(map(tuple, tokens)),
        values=tuple(map(tuple, numbers)),
        labels=tuple(labels),
        name=f"{name or _WEIGHTS} of {start}",
        bound=pack["scale"],
    )
    return TokenExplorer(
        name=name or _WEIGHTS,
        layers=layers,
        n_experts=n_experts,
        start=start,
        still=still,
        _pack=pack | {"start": str(start)},
    )


def n_experts_of(record: Recorded) -> int:
    """Count the experts of each layer of a record."""
    known = getattr(record, "n_experts", None)
    return int(known) if known else int(record.dataset["expert_index"].max()) + 1


def _checked(dataset: xr.Dataset, values: np.ndarray | xr.DataArray, n_experts: int) -> np.ndarray:
    if isinstance(values, xr.DataArray):
        values = values.transpose("token", "layer", ...).values
    numbers = np.asarray(values, dtype=float)
    tokens, layers, top_k = (dataset.sizes[name] for name in ("token", "layer", "top_k"))
    if numbers.shape not in ((tokens, layers, n_experts), (tokens, layers, top_k)):
        raise ValueError(
            f"`values` must have the axes (token, layer, expert) = "
            f"{(tokens, layers, n_experts)} or (token, layer, top_k) = {(tokens, layers, top_k)}, "
            f"got the shape {numbers.shape}."
        )
    if np.isinf(numbers).any():
        raise ValueError(
            "Token values must be finite, got an infinity. Give NaN to tokens that have no value; "
            "they are shown as such."
        )
    return numbers


def most_at_work(record: Recorded, values: np.ndarray | None = None) -> tuple[Expert, np.ndarray]:
    """Find the expert with the largest sum of magnitudes, and its number at every token.

    Args:
        record: A routing record.
        values: Numbers ``[token layer expert]`` or ``[token layer top_k]``; None for routing
            weights.

    Returns:
        The expert, and its number at each token.
    """
    layers = [int(layer) for layer in record.dataset["layer"].values]
    n_experts = n_experts_of(record)
    dataset = record.dataset
    index = dataset["expert_index"].transpose("token", "layer", "top_k").values.astype(np.int64)
    if values is None:
        size = dataset["routing_weights"].transpose("token", "layer", "top_k").values
    else:
        size = values
    if size.shape[-1] == index.shape[-1]:
        flat = (np.arange(len(layers))[None, :, None] * n_experts + index).ravel()
        total = np.bincount(
            flat, np.abs(np.nan_to_num(size)).ravel(), minlength=len(layers) * n_experts
        )
    else:
        total = np.abs(np.nan_to_num(size)).sum(axis=0).ravel()
    row, expert = divmod(int(total.argmax()), n_experts)
    found = Expert(layers[row], expert)
    if values is None:
        return found, weights_of(record, found)
    if values.shape[-1] != index.shape[-1]:
        return found, values[:, row, expert]
    return found, np.where(index[:, row] == expert, values[:, row], 0.0).sum(axis=-1)
