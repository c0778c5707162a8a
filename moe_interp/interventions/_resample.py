"""Resample: the output of experts becomes what they put out at random tokens of other prompts."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from moe_interp.interventions._checks import check_offered
from moe_interp.interventions._intervention import Batch, Edit, ExpertIntervention
from moe_interp.interventions._mean import STAGES, check_counts
from moe_interp.interventions._source import CapturedRun
from moe_interp.models import MoEModel
from moe_interp.models._traced_rules import put_picked


@dataclass(frozen=True)
class Resample(ExpertIntervention):
    """Replace the output of these experts by what they put out at a random token that chose them.

    Each expert draws for each token by itself, among all tokens of the reference that chose it,
    with equal chance. The draws depend on the prompt's place in the list, the layer, the token and
    the state of `rng` when the value is made: one value gives the same result in every run, in
    batches of any size. Tokens that a prompt generates share one draw for each expert. Of n
    outputs, in the order of prompts and tokens, number floor(u n) is taken; u comes from
    ``default_rng([number, layer, prompt, phase]).random((token, expert))``, where phase is 0 for
    the prompt and 1 after it, and the number is the next of `rng`.

    Attributes:
        experts: The experts: an `ExpertSet`, a text such as ``"L3E8,L3E9"``, or a list.
        reference: What `outputs_of` returns, with ``"expert_outputs"`` or, if it has none,
            ``"expert_contributions"``.
        rng: Source of randomness; only its next number is used, and only when the value is made.
        tokens: Where in the prompts: everywhere (None), a span, or a mask of the real tokens.
        phase: ``"prefill"``, ``"decode"`` or ``"both"``.

    Raises:
        ValueError: If the reference holds no outputs, or none of an expert, the phase is unknown,
            or tokens of the prompt are named for decoding.
    """

    reference: CapturedRun
    rng: np.random.Generator = field(kw_only=True, repr=False, compare=False)
    _draw: int = field(init=False, repr=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "_draw", int(self.rng.integers(2**62)))
        if not set(STAGES).intersection(self.reference.quantities):
            raise ValueError(
                f"`reference` of Resample must hold one of {tuple(STAGES)}, got {self.reference}. "
                'Capture it with outputs_of(..., quantities=("expert_outputs",)).'
            )
        counts = {}
        for layer in self.reference.layers:
            index = torch.cat([part.flatten() for part in self._parts(layer, "expert_index")])
            counts[layer] = index.bincount()
        check_counts(self.experts, counts, "output to draw")

    @property
    def quantity(self) -> str:
        """What is replaced: the first of outputs and contributions that the reference holds."""
        return next(name for name in STAGES if name in self.reference.quantities)

    def check(self, model: MoEModel) -> None:
        """Refuse a model without these experts, or that does not offer what is replaced.

        Args:
            model: The model that will run.

        Raises:
            ValueError: If a layer or expert does not exist.
            UnsupportedQuantityError: If a layer does not offer what is replaced.
        """
        super().check(model)
        check_offered(model, self.experts.by_layer(), self.quantity)

    def edits(self, batch: Batch) -> Sequence[Edit]:
        """One correction of the outputs for each layer and phase.

        Args:
            batch: The rows that will run.

        Returns:
            The edits.
        """
        stage, made = STAGES[self.quantity], []
        for layer, where in self.where(batch):
            bank, first, counts = self.bank(layer, where.shape[-1])
            if self.edit_phase in ("prefill", "both"):
                picked = torch.zeros(*batch.real_tokens.shape, where.shape[-1], dtype=torch.int64)
                for row, prompt in enumerate(batch.prompt_index):
                    real = batch.real_tokens[row]
                    shape = (int(real.sum()), where.shape[-1])
                    drawn = self._uniform(layer, int(prompt), 0).random(shape)
                    picked[row, real] = first + (torch.from_numpy(drawn) * counts).long()
                made.append(Edit(layer, stage, put_picked, where, (picked,), "prefill", (bank,)))
            if self.edit_phase in ("decode", "both"):
                drawn = np.stack(
                    [
                        self._uniform(layer, int(prompt), 1).random(where.shape[-1])
                        for prompt in batch.prompt_index
                    ]
                )
                picked = first + (torch.from_numpy(drawn) * counts).long()
                values = (picked[:, None],)
                made.append(Edit(layer, stage, put_picked, where, values, "decode", (bank,)))
        return made

    def bank(
        self, layer: int, n_experts: int
    ) -> tuple[Float[Tensor, "slot d_written"], Int[Tensor, " expert"], Int[Tensor, " expert"]]:
        """The outputs to draw from, expert after expert.

        Args:
            layer: A layer of the experts.
            n_experts: Experts of that layer.

        Returns:
            The outputs at all tokens that chose one of the experts, the place of each expert's
            first, and their number; 0 for other experts.
        """
        index = torch.cat([part.flatten() for part in self._parts(layer, "expert_index")])
        written = torch.cat([part.flatten(0, 1) for part in self._parts(layer, self.quantity)])
        chosen = self.experts.by_layer()[layer]
        parts = [written[index == expert] for expert in chosen]
        first = torch.zeros(n_experts, dtype=torch.int64)
        counts = torch.zeros(n_experts, dtype=torch.int64)
        for place, expert in enumerate(chosen):
            counts[expert] = len(parts[place])
            first[expert] = sum(len(part) for part in parts[:place])
        return torch.cat(parts), first, counts

    def _parts(self, layer: int, quantity: str) -> tuple[Tensor, ...]:
        return self.reference.values[layer][quantity]

    def _uniform(self, layer: int, prompt: int, phase: int) -> np.random.Generator:
        return np.random.default_rng([self._draw, layer, prompt, phase])
