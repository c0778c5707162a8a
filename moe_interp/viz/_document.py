"""A self-contained page of parts: sentences, figures and tables under headings."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any

import pandas as pd
import plotly.graph_objects as go

from moe_interp.viz._html import figure, plain, section, table
from moe_interp.viz._page import asset, page, page_palette
from moe_interp.viz._report import plain_figure_data
from moe_interp.viz._tables import finite
from moe_interp.viz._theme import ON_DARK
from moe_interp.viz._view import write_page

# A table of every expert is for a file; the page shows its first rows.
MOST_ROWS = 40


@dataclass(frozen=True)
class Part:
    """One section of a page.

    Attributes:
        title: Its heading.
        paragraphs: Sentences, as plain text.
        figures: Figures by what they show.
        tables: Tables by what they hold.
    """

    title: str
    paragraphs: Sequence[str] = ()
    figures: Mapping[str, go.Figure] = field(default_factory=dict)
    tables: Mapping[str, pd.DataFrame] = field(default_factory=dict)


def write_document(
    path: str | Path,
    *,
    kicker: str,
    title: str,
    facts: Sequence[str],
    parts: Sequence[Part],
    note: str | None = None,
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
        force: Replace a file that stands there.
        compress: Pack scripts and data; without, the page is 2.5 times as large.

    Returns:
        The path that was written.

    Raises:
        ResultExistsError: If there is a file already and `force` is not set.
    """
    path = Path(path)
    figures: dict[str, go.Figure] = {}
    sections = []
    for number, part in enumerate(parts):
        body = "".join(f"<p>{escape(text)}</p>" for text in part.paragraphs)
        for label, drawn in part.figures.items():
            name = f"f{len(figures)}"
            figures[name] = drawn
            body += f"<h3>{escape(label)}</h3>{figure(name, label)}"
        body += "".join(_table(rows, caption) for caption, rows in part.tables.items())
        sections.append(section(f"part-{number}", part.title, body))
    warning = f'<aside class="note">{escape(note)}</aside>' if note else ""
    document = page(
        title=title,
        body=(
            f'<div class="page"><header><p class="kicker">{escape(kicker)}</p>'
            f'<p class="subject">{escape(title)}</p>'
            f'<p class="facts">{" · ".join(map(escape, facts))}</p>{warning}</header>'
            f"<main>{''.join(sections)}</main></div>"
        ),
        style=page_palette() + asset("report.css"),
        script=asset("document.js"),
        data={
            "figures": {name: plain_figure_data(drawn) for name, drawn in figures.items()},
            "on_dark": ON_DARK,
        },
        compress=compress,
    )
    write_page(document, path, force=force)
    return path


def _table(rows: pd.DataFrame, caption: str) -> str:
    shown = rows.head(MOST_ROWS)
    cells = [[_cell(value) for value in row] for row in shown.itertuples(index=False)]
    said = caption if len(shown) == len(rows) else f"{caption} (first {MOST_ROWS} of {len(rows)})"
    return table([str(name) for name in rows], cells, caption=said)


def _cell(value: Any) -> str:  # noqa: ANN401  Any cell of a table.
    return plain(finite(value))
