"""Cells of a row as what the design needs: a text, a name or a truth value, or a named error."""

import json
from typing import Any

from moe_interp.errors import PromptError
from moe_interp.prompts._files import Row

_BOOLEANS = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}


def is_empty(value: object) -> bool:
    """Whether a cell says nothing.

    Args:
        value: What the cell holds.

    Returns:
        True for None and for blank texts.
    """
    return value is None or (isinstance(value, str) and not value.strip())


def text_cell(row: Row, column: str) -> str:
    """The text in a column, as it stands.

    Args:
        row: The row.
        column: The column.

    Returns:
        The text.

    Raises:
        PromptError: If there is none.
    """
    value = row.values.get(column)
    if not isinstance(value, str) or not value.strip():
        given = "is missing or empty" if value is None or value == "" else f"is {value!r}"
        raise PromptError(f"{row.place}: `{column}` {given}; a text is needed.")
    return value


def name_cell(row: Row, column: str) -> str | None:
    """The name in a column, without white space around it.

    Args:
        row: The row.
        column: The column.

    Returns:
        The name; None if there is none.

    Raises:
        PromptError: If the cell holds neither a text nor an integer.
    """
    value: Any = row.values.get(column)
    if value is None or isinstance(value, str):
        return (value or "").strip() or None
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    raise PromptError(f"{row.place}: `{column}` is {value!r}; a name (text or integer) is needed.")


def boolean_cell(row: Row, column: str) -> bool | None:
    """The truth value in a column.

    Args:
        row: The row.
        column: The column.

    Returns:
        The value; None if the cell is empty.

    Raises:
        PromptError: If the cell holds something else.
    """
    value = row.values.get(column)
    if is_empty(value):
        return None
    found = _BOOLEANS.get(str(value).strip().casefold())
    if found is None:
        raise PromptError(
            f"{row.place}: `{column}` is {value!r}; needed is one of "
            f"{', '.join(map(repr, _BOOLEANS))}, or nothing if it is unknown."
        )
    return found


def needed_boolean(row: Row, column: str) -> bool:
    """The truth value in a column that must have one.

    Args:
        row: The row.
        column: The column.

    Returns:
        The value.

    Raises:
        PromptError: If the cell is empty or holds something else.
    """
    found = boolean_cell(row, column)
    if found is None:
        raise PromptError(f"{row.place}: `{column}` is missing or empty; true or false is needed.")
    return found


def flags_cell(row: Row, column: str) -> tuple[str, ...]:
    """The names that a column of flags marks as true.

    Args:
        row: The row.
        column: The column; it holds names with a truth value each, as an object or as JSON text.

    Returns:
        The marked names, in order; none if the cell is empty.

    Raises:
        PromptError: If the cell holds something else.
    """
    value = row.values.get(column)
    if is_empty(value):
        return ()
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (json.JSONDecodeError, RecursionError):
            value = None
    if not isinstance(value, dict) or not all(isinstance(flag, bool) for flag in value.values()):
        raise PromptError(
            f"{row.place}: `{column}` is {row.values[column]!r}; an object is needed that gives "
            'each category true or false, such as {"privacy": false}.'
        )
    return tuple(name for name, flag in value.items() if flag)
