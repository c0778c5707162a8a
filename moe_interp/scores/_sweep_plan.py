"""Which pairs of a prompt and an expert have to run, from which token on, and in which batches."""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from moe_interp.interventions import Batch, Edit, Intervention
from moe_interp.models import MoEModel
from moe_interp.scores._sweep_capture import Captured
from moe_interp.scores._sweep_forward import Rows
from moe_interp.scores._sweep_rules import LOCAL_RULES

#: Tokens, padding included, that "auto" puts into one batch; a token whose keys and values are
#: taken over counts for a part of one.
TOKENS_PER_BATCH = 16384
TAKEN_OVER = 1 / 8
#: Rows that "auto" puts into one batch at most: each has logits over the vocabulary.
ROWS_PER_BATCH = 1024
#: What one more forward costs, in tokens; it decides whether a short row joins longer ones.
FORWARD_IN_TOKENS = 128


def changed_rows(
    model: MoEModel,
    captured: Captured,
    interventions: Sequence[Intervention],
    *,
    last: int | None,
) -> list[Rows]:
    """Find the prompts that each intervention changes, and the first token that it changes.

    Args:
        model: The model.
        captured: What the untouched model computed for the prompts.
        interventions: The interventions.
        last: The layer in which only the last token counts, if any.

    Returns:
        The rows that have to run, by the lowest layer that is edited.
    """
    spans = dict(captured.encoded.spans)
    batch = Batch(model, captured.numbers, spans)
    real = captured.encoded.attention_mask.bool()
    chosen = {
        layer: _as_mask(index, model.moe[layer].n_experts)
        for layer, index in captured.chosen.items()
    }
    found: dict[int, list[tuple[int, int, int]]] = {}
    for recipe, intervention in enumerate(interventions):
        edits = [edit for edit in intervention.edits(batch) if edit.phase != "decode"]
        changed = torch.zeros_like(real)
        for edit in edits:
            here = _changed(edit, chosen[edit.layer]) & real
            if edit.layer == last:
                here[:, :-1] = False
            changed |= here
        prompts = changed.any(1).nonzero().flatten()
        first = changed[prompts].int().argmax(1)
        layer = min((edit.layer for edit in edits), default=0)
        found.setdefault(layer, []).extend(
            (recipe, int(prompt), captured.width - int(start))
            for prompt, start in zip(prompts, first, strict=True)
        )
    return [Rows(layer, *np.array(rows, dtype=np.int64).T) for layer, rows in found.items() if rows]


def _as_mask(
    index: Int[Tensor, "prompt pos top_k"], n_experts: int
) -> Bool[Tensor, "prompt pos expert"]:
    """Whether each token chose each expert; what a model chooses beyond its experts is left out."""
    beyond = int(max(n_experts, int(index.max()) + 1))
    mask = torch.zeros(*index.shape[:2], beyond, dtype=torch.bool)
    return mask.scatter(-1, index.long(), True)[..., :n_experts]


def _changed(edit: Edit, chosen: Bool[Tensor, "prompt pos expert"]) -> Bool[Tensor, "prompt pos"]:
    """The tokens that an edit may change."""
    where = edit.where.cpu()
    if edit.rule in LOCAL_RULES:
        experts = where.flatten(0, 1).any(0).nonzero().flatten()
        where = where[..., experts] & chosen[..., experts]
    return where.any(-1).expand(chosen.shape[:2])


def batches(
    rows: Rows,
    lengths: Int[np.ndarray, " prompt"],
    *,
    batch_size: int | str,
    may_cut: bool,
) -> Iterator[Rows]:
    """Cut rows into batches of like length.

    Rows of one batch run as many tokens as the longest of them, so that more batches mean fewer
    tokens; where the cuts lie is chosen to make tokens and forwards together cost least.

    Args:
        rows: The rows.
        lengths: How many tokens each prompt has.
        batch_size: Rows in a batch; ``"auto"`` fills batches up to a number of tokens.
        may_cut: Whether tokens before a row's first changed one are taken over.

    Yields:
        The batches, longest rows first.
    """
    runs = rows.length if may_cut else lengths[rows.prompt]
    order = np.argsort(-runs, kind="stable")
    widest = int(lengths[rows.prompt].max())
    distinct, counts = np.unique(runs, return_counts=True)
    distinct, counts = distinct[::-1], counts[::-1]
    cost_of = {
        int(run): run + TAKEN_OVER * (widest - run if may_cut else 0) for run in distinct.tolist()
    }
    limits = {run: _most_rows(cost, batch_size) for run, cost in cost_of.items()}
    start = 0
    for first, last in _cheapest_cuts(distinct.tolist(), counts.tolist(), cost_of, limits):
        size = int(counts[first:last].sum())
        n_batches = -(-size // limits[int(distinct[first])])
        for part in np.array_split(order[start : start + size], n_batches):
            yield rows.take(part)
        start += size


def _most_rows(cost: float, batch_size: int | str) -> int:
    if batch_size != "auto":
        return int(batch_size)
    return max(1, min(ROWS_PER_BATCH, int(TOKENS_PER_BATCH / cost)))


def _cheapest_cuts(
    runs: Sequence[int],
    counts: Sequence[int],
    cost_of: Mapping[int, float],
    limits: Mapping[int, int],
) -> list[tuple[int, int]]:
    """Divide lengths, longest first, into neighbouring groups so that all together cost least."""
    total = np.concatenate([[0], np.cumsum(counts)])
    best, came_from = [0.0], [0]
    for end in range(1, len(runs) + 1):
        costs = []
        for start in range(end):
            size = int(total[end] - total[start])
            n_forwards = -(-size // limits[runs[start]])
            cost = size * cost_of[runs[start]] + n_forwards * FORWARD_IN_TOKENS
            costs.append(best[start] + cost)
        came_from.append(int(np.argmin(costs)))
        best.append(costs[came_from[-1]])
    cuts, end = [], len(runs)
    while end:
        cuts.append((came_from[end], end))
        end = came_from[end]
    return cuts[::-1]
