"""WildJailbreak (Jiang et al., 2024): plain and disguised requests, harmful and benign."""

from collections import Counter
from collections.abc import Sequence

from moe_interp.errors import PromptError
from moe_interp.prompts._card import DataCard
from moe_interp.prompts._cells import is_empty, name_cell, text_cell
from moe_interp.prompts._files import Row
from moe_interp.prompts._layout import Layout, Placed
from moe_interp.prompts._prompt import Prompt

_TYPES = {
    f"{form}_{level}": (form, level == "harmful")
    for form in ("vanilla", "adversarial")
    for level in ("harmful", "benign")
}


def _read(rows: Sequence[Row], source: str) -> list[Placed]:
    """A plain request and the disguised ones made from it are one wording."""
    plain = [_plain(row) for row in rows]
    uses = Counter(text for text in plain if text is not None)
    number = {text: n for n, text in enumerate(uses)}
    placed = []
    for row, request in zip(rows, plain, strict=True):
        form, harm = _form(row)
        shared = request is not None and uses[request] > 1
        prompt = Prompt(
            text=text_cell(row, form),
            topic=form,
            harm=harm,
            wording=f"request-{number[request]:06d}" if shared else None,
            response=None
            if is_empty(row.values.get("completion"))
            else text_cell(row, "completion"),
        )
        placed.append(Placed(prompt, row.place))
    return placed


def _plain(row: Row) -> str | None:
    return None if is_empty(row.values.get("vanilla")) else text_cell(row, "vanilla").strip()


def _form(row: Row) -> tuple[str, bool]:
    kind = name_cell(row, "data_type")
    if kind not in _TYPES:
        raise PromptError(
            f"{row.place}: `data_type` is {kind!r}; WildJailbreak has "
            f"{', '.join(map(repr, _TYPES))}."
        )
    form, harm = _TYPES[kind]
    label = name_cell(row, "label")
    if label is not None and label != str(int(harm)):
        raise PromptError(
            f"{row.place}: data_type {kind!r} and label {label!r} contradict each other; harmful "
            "rows have label 1, benign ones 0."
        )
    return form, harm


WILDJAILBREAK = Layout(
    needed=("adversarial", "data_type"),
    optional=("vanilla", "completion", "label"),
    read=_read,
    card=DataCard(
        "WildJailbreak",
        licence="ODC-BY",
        topic="the form, vanilla or adversarial; the file has no topics",
        pairing="none; a vanilla request and the adversarial ones made from it are one wording",
        reference="Jiang et al., 2024",
    ),
)
