"""The layouts of prompt files: ours and XSTest's, recognised by their columns."""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any

from moe_interp.errors import PromptError
from moe_interp.prompts._files import Row
from moe_interp.prompts._prompt import Prompt, listed

_BOOLEANS = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
_CONTRAST = "contrast_"


def prompts_from_rows(rows: Sequence[Row], *, source: str) -> list[Prompt]:
    """Turn the rows of a file into prompts.

    Args:
        rows: The rows; their columns say which layout the file has.
        source: The file's name, for messages.

    Returns:
        One prompt for each row, in order.

    Raises:
        PromptError: If no layout has these columns, or a row holds a value that cannot be used.
    """
    columns = list(dict.fromkeys(column for row in rows for column in row.values))
    layout = next((one for one in _LAYOUTS if set(one.needed) <= set(columns)), None)
    if layout is None:
        raise PromptError(
            f"{source} has the columns {tuple(columns)}. Needed are `text` (with `topic`, `harm` "
            "and `pair` for an audit, and `wording` if wordings repeat), or XSTest's "
            "`prompt`, `type` and `focus`. Rename the columns."
        )
    unused = [column for column in columns if column not in layout.known]
    if unused:
        warnings.warn(f"{source}: these columns were not used: {listed(unused)}.", stacklevel=3)
    return layout.read(rows)


def _own_layout(rows: Sequence[Row]) -> list[Prompt]:
    return [
        Prompt(
            text=_text(row, "text"),
            topic=_name(row, "topic"),
            harm=_boolean(row, "harm"),
            pair=_name(row, "pair"),
            wording=_name(row, "wording"),
            id=_name(row, "id"),
        )
        for row in rows
    ]


def _xstest_layout(rows: Sequence[Row]) -> list[Prompt]:
    """Röttger et al. (2024), XSTest: row n of a safe type stands against row n of its contrast.

    The topic is the family: the name after ``contrast_``. Two families have a second safe type
    that no unsafe row answers to; its prompts keep the topic and stay unpaired.
    """
    by_type: dict[str, list[int]] = {}
    for number, row in enumerate(rows):
        by_type.setdefault(_text(row, "type").strip(), []).append(number)
    topic = {kind: kind.removeprefix(_CONTRAST) for kind in by_type}
    pair: dict[int, str] = {}
    for contrast in (kind for kind in by_type if kind.startswith(_CONTRAST)):
        family = topic[contrast]
        safe_types = _safe_types(family, by_type)
        topic |= dict.fromkeys(safe_types, family)
        partner = max(
            safe_types,
            key=lambda safe: _agreement(rows, by_type[safe], by_type[contrast]),
            default=None,
        )
        if partner is None:
            continue
        agreement = _agreement(rows, by_type[partner], by_type[contrast])
        if agreement < 0.8:
            warnings.warn(
                f"Only {agreement:.0%} of the rows of {partner!r} and {contrast!r} have the same "
                "`focus`, so rows were left out or moved; these prompts stay unpaired.",
                stacklevel=4,
            )
            continue
        both = zip(by_type[partner], by_type[contrast], strict=False)
        for n, (safe, unsafe) in enumerate(both, start=1):
            pair[safe] = pair[unsafe] = f"{family}-{n:02d}"
    return [
        Prompt(
            text=_text(row, "prompt"),
            topic=topic[_text(row, "type").strip()],
            harm=_xstest_harm(row),
            pair=pair.get(number),
            id=_name(row, "id"),
        )
        for number, row in enumerate(rows)
    ]


def _safe_types(family: str, types: Sequence[str] | dict[str, list[int]]) -> list[str]:
    """The safe types of a family: of its own name, or else those that carry it at one end."""
    if family in types:
        return [family]
    return [
        kind
        for kind in types
        if kind.startswith(f"{family}_") or kind.endswith(f"_{family}")
        if not kind.startswith(_CONTRAST)
    ]


def _agreement(rows: Sequence[Row], safe: Sequence[int], unsafe: Sequence[int]) -> float:
    """Part of the rows that stand against each other and have the same focus."""
    focus = [str(row.values.get("focus") or "").strip().casefold() for row in rows]
    same = [focus[a] == focus[b] for a, b in zip(safe, unsafe, strict=False)]
    return sum(same) / len(same)


def _xstest_harm(row: Row) -> bool:
    harm = _text(row, "type").strip().startswith(_CONTRAST)
    label = _name(row, "label")
    if label is not None and label != ("unsafe" if harm else "safe"):
        raise PromptError(
            f"{row.place}: type {row.values['type']!r} and label {label!r} contradict each other. "
            "XSTest's types that start with 'contrast_' are unsafe, the others are safe."
        )
    return harm


def _text(row: Row, column: str) -> str:
    value = row.values.get(column)
    if not isinstance(value, str) or not value.strip():
        given = "is missing or empty" if value is None or value == "" else f"is {value!r}"
        raise PromptError(f"{row.place}: `{column}` {given}; a text is needed.")
    return value


def _name(row: Row, column: str) -> str | None:
    value: Any = row.values.get(column)
    if value is None or isinstance(value, str):
        return (value or "").strip() or None
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    raise PromptError(f"{row.place}: `{column}` is {value!r}; a name (text or integer) is needed.")


def _boolean(row: Row, column: str) -> bool | None:
    value = row.values.get(column)
    if value is None or (isinstance(value, str) and not value.strip()):
        return None
    found = _BOOLEANS.get(str(value).strip().casefold())
    if found is None:
        raise PromptError(
            f"{row.place}: `{column}` is {value!r}; needed is one of "
            f"{', '.join(map(repr, _BOOLEANS))}, or nothing if it is unknown."
        )
    return found


@dataclass(frozen=True)
class _Layout:
    """How to recognise a file and read its rows; `known` columns need no warning."""

    needed: tuple[str, ...]
    known: tuple[str, ...]
    read: Callable[[Sequence[Row]], list[Prompt]]


_LAYOUTS = (
    _Layout(("text",), tuple(field.name for field in fields(Prompt)), _own_layout),
    _Layout(
        ("prompt", "type", "focus"),
        ("prompt", "type", "focus", "label", "id", "note"),
        _xstest_layout,
    ),
)
