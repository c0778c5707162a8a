"""Forwards of a sweep: rows of a prompt and an intervention, from the first layer and token on.

See `_sweep_capture` for what they start from.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers.cache_utils import DynamicCache, DynamicLayer

from moe_interp.interventions import Batch, Edit, Intervention, forward_arguments
from moe_interp.interventions._plan import EditTable, edit_table
from moe_interp.metrics import LogitMetric
from moe_interp.models import MoEModel
from moe_interp.models._traced_edits import apply_edits
from moe_interp.models._traced_judge import judge
from moe_interp.models._traced_parts import prepare
from moe_interp.scores._sweep_anatomy import Anatomy, Reuse
from moe_interp.scores._sweep_capture import Captured
from moe_interp.scores._sweep_own import OwnLayer


@dataclass(frozen=True)
class Rows:
    """Pairs of a prompt and an intervention that can share forwards.

    Attributes:
        layer: The lowest layer that an intervention changes.
        recipe: The intervention of each row, by its place in a list; -1 for none.
        prompt: The prompt of each row, by its place among those captured.
        length: How many tokens, counted from the end, each row has to run.
    """

    layer: int
    recipe: Int[np.ndarray, " row"]
    prompt: Int[np.ndarray, " row"]
    length: Int[np.ndarray, " row"]

    def take(self, places: Int[np.ndarray, " some"]) -> "Rows":
        """Some of the rows."""
        return Rows(self.layer, self.recipe[places], self.prompt[places], self.length[places])

    def __len__(self) -> int:
        return len(self.prompt)


class PrefixLayer(DynamicLayer):
    """The keys and values of one layer before the tokens that run; gathered when they are needed.

    Args:
        keys: The keys of all prompts captured.
        values: Their values.
        rows: The prompt of each row.
        begin: The first position to take.
        end: The position after the last to take.
    """

    def __init__(self, keys: Tensor, values: Tensor, rows: Tensor, begin: int, end: int) -> None:
        super().__init__()
        self.before = (keys[..., begin:end, :], values[..., begin:end, :])
        self.rows = rows
        self.n_before = end - begin
        self.lazy_initialization(keys, values)

    def update(
        self,
        key_states: Tensor,
        value_states: Tensor,
        *args: Any,  # noqa: ANN401
        **kwargs: Any,  # noqa: ANN401
    ) -> tuple[Tensor, Tensor]:
        """Put what was kept before what has been computed now."""
        keys, values = self.before
        rows = self.rows.to(keys.device)
        return (
            torch.cat([keys.index_select(0, rows), key_states], -2),
            torch.cat([values.index_select(0, rows), value_states], -2),
        )

    def get_seq_length(self) -> int:
        """How many tokens were kept."""
        return self.n_before


def run_rows(
    model: MoEModel,
    captured: Captured,
    interventions: Sequence[Intervention],
    rows: Rows,
    places: Anatomy,
    reuse: Reuse,
    own: OwnLayer | None = None,
    metric: LogitMetric | None = None,
) -> Float[Tensor, "row ..."]:
    """Run rows in one forward.

    Args:
        model: The model.
        captured: What the untouched model computed for their prompts.
        interventions: The interventions that the rows name.
        rows: The rows.
        places: Where the forward can be cut.
        reuse: What to take over.
        own: What leaves the layer that is edited, if that has been computed.
        metric: What to make of the logits on the model's server, in their place.

    Returns:
        Next-token logits of each row, or the metric.
    """
    longest = int(captured.lengths[rows.prompt].max())
    n_run = int(rows.length.max()) if reuse.positions else longest
    begin, end = captured.width - longest, captured.width - n_run
    index = torch.from_numpy(rows.prompt)
    inputs, options = _arguments(model, captured, index, n_run, begin)
    if begin < end:
        cache = DynamicCache()
        cache.layers.extend(
            PrefixLayer(keys, values, index, begin, end)
            for keys, values in zip(captured.keys, captured.values, strict=True)
        )
        options = {**options, "past_key_values": cache, "use_cache": True}
    below, given = (), None
    if own is not None:
        below = places.stack[: rows.layer + 1]
        given = own.of_rows(captured, rows.prompt, rows.recipe, n_run)
    elif reuse.layers and rows.layer in captured.hidden:
        below = places.stack[: rows.layer]
        entering = captured.hidden[rows.layer]
        given = entering[:, -n_run:].index_select(0, index.to(entering.device))
    if captured.n_outputs and below:
        given = (given, *([None] * (captured.n_outputs - 1)))
    cut = places.last if reuse.last and n_run > 1 and len(below) < len(places.stack) else None
    short = _LastTokens(n_run, {} if cut is None else {cut: 1})
    cuts = [short.of(each) for each in interventions]
    table = _edits(model, captured, cuts, rows) if own is None else {}
    sites = [model.moe[layer] for layer in sorted(table) if layer != cut]
    last = [] if cut is None else [model.moe[cut]]
    root = model.nnsight
    with torch.no_grad(), root.trace(inputs, backend=model.backend(), **options):
        for envoy in below:
            envoy.skip(given)
        apply_edits(sites, table)
        for site in last:
            prepare(site)
            # What the block returns for one token is added to all of them; only the last counts.
            site.block.input = site.block.input[:, -1:]
        apply_edits(last, table)
        logits = root.output.logits[:, -1].clone()
        if metric is not None:
            logits = judge(logits, metric)
        logits = logits.save()
    return logits  # noqa: RET504  A name that the block binds; the block itself cannot return.


def _arguments(
    model: MoEModel, captured: Captured, index: Int[Tensor, " row"], n_run: int, begin: int
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """What the forward of the last `n_run` tokens is called with; the mask also covers the rest."""
    inputs, options = forward_arguments(model, captured.encoded)
    cut = {}
    for name, tensor in inputs.items():
        from_here = begin if name == "attention_mask" else captured.width - n_run
        cut[name] = tensor[index, from_here:]
    return cut, dict(options)


def _edits(
    model: MoEModel, captured: Captured, interventions: Sequence[Intervention], rows: Rows
) -> EditTable:
    """The edits of all rows, made for all their tokens."""
    index = torch.from_numpy(rows.prompt)
    spans = {name: span[index] for name, span in captured.encoded.spans.items()}
    batch = Batch(model, captured.numbers[rows.prompt], spans)
    recipes = [(n, (interventions[n],)) for n in np.unique(rows.recipe) if n >= 0]
    groups = [(np.flatnonzero(rows.recipe == n), recipe) for n, recipe in recipes]
    return edit_table(batch, groups, "prefill")


@dataclass(frozen=True)
class _LastTokens:
    """Cuts interventions, which are made for whole prompts, to the tokens that run.

    Attributes:
        n_run: How many tokens run, counted from the end.
        of_layer: How many where it is another number.
    """

    n_run: int
    of_layer: Mapping[int, int]

    def of(self, intervention: Intervention) -> "_CutIntervention":
        """The intervention, cut."""
        return _CutIntervention(intervention, self)

    def cut(self, edit: Edit) -> Edit:
        """The last tokens of an edit; a token axis of length 1 holds for all."""
        n_run = self.of_layer.get(edit.layer, self.n_run)
        where, *values = (
            tensor if tensor.shape[1] == 1 else tensor[:, -n_run:]
            for tensor in (edit.where, *edit.values)
        )
        return replace(edit, where=where, values=tuple(values))


@dataclass(frozen=True)
class _CutIntervention(Intervention):
    whole: Intervention
    tokens: _LastTokens

    def edits(self, batch: Batch) -> Sequence[Edit]:
        return [self.tokens.cut(edit) for edit in self.whole.edits(batch)]
