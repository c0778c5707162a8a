"""Show prompts token by token, coloured by a number, in a notebook or a page of their own."""

import html
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from moe_interp.errors import ResultExistsError
from moe_interp.experts import Expert, as_expert
from moe_interp.viz._circuitsvis import coloured_tokens, symmetric_bound
from moe_interp.viz._page import asset, page
from moe_interp.viz._tables import Recorded

_BLUE, _RED = "33, 102, 172", "178, 24, 43"


@dataclass(frozen=True)
class TokenView:
    """Prompts with coloured tokens; a notebook shows it, ``to_html`` gives a page.

    Attributes:
        prompts: The tokens of each prompt.
        values: One finite number for each token of each prompt.
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
                {"label": label, "props": coloured_tokens(tokens, values, bound=self.bound)}
                for tokens, values, label in zip(
                    self.prompts, self.values, self.labels, strict=True
                )
            ]
            self._pages[compress] = page(
                title=self.name,
                body=f'<h1>{html.escape(self.name)}</h1><div id="views"></div>',
                style=asset("tokens.css"),
                script=asset("tokens.js"),
                data={"views": views},
                plotly=False,
                compress=compress,
            )
        return self._pages[compress]

    def save(self, path: str | Path, *, force: bool = False) -> None:
        """Write the page to a file.

        Args:
            path: The HTML file.
            force: Replace a file that stands there.

        Raises:
            ResultExistsError: If there is a file already and `force` is not set.
        """
        write_page(self.to_html(), Path(path), force=force)

    def _repr_html_(self) -> str:
        # An untrusted notebook drops the frame: the static view beneath it is then what one sees.
        rows = sum(1 + len("".join(tokens)) // 90 for tokens in self.prompts)
        height = 90 + 44 * len(self.prompts) + 30 * rows
        frame = (
            f'<iframe title="{html.escape(self.name)}" sandbox="allow-scripts" '
            f'srcdoc="{html.escape(self.to_html())}" style="position:absolute;inset:0;'
            'width:100%;height:100%;border:0;background:#fff"></iframe>'
        )
        return (
            f'<div style="position:relative;min-height:{height}px;background:#fff;color:#1d2430;'
            f'padding:8px">{self._static()}{frame}</div>'
        )

    def _static(self) -> str:
        lines = [f"<strong>{html.escape(self.name)}</strong>"]
        for tokens, values, label in zip(self.prompts, self.values, self.labels, strict=True):
            spans = "".join(
                f'<span title="{value:.4g}" style="background:rgba('
                f"{_BLUE if value >= 0 else _RED},{min(abs(value) / self.bound, 1) * 0.75:.3f});"
                f'padding:1px 3px;border-radius:3px">{html.escape(token)}</span> '
                for token, value in zip(tokens, values, strict=True)
            )
            lines.append(
                f'<p style="margin:6px 0"><small>{html.escape(label)}</small><br>{spans}</p>'
            )
        return "".join(lines)


def show_tokens(
    source: Recorded | Sequence[str] | Sequence[Sequence[str]],
    values: Expert | tuple[int, int] | str | np.ndarray | Sequence[Any],
    *,
    prompts: Sequence[int] | None = None,
    labels: Sequence[str] | None = None,
    name: str | None = None,
    bound: float | None = None,
) -> TokenView:
    """Show tokens coloured by numbers, or by how much an expert was used for each of them.

    Blue is positive, red negative, white zero; the scale is symmetric around zero and shared by
    all prompts shown. Special tokens stay visible, and no token's text is read as HTML.

    Args:
        source: The tokens of one prompt, those of several prompts, or a routing record.
        values: One finite number for each token; for a record, the expert whose routing weight
            is shown, 0 where a token did not choose it.
        prompts: For a record, which of its prompts to show; by default the first four.
        labels: What to write above each prompt.
        name: What the numbers are, with their unit.
        bound: The magnitude painted fully; by default the largest one shown.

    Returns:
        The view; a notebook displays it, ``.save(path)`` writes a page.

    Raises:
        ValueError: If lengths differ, a number is not finite, or the record lacks the expert's
            layer or a prompt.

    Example:
        >>> view = show_tokens(["<bos>", "hello"], [0.0, -0.5])
        >>> view.bound
        0.5
    """
    if isinstance(source, Recorded):
        expert = as_expert(values)  # type: ignore[arg-type]
        wanted = list(prompts) if prompts is not None else list(range(4))
        tokens, numbers, found = _of_record(source, expert, wanted, strict=prompts is not None)
        labels = labels if labels is not None else found
        name = name or f"routing weight of {expert}"
    else:
        several = len(source) > 0 and not isinstance(source[0], str)
        tokens = [list(line) for line in source] if several else [list(source)]  # type: ignore[arg-type]
        given = list(values) if several else [values]  # type: ignore[arg-type]
        if len(given) != len(tokens):
            raise ValueError(
                f"`source` has {len(tokens)} prompts and `values` has {len(given)}; "
                "give one list of values for each prompt."
            )
        numbers = [[float(value) for value in line] for line in given]  # type: ignore[union-attr]
    labels = list(labels) if labels is not None else [f"prompt {i}" for i in range(len(tokens))]
    if len(labels) != len(tokens):
        raise ValueError(f"`labels` has {len(labels)} entries for {len(tokens)} prompts.")
    limit = symmetric_bound([value for line in numbers for value in line], bound)
    for line, line_values in zip(tokens, numbers, strict=True):
        coloured_tokens(line, line_values, bound=limit)
    return TokenView(
        prompts=tuple(map(tuple, tokens)),
        values=tuple(map(tuple, numbers)),
        labels=tuple(labels),
        name=name or "value",
        bound=limit,
    )


def write_page(document: str, path: Path, *, force: bool) -> None:
    """Write a document without ever replacing a file by accident or by half.

    Args:
        document: The page.
        path: Where to write it; missing folders are made.
        force: Replace a file that stands there.

    Raises:
        ResultExistsError: If there is a file already and `force` is not set.
    """
    if path.exists() and not force:
        raise ResultExistsError(
            f"{str(path)!r} already exists. Choose another path, or pass force=True to replace it."
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.unfinished")
    unfinished.write_text(document, encoding="utf-8")
    unfinished.replace(path)


def _of_record(
    record: Recorded, expert: Expert, prompts: Sequence[int], *, strict: bool
) -> tuple[list[list[str]], list[list[float]], list[str]]:
    dataset = record.dataset
    layers = [int(layer) for layer in dataset["layer"].values]
    if expert.layer not in layers:
        raise ValueError(
            f"The record has no layer {expert.layer}. Its layers: {', '.join(map(str, layers))}."
        )
    n_prompts = dataset.sizes["prompt"]
    outside = [prompt for prompt in prompts if not 0 <= prompt < n_prompts]
    if outside and strict:
        raise ValueError(f"`prompts` must lie in 0 to {n_prompts - 1}, got {outside}.")
    here = dataset.isel(layer=layers.index(expert.layer)).transpose("token", ...)
    used = np.where(here["expert_index"].values == expert.expert, here["routing_weights"].values, 0)
    owner = np.asarray(dataset["prompt_index"].values)
    texts = dataset["token_text"].values
    tokens, numbers, labels = [], [], []
    for prompt in prompts:
        if prompt in outside:
            continue
        rows = np.flatnonzero(owner == prompt)
        tokens.append([str(text) for text in texts[rows]])
        numbers.append([float(value) for value in used[rows].sum(axis=-1)])
        about = [str(dataset[key].values[prompt]) for key in ("id", "topic") if key in dataset]
        labels.append(" · ".join([f"prompt {prompt}", *about]))
    return tokens, numbers, labels
