"""How a result looks in a notebook: its summary and its table, as plain HTML that needs no trust.

No script and no style sheet is used, so that a notebook that was saved by somebody else, or that
is shown where scripts do not run, still shows it. Every text is escaped.
"""

import math
from html import escape
from typing import Any

MOST_ROWS = 10
MOST_COLUMNS = 14
_LONGEST_CELL = 90


class Shown:
    """What has a summary, a table or both, and shows them where a notebook ends a cell with it.

    Example:
        >>> class Found(Shown):
        ...     def summary(self):
        ...         return "2 < 3"
        >>> "2 &lt; 3" in Found()._repr_html_()
        True
    """

    __slots__ = ()

    def _repr_html_(self) -> str:
        said = self.summary() if hasattr(self, "summary") else repr(self)
        parts = [
            f"<p><strong>{escape(type(self).__name__)}</strong></p>",
            f'<pre style="white-space:pre-wrap">{escape(str(said))}</pre>',
        ]
        if hasattr(self, "to_frame"):
            parts.append(table_html(self.to_frame()))
        return f"<div>{''.join(parts)}</div>"


def table_html(frame: Any) -> str:  # noqa: ANN401  A pandas data frame; pandas loads on use.
    """Write the first rows of a table as HTML.

    Args:
        frame: A data frame; an index with a name becomes its first column.

    Returns:
        A table of at most 10 rows and 14 columns that says how much it leaves out; empty for a
        table without rows.
    """
    if any(name is not None for name in frame.index.names):
        frame = frame.reset_index()
    n_rows, n_columns = frame.shape
    if n_rows == 0:
        return ""
    shown = frame.iloc[:MOST_ROWS, :MOST_COLUMNS]
    head = "".join(f'<th scope="col">{escape(str(name))}</th>' for name in shown.columns)
    body = "".join(
        f"<tr>{''.join(f'<td>{escape(_cell(value))}</td>' for value in row)}</tr>"
        for row in shown.itertuples(index=False, name=None)
    )
    left_out = [
        f"{n - most} more {noun}"
        for n, most, noun in (
            (n_rows, MOST_ROWS, "rows"),
            (n_columns, MOST_COLUMNS, "columns"),
        )
        if n > most
    ]
    rest = f"<p><small>{' and '.join(left_out)}: see .to_frame()</small></p>" if left_out else ""
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>{rest}"


def _cell(value: Any) -> str:  # noqa: ANN401
    if value is None:
        return "–"
    if hasattr(value, "item") and getattr(value, "ndim", 0) == 0:
        value = value.item()
    if isinstance(value, float):
        return f"{value:.4g}" if math.isfinite(value) else "–"
    text = str(value)
    return text if len(text) <= _LONGEST_CELL else f"{text[: _LONGEST_CELL - 1]}…"
