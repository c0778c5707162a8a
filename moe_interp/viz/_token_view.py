"""Prompts with coloured tokens: the picture that needs no selectors."""

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float
from numpy import ndarray

from moe_interp.viz._circuitsvis import coloured_tokens
from moe_interp.viz._page import asset, page
from moe_interp.viz._tables import Recorded
from moe_interp.viz._view import View

_BLUE, _RED = "33, 102, 172", "178, 24, 43"


@dataclass(frozen=True)
class TokenView(View):
    """Prompts with coloured tokens; a notebook shows it, ``to_html`` gives a page.

    Attributes:
        prompts: The tokens of each prompt.
        values: One number for each token of each prompt; NaN where there is none.
        labels: What stands above each prompt.
        name: What the numbers are, with their unit.
        bound: The magnitude that is painted fully, the same on both sides of zero.
    """

    prompts: tuple[tuple[str, ...], ...]
    values: tuple[tuple[float, ...], ...]
    labels: tuple[str, ...]
    name: str
    bound: float
    _pages: dict[bool, str] = field(default_factory=dict, repr=False, compare=False)

    def to_html(self, *, compress: bool = True) -> str:
        """Give a page of its own: it needs no network and no other file.

        Args:
            compress: Pack the script; without, older browsers can open the page.

        Returns:
            The whole document.
        """
        if compress not in self._pages:
            views = [
                {
                    "label": label,
                    "props": coloured_tokens(tokens, values, bound=self.bound),
                    "absent": [i for i, value in enumerate(values) if math.isnan(value)],
                }
                for tokens, values, label in zip(
                    self.prompts, self.values, self.labels, strict=True
                )
            ]
            self._pages[compress] = page(
                title=self.name,
                body=f'<h1>{html.escape(self.name)}</h1><div id="views"></div>',
                style=asset("tokens.css"),
                script=asset("parts.js") + asset("tokens.js"),
                data={"views": views},
                plotly=False,
                compress=compress,
            )
        return self._pages[compress]

    @property
    def title(self) -> str:
        """What the numbers are."""
        return self.name

    def height(self) -> int:
        """How high the frame is, in pixels."""
        rows = sum(1 + len("".join(tokens)) // 90 for tokens in self.prompts)
        return 90 + 44 * len(self.prompts) + 30 * rows

    def static_html(self) -> str:
        """Give the tokens with coloured grounds, without a script."""
        lines = [f"<strong>{html.escape(self.name)}</strong>"]
        for tokens, values, label in zip(self.prompts, self.values, self.labels, strict=True):
            spans = " ".join(
                self._span(token, value) for token, value in zip(tokens, values, strict=True)
            )
            lines.append(
                f'<p style="margin:6px 0"><small>{html.escape(label)}</small><br>{spans}</p>'
            )
        return "".join(lines)

    def _span(self, token: str, value: float) -> str:
        if math.isnan(value):
            look, said = "border-bottom:2px dotted #808894", "no value"
        else:
            share = min(abs(value) / self.bound, 1) * 0.75
            look = f"background:rgba({_BLUE if value >= 0 else _RED},{share:.3f})"
            said = f"{value:.4g}"
        return (
            f'<span title="{said}" style="{look};padding:1px 3px;border-radius:3px">'
            f"{html.escape(token)}</span>"
        )


def lines_of(
    record: Recorded, per_token: Float[ndarray, " token"], prompts: Sequence[int]
) -> tuple[list[list[str]], list[list[float]], list[str]]:
    """Cut a record's tokens and one number for each of them into prompts.

    Args:
        record: A routing record.
        per_token: One number for each token of the record.
        prompts: Positions of the prompts.

    Returns:
        Tokens, numbers and a label of each prompt.
    """
    dataset = record.dataset
    owner = np.asarray(dataset["prompt_index"].values)
    texts = dataset["token_text"].values
    tokens, numbers, labels = [], [], []
    for prompt in prompts:
        rows = np.flatnonzero(owner == prompt)
        tokens.append([str(text) for text in texts[rows]])
        numbers.append([float(value) for value in per_token[rows]])
        about = [str(dataset[key].values[prompt]) for key in ("id", "topic") if key in dataset]
        labels.append(" · ".join([f"prompt {prompt}", *about]))
    return tokens, numbers, labels
