"""A self-contained page of parts: sentences, figures and tables under headings."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any

import pandas as pd
import plotly.graph_objects as go

from moe_interp.viz import _sections as sections
from moe_interp.viz._explorer import most_at_work, n_experts_of
from moe_interp.viz._figure import plain_figure_data
from moe_interp.viz._html import NO_SCRIPT, figure, plain, section, table
from moe_interp.viz._page import asset, page, page_palette
from moe_interp.viz._sample import pack_tokens
from moe_interp.viz._tables import Recorded, finite
from moe_interp.viz._theme import ON_DARK
from moe_interp.viz._view import write_page

# A table of every expert is for a file; the page shows its first rows.
MOST_ROWS = 40
# Longer tables are folded.
_MOST_OPEN = 15


@dataclass(frozen=True)
class Part:
    """One section of a page.

    Attributes:
        title: Its heading.
        paragraphs: Sentences, as plain text.
        lines: Texts whose lines are kept as they are.
        figures: Figures by what they show.
        tables: Tables by what they hold.
    """

    title: str
    paragraphs: Sequence[str] = ()
    figures: Mapping[str, go.Figure] = field(default_factory=dict)
    tables: Mapping[str, pd.DataFrame] = field(default_factory=dict)
    lines: Sequence[str] = ()


def write_document(
    path: str | Path,
    *,
    kicker: str,
    title: str,
    facts: Sequence[str],
    parts: Sequence[Part],
    note: str | None = None,
    record: Recorded | None = None,
    force: bool = False,
    compress: bool = True,
) -> Path:
    """Write parts as one HTML page that opens offline and makes no request.

    Args:
        path: The HTML file; missing folders are made.
        kicker: What kind of page it is.
        title: What it is about.
        facts: Short facts below the title.
        parts: The sections, in order.
        note: A warning that everybody should read.
        record: A routing record; its tokens are then shown, and a click on an expert in any
            figure shows where that expert works.
        force: Replace a file that stands there.
        compress: Pack scripts and data; without, the page is 2.5 times as large.

    Returns:
        The path that was written.

    Raises:
        ResultExistsError: If there is a file already and `force` is not set.
    """
    path = Path(path)
    figures: dict[str, go.Figure] = {}
    bodies = []
    for number, part in enumerate(parts):
        body = "".join(f"<p>{escape(text)}</p>" for text in part.paragraphs)
        body += "".join(_as_it_is(text) for text in part.lines)
        for label, drawn in part.figures.items():
            name = f"f{len(figures)}"
            figures[name] = drawn
            body += f"<h3>{escape(label)}</h3>{figure(name, label)}"
        body += "".join(_table(rows, caption) for caption, rows in part.tables.items())
        bodies.append(section(f"part-{number}", part.title, body))
    if record is not None:
        bodies.insert(_after_figures(parts), sections.tokens(True))
    warning = f'<aside class="note">{escape(note)}</aside>' if note else ""
    document = page(
        title=title,
        body=(
            f'<div class="page"><header><p class="kicker">{escape(kicker)}</p>'
            f'<h1 class="subject">{escape(title)}</h1>'
            f'<p class="facts">{" · ".join(map(escape, facts))}</p>{warning}</header>'
            f"<main>{''.join(bodies)}</main>{NO_SCRIPT}</div>"
        ),
        style=page_palette() + asset("report.css"),
        script=asset("parts.js") + asset("report.js"),
        data={
            "figures": {name: plain_figure_data(drawn) for name, drawn in figures.items()},
            "on_dark": ON_DARK,
            "tokens": None if record is None else _tokens(record),
            "n_experts": None if record is None else n_experts_of(record),
        },
        compress=compress,
    )
    write_page(document, path, force=force)
    return path


def _tokens(record: Recorded) -> dict[str, Any]:
    return pack_tokens(record.dataset) | {"start": str(most_at_work(record)[0])}


def _as_it_is(text: str) -> str:
    return f"<blockquote><pre>{escape(text)}</pre></blockquote>"


def _after_figures(parts: Sequence[Part]) -> int:
    """Tokens stand behind the last part that has something to click."""
    drawn = [number for number, part in enumerate(parts, start=1) if part.figures]
    return drawn[-1] if drawn else len(parts)


def _table(rows: pd.DataFrame, caption: str) -> str:
    if any(name is not None for name in rows.index.names):
        rows = rows.reset_index()
    shown = rows.head(MOST_ROWS)
    cells = [[_cell(value) for value in row] for row in shown.itertuples(index=False)]
    said = caption if len(shown) == len(rows) else f"{caption} (first {MOST_ROWS} of {len(rows)})"
    drawn = table([str(name) for name in rows], cells, caption=said)
    if len(shown) <= _MOST_OPEN:
        return drawn
    return f"<details><summary>{escape(said)}</summary>{drawn}</details>"


def _cell(value: Any) -> str:  # noqa: ANN401  Any cell of a table.
    return plain(finite(value))
