"""Sets that judge responses: BeaverTails (Ji et al., 2023) and PKU-SafeRLHF (Ji et al., 2024).

Several responses answer one prompt, some safe and some not. Harm is then the response's: each
prompt of ours is one prompt of theirs with one response, and a pair has the same words and two
responses, of which one is unsafe.
"""

import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from moe_interp.prompts._card import DataCard
from moe_interp.prompts._cells import flags_cell, needed_boolean, text_cell
from moe_interp.prompts._files import Row
from moe_interp.prompts._layout import Layout, Placed
from moe_interp.prompts._prompt import Prompt, listed
from moe_interp.prompts._repeats import first_and_repeated


@dataclass(frozen=True)
class _Judged:
    """A response to a prompt, whether it is unsafe, and in which ways."""

    text: str
    response: str
    harm: bool
    categories: tuple[str, ...]
    place: str


def _beavertails(rows: Sequence[Row], source: str) -> list[Placed]:
    judged = [
        _Judged(
            text=text_cell(row, "prompt"),
            response=text_cell(row, "response"),
            harm=not needed_boolean(row, "is_safe"),
            categories=flags_cell(row, "category"),
            place=row.place,
        )
        for row in rows
    ]
    return _paired(judged, source)


def _saferlhf(rows: Sequence[Row], source: str) -> list[Placed]:
    judged = [
        _Judged(
            text=text_cell(row, "prompt"),
            response=text_cell(row, f"response_{n}"),
            harm=not needed_boolean(row, f"is_response_{n}_safe"),
            categories=flags_cell(row, f"response_{n}_harm_category"),
            place=f"{row.place}, response_{n}",
        )
        for row in rows
        for n in (0, 1)
    ]
    return _paired(judged, source)


def _paired(judged: list[_Judged], source: str) -> list[Placed]:
    """Pair the n-th safe with the n-th unsafe response to the same prompt."""
    kept = _judged_once(judged, source)
    groups: dict[str, list[_Judged]] = {}
    for one in kept:
        groups.setdefault(one.text, []).append(one)
    placed = []
    for number, (text, members) in enumerate(groups.items()):
        question = f"q{number:05d}"
        n_pairs = min(Counter(one.harm for one in members)[harm] for harm in (False, True))
        seen: Counter[bool] = Counter()
        flagged = Counter(name for one in members if one.harm for name in one.categories)
        for one in members:
            rank = seen[one.harm]
            seen[one.harm] += 1
            prompt = Prompt(
                text=text,
                topic=max(flagged, key=flagged.__getitem__, default=None),
                harm=one.harm,
                pair=f"{question}-{rank + 1}" if rank < n_pairs else None,
                wording=question,
                response=one.response,
            )
            placed.append(Placed(prompt, one.place))
    return placed


def _judged_once(judged: list[_Judged], source: str) -> list[_Judged]:
    """Leave out what was judged twice, and all of it where the judgements differ."""
    found = first_and_repeated(
        [(one.text, one.response) for one in judged], [one.harm for one in judged]
    )
    if found.repeated:
        warnings.warn(
            f"{len(found.repeated)} of {len(judged)} responses of {source} repeat another one "
            f"word for word and were left out: {listed(judged[n].place for n in found.repeated)}.",
            stacklevel=6,
        )
    if found.contradicted:
        places = listed(judged[n].place for n in found.contradicted)
        warnings.warn(
            f"{len(found.contradicted)} of {len(judged)} responses of {source} are judged safe in "
            f"one row and unsafe in another and were left out: {places}.",
            stacklevel=6,
        )
    return [judged[n] for n in found.kept]


_PAIRS = "a safe and an unsafe response to one prompt; the prompt is the wording"
_TOPIC = "the category flagged most often among a prompt's unsafe responses; none if all are safe"
BEAVERTAILS = Layout(
    needed=("prompt", "response", "is_safe"),
    optional=("category",),
    read=_beavertails,
    card=DataCard(
        "BeaverTails",
        licence="CC-BY-NC-4.0",
        topic=_TOPIC,
        pairing=_PAIRS,
        reference="Ji et al., 2023",
    ),
)
SAFERLHF = Layout(
    needed=(
        "prompt",
        "response_0",
        "response_1",
        "is_response_0_safe",
        "is_response_1_safe",
    ),
    optional=(
        *("prompt_source", "better_response_id", "safer_response_id"),
        *(
            f"response_{n}_{what}"
            for n in (0, 1)
            for what in ("source", "harm_category", "severity_level", "sha256")
        ),
        *(f"response_{n}_severity" for n in (0, 1)),
    ),
    read=_saferlhf,
    card=DataCard(
        "PKU-SafeRLHF",
        licence="CC-BY-NC-4.0",
        topic=_TOPIC,
        pairing=_PAIRS,
        reference="Ji et al., 2024",
    ),
)
