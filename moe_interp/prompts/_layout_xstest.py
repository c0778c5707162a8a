"""XSTest (Röttger et al., 2024): safe prompts, each against an unsafe one of nearly its words."""

import warnings
from collections.abc import Sequence

from moe_interp.errors import PromptError
from moe_interp.prompts._card import DataCard
from moe_interp.prompts._cells import name_cell, text_cell
from moe_interp.prompts._files import Row
from moe_interp.prompts._layout import Layout, Placed
from moe_interp.prompts._prompt import Prompt

_CONTRAST = "contrast_"


def _read(rows: Sequence[Row], source: str) -> list[Placed]:
    """Row n of a safe type stands against row n of its contrast.

    The topic is the family: the name after ``contrast_``. Two families have a second safe type
    that no unsafe row answers to; its prompts keep the topic and stay unpaired.
    """
    by_type: dict[str, list[int]] = {}
    for number, row in enumerate(rows):
        by_type.setdefault(text_cell(row, "type").strip(), []).append(number)
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
                f"Only {agreement:.0%} of the rows of {partner!r} and {contrast!r} in {source} "
                "have the same `focus`, so rows were left out or moved; these prompts stay "
                "unpaired.",
                stacklevel=4,
            )
            continue
        both = zip(by_type[partner], by_type[contrast], strict=False)
        for n, (safe, unsafe) in enumerate(both, start=1):
            pair[safe] = pair[unsafe] = f"{family}-{n:02d}"
    return [
        Placed(
            Prompt(
                text=text_cell(row, "prompt"),
                topic=topic[text_cell(row, "type").strip()],
                harm=_harm(row),
                pair=pair.get(number),
                id=name_cell(row, "id"),
            ),
            row.place,
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


def _harm(row: Row) -> bool:
    harm = text_cell(row, "type").strip().startswith(_CONTRAST)
    label = name_cell(row, "label")
    if label is not None and label != ("unsafe" if harm else "safe"):
        raise PromptError(
            f"{row.place}: type {row.values['type']!r} and label {label!r} contradict each other. "
            "XSTest's types that start with 'contrast_' are unsafe, the others are safe."
        )
    return harm


XSTEST = Layout(
    needed=("prompt", "type", "focus"),
    optional=("label", "id", "note"),
    read=_read,
    card=DataCard(
        "XSTest",
        licence="CC-BY-4.0",
        topic="the family of `type`, without 'contrast_'",
        pairing="row n of a safe type against row n of its contrast (the same words but a few)",
        reference="Röttger et al., 2024",
    ),
)
