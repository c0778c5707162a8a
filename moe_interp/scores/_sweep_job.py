"""The parts of a sweep, and how each is measured: by next-token logits, or by generated texts."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy import ndarray
from torch import Tensor

from moe_interp.capture import plan_batches
from moe_interp.experts import Expert, ExpertSet
from moe_interp.interventions import (
    Intervention,
    Metric,
    Mode,
    checked_values,
    judged_there,
    measure_many,
)
from moe_interp.models import MoEModel
from moe_interp.prompts import PromptSet, TokenizedPrompts
from moe_interp.scores._sweep_anatomy import Reuse, anatomy
from moe_interp.scores._sweep_capture import Captured, capture
from moe_interp.scores._sweep_check import settle_reuse
from moe_interp.scores._sweep_forward import Rows, run_rows
from moe_interp.scores._sweep_own import own_layer
from moe_interp.scores._sweep_plan import batches, changed_rows
from moe_interp.scores._sweep_store import Part

#: Bytes of hidden states, keys and values that are kept of one batch of prompts, at most; what a
#: token needs is taken for eight times its hidden states.
CAPTURED_BYTES = 2 * 2**30
CAPTURED_WIDTHS = 8


class LogitJob:
    """Measure by a metric of next-token logits.

    Args:
        model: The model.
        prompts: The prompts.
        tokens: The same, as tokens.
        experts: The experts of each layer to take away.
        interventions: How each of them is taken away.
        metric: The metric.
        batch_size: Rows in one forward.
    """

    def __init__(
        self,
        model: MoEModel,
        prompts: PromptSet,
        tokens: TokenizedPrompts,
        experts: Mapping[int, Sequence[int]],
        interventions: Mapping[int, Sequence[Intervention]],
        metric: Metric,
        batch_size: int | str,
    ) -> None:
        self.model, self.prompts, self.tokens = model, prompts, tokens
        self.experts, self.interventions = experts, interventions
        self.metric, self.batch_size = metric, batch_size
        self.chunks = _chunks(model, tokens, batch_size)
        self.places = anatomy(model)
        self.reuse = Reuse()
        self.there = metric if judged_there(model, metric) else None
        self._captured: tuple[int, Captured, Float[ndarray, " chunk"]] | None = None

    def prepare(self, notes: Mapping[str, Any]) -> Mapping[str, Any]:
        """Find out what may be taken over, unless that is noted.

        Args:
            notes: What an earlier run of the same job noted; empty if there was none.

        Returns:
            What may be taken over, and in words what may not.
        """
        if self.model.connection is not None:
            return {**vars(self.reuse), "not_taken_over": "what layers hold stays on the server"}
        if not notes:
            self.reuse, why = settle_reuse(self.model, self.tokens, self.interventions, self.places)
            return {**vars(self.reuse), "not_taken_over": why}
        self.reuse = Reuse(*(bool(notes[name]) for name in vars(Reuse())))
        return notes

    def measure(self, chunk: int, layer: int) -> Part:
        """Measure the experts of one layer on one chunk.

        Args:
            chunk: Which chunk.
            layer: The layer.

        Returns:
            The effects, and what they took.
        """
        captured, baseline = self._chunk(chunk)
        interventions = self.interventions[layer]
        effects = np.full((len(baseline), self.model.architecture.n_experts), np.nan)
        effects[:, list(self.experts[layer])] = 0.0
        last = self.places.last if self.reuse.last else None
        ids = np.array(self.experts[layer])
        n_rows = n_tokens = n_forwards = 0
        for rows in changed_rows(self.model, captured, interventions, last=last):
            own, top_k = None, self.model.moe[layer].top_k
            # Each choice costs a run of the layer on all prompts; few rows cost less.
            if self.reuse.own and len(rows) > top_k * len(baseline):
                own = own_layer(self.model, captured, interventions, rows.layer, self.places)
                n_forwards += top_k if own is not None else 0
            for some in batches(
                rows,
                captured.lengths,
                batch_size=self.batch_size,
                may_cut=self.reuse.positions,
            ):
                logits = run_rows(
                    self.model,
                    captured,
                    interventions,
                    some,
                    self.places,
                    self.reuse,
                    own,
                    self.there,
                )
                values = self._judged(logits, captured, some, interventions)
                effects[some.prompt, ids[some.recipe]] = values - baseline[some.prompt]
                n_rows += len(some)
                longest = some.length if self.reuse.positions else captured.lengths[some.prompt]
                n_tokens += len(some) * int(longest.max())
                n_forwards += 1
        return Part(effects, n_rows, n_tokens, n_forwards)

    def _chunk(self, chunk: int) -> tuple[Captured, Float[ndarray, " chunk"]]:
        """What the untouched model computed for a chunk, and the metric of that."""
        if self._captured is None or self._captured[0] != chunk:
            self._captured = None
            numbers = self.chunks[chunk]
            captured = capture(
                self.model,
                self.tokens.batch(numbers.tolist()),
                numbers,
                self.places,
                self.reuse,
                list(self.interventions),
                self.there,
            )
            places = np.arange(len(numbers))
            untouched = Rows(0, np.full(len(numbers), -1), places, captured.lengths)
            baseline = self._judged(captured.logits, captured, untouched, ())
            self._captured = (chunk, captured, baseline)
        return self._captured[1:]

    def _judged(
        self,
        logits: Float[Tensor, "row ..."],
        captured: Captured,
        rows: Rows,
        interventions: Sequence[Intervention],
    ) -> Float[ndarray, " row"]:
        """The metric of each row, whose logits must be numbers."""
        broken = logits.isnan().reshape(len(logits), -1).any(-1).nonzero().flatten().tolist()
        if broken:
            prompt = self.prompts.ids[captured.numbers[rows.prompt[broken[0]]]]
            recipe = rows.recipe[broken[0]]
            under = "no intervention" if recipe < 0 else repr(interventions[recipe])
            raise ValueError(
                f"The logits of prompt {prompt!r} under {under} are not numbers (NaN), as in "
                f"{len(broken)} of {len(logits)} rows of its batch. Check the model's weights and "
                "dtype; half precision may overflow."
            )
        if self.there is not None:
            return logits.double().cpu().numpy()
        with torch.no_grad():
            values = checked_values(self.metric(logits), len(logits), self.metric)
        return values.double().cpu().numpy()


class TextJob:
    """Measure by a metric of generated texts, every expert on every prompt.

    Args:
        model: The model.
        prompts: The prompts.
        experts: The experts of each layer to take away.
        metric: The metric.
        mode: How they are taken away.
        max_new_tokens: How much to generate.
        batch_size: Rows in one generation.
    """

    def __init__(
        self,
        model: MoEModel,
        prompts: PromptSet,
        experts: Mapping[int, Sequence[int]],
        metric: Metric,
        mode: Mode,
        max_new_tokens: int,
        batch_size: int | str,
    ) -> None:
        self.model, self.prompts, self.experts = model, prompts, experts
        self.options = {
            "metric": metric,
            "mode": mode,
            "max_new_tokens": max_new_tokens,
            "batch_rows": batch_size,
        }
        self.chunks = [np.arange(len(prompts))]
        self.reuse = Reuse()

    def prepare(self, notes: Mapping[str, Any]) -> Mapping[str, Any]:
        """Nothing is taken over: what is generated may choose an expert that the prompt did not.

        Args:
            notes: What an earlier run of the same job noted.

        Returns:
            The reason.
        """
        return {**notes, "not_taken_over": "generated texts take full runs"}

    def measure(self, chunk: int, layer: int) -> Part:
        """Measure the experts of one layer.

        Args:
            chunk: Always 0; all prompts run together.
            layer: The layer.

        Returns:
            The effects, and what they took.
        """
        ids = list(self.experts[layer])
        sets = [ExpertSet(), *(ExpertSet([Expert(layer, expert)]) for expert in ids)]
        baseline, *measured = measure_many(self.model, self.prompts, sets, **self.options)
        effects = np.full((len(self.prompts), self.model.architecture.n_experts), np.nan)
        effects[:, ids] = np.transpose(measured) - baseline[:, None]
        return Part(effects, effects[:, ids].size, 0, 0)


def _chunks(
    model: MoEModel, tokens: TokenizedPrompts, batch_size: int | str
) -> list[Int[ndarray, " chunk"]]:
    """Prompts of like length, no more together than memory for what is kept of them allows."""
    facts = model.architecture
    per_token = facts.n_layers * facts.d_model * model.nnsight._module.dtype.itemsize
    at_once = CAPTURED_BYTES // (per_token * CAPTURED_WIDTHS)
    chunks = []
    for chosen in plan_batches(tokens.lengths, batch_size=batch_size):
        n_tokens = len(chosen) * int(tokens.lengths[chosen[0]])
        n_parts = min(len(chosen), -(-n_tokens // max(1, at_once)))
        chunks.extend(np.array_split(np.array(chosen), n_parts))
    return chunks
