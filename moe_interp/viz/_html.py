"""The few elements a report is made of; every text that enters them is escaped here."""

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

from moe_interp.viz import _words as words

# Cells with more characters may break over lines.
_LONG = 34
NO_SCRIPT = (
    '<noscript><p class="note">The figures need JavaScript; all sentences and tables are '
    "complete without it.</p></noscript>"
)


class Raw(str):
    """A cell that is HTML already."""

    __slots__ = ()


def section(name: str, title: str, body: str) -> str:
    """Wrap a part of the report.

    Args:
        name: Its id.
        title: Its heading, as plain text.
        body: Its HTML.

    Returns:
        HTML.
    """
    return f'<section id="{name}"><h2>{escape(title)}</h2>{body}</section>'


def figure(name: str, label: str, *, wide: bool = False) -> str:
    """Make the place where the script draws a figure.

    Args:
        name: The figure's name; its element is ``figure-NAME``.
        label: What it shows, for those who cannot see it.
        wide: Whether it may be wider than a phone and then scrolls by itself.

    Returns:
        HTML.
    """
    scroll = ' tabindex="0"' if wide else ""
    return (
        f'<div class="figure{" scroll" if wide else ""}"{scroll}>'
        f'<div id="figure-{name}" class="plot" role="img" aria-label="{escape(label)}"></div></div>'
    )


def table(head: Sequence[str], rows: Iterable[Sequence[str]], *, caption: str) -> str:
    """Write a table; cells are plain text unless they are ``Raw``.

    Args:
        head: The columns' names.
        rows: The cells.
        caption: What the table holds, for screen readers.

    Returns:
        HTML.
    """
    top = "".join(f'<th scope="col">{escape(name)}</th>' for name in head)
    body = "".join(f"<tr>{''.join(map(_cell, row))}</tr>" for row in rows)
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(caption)}"><table>'
        f"<caption>{escape(caption)}</caption><thead><tr>{top}</tr></thead>"
        f"<tbody>{body}</tbody></table></div>"
    )


def _cell(cell: str) -> str:
    if isinstance(cell, Raw):
        return f"<td>{cell}</td>"
    kind = "absent" if cell == words.NOT_MEASURED else "long" if len(cell) > _LONG else ""
    return f'<td class="{kind}">{escape(cell)}</td>' if kind else f"<td>{escape(cell)}</td>"


def definitions(facts: Mapping[str, Any]) -> str:
    """Write names and values.

    Args:
        facts: Plain texts; None is said to be not measured.

    Returns:
        HTML.
    """
    items = "".join(
        f"<dt>{escape(str(name))}</dt><dd>{escape(plain(value))}</dd>"
        for name, value in facts.items()
    )
    return f'<dl class="facts">{items}</dl>'


def plain(value: Any) -> str:  # noqa: ANN401  Any value of the results.
    """Write any value of the results as plain text.

    Args:
        value: A number, text, list or mapping; None is said to be not measured.

    Returns:
        Text that is not escaped yet.
    """
    if isinstance(value, Mapping):
        return "; ".join(f"{key}: {plain(inner)}" for key, inner in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(map(plain, value)) or "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if value is None or isinstance(value, int | float):
        return words.number(value)
    return str(value)


def absent() -> str:
    """Say that a part of the report was not measured.

    Returns:
        HTML.
    """
    return f'<p class="answer">{words.NOT_MEASURED.capitalize()}.</p>'
