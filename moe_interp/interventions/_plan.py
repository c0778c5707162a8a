"""Interventions of a batch, row by row, turned into one table of plain tensors for the trace.

Each row of a batch may have its own interventions. What they have in common, the rule, is applied
to all rows at once; what differs, the experts, becomes a mask with one row for each row.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from moe_interp.interventions._intervention import Batch, Edit, Intervention, Phase

#: layer -> stage -> (rule, where, values) in order of application.
EditTable = dict[int, dict[str, list[tuple]]]


@dataclass
class _Slot:
    """Edits of several groups of rows that share layer, stage, rule and place in the order."""

    edit: Edit
    members: list[tuple[Int[np.ndarray, " _"], Edit]] = field(default_factory=list)


def edit_table(
    batch: Batch,
    groups: Iterable[tuple[Int[np.ndarray, " _"], Sequence[Intervention]]],
    phase: Phase,
) -> EditTable:
    """Lay the interventions of all rows over each other.

    Args:
        batch: The rows that will run.
        groups: Positions of rows, and the interventions these rows have.
        phase: ``"prefill"`` or ``"decode"``.

    Returns:
        What to apply at each layer and stage. A layer that nobody edits is not in it.
    """
    slots: dict[tuple, _Slot] = {}
    for rows, interventions in groups:
        here = batch.rows(rows)
        found = [edit for intervention in interventions for edit in intervention.edits(here)]
        place: dict[tuple[int, str], int] = {}
        for edit in _united(edit for edit in found if edit.phase in (phase, "both")):
            site = (edit.layer, edit.stage)
            place[site] = place.get(site, -1) + 1
            # Rules of different groups never share rows, so their order does not matter.
            shapes = tuple(tuple(value.shape[2:]) for value in edit.values)
            shared = tuple(map(id, edit.shared))
            key = (place[site], edit.layer, edit.stage, edit.rule, shapes, shared)
            slots.setdefault(key, _Slot(edit)).members.append((rows, edit))
    table: EditTable = {}
    for key in sorted(slots, key=lambda key: key[0]):
        slot = slots[key]
        where = _stacked([(rows, edit.where) for rows, edit in slot.members], batch)
        values = tuple(
            _stacked([(rows, edit.values[n]) for rows, edit in slot.members], batch)
            for n in range(len(slot.edit.values))
        )
        stage = table.setdefault(slot.edit.layer, {}).setdefault(slot.edit.stage, [])
        stage.append((slot.edit.rule, where, (*values, *slot.edit.shared)))
    return table


def _united(edits: Iterable[Edit]) -> list[Edit]:
    """Join neighbouring edits of one rule into one, so that two bans do not undo each other.

    The second of two bans, applied alone, could bring back what the first has taken out.
    """
    last: dict[tuple[int, str], int] = {}
    joined: list[Edit] = []
    for edit in edits:
        site = (edit.layer, edit.stage)
        before = joined[last[site]] if site in last else None
        plain = before is not None and not (edit.values or edit.shared or before.values)
        if plain and before.rule is edit.rule and not before.shared:
            joined[last[site]] = replace(before, where=before.where | edit.where)
        else:
            last[site] = len(joined)
            joined.append(edit)
    return joined


def _stacked(members: Sequence[tuple[Int[np.ndarray, " _"], Tensor]], batch: Batch) -> Tensor:
    """Put the tensors of groups of rows into one tensor; rows of no group are zero, or False."""
    n_rows = len(batch.prompt_index)
    rows, first = members[0]
    if len(members) == 1 and len(rows) == n_rows and np.array_equal(rows, np.arange(n_rows)):
        return first
    n_tokens = max(tensor.shape[1] for _, tensor in members)
    stacked = torch.zeros(n_rows, n_tokens, *first.shape[2:], dtype=first.dtype)
    for rows, tensor in members:
        stacked[torch.from_numpy(rows)] = tensor.expand(len(rows), n_tokens, *first.shape[2:])
    return stacked
