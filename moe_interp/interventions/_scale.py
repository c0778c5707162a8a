"""Scale: what experts contribute is multiplied by a factor."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from moe_interp.interventions._intervention import Batch, Edit, ExpertIntervention
from moe_interp.models._traced_rules import scale_contribution, scale_weight


@dataclass(frozen=True)
class Scale(ExpertIntervention):
    """Multiply the contribution of these experts by a factor; who is chosen stays.

    No other weight changes. A factor of 1 is the model itself, bit for bit. The factor goes to
    the routing weight; where that weight multiplies an expert's input (Llama 4), to what the
    expert writes.

    Attributes:
        experts: The experts: an `ExpertSet`, a text such as ``"L3E8,L3E9"``, or a list.
        factor: What to multiply by; 0 does what `Zero` does, and it may be negative.
        tokens: Where in the prompts: everywhere (None), a span, or a mask of the real tokens.
        phase: ``"prefill"``, ``"decode"`` or ``"both"``.

    Raises:
        ValueError: If the factor is not finite, the phase is unknown, or tokens of the prompt are
            named for decoding.

    Example:
        >>> Scale("L3E8", 0.5)
        Scale(experts=ExpertSet('L3E8'), tokens=None, phase='both', factor=0.5)
    """

    factor: float

    def __post_init__(self) -> None:
        super().__post_init__()
        if not math.isfinite(self.factor):
            raise ValueError(f"`factor` must be a finite number, got {self.factor!r}.")

    def edits(self, batch: Batch) -> Sequence[Edit]:
        """One correction of the weights, or of the contributions, for each layer.

        Args:
            batch: The rows that will run.

        Returns:
            The edits.
        """
        values, made = (torch.full((1, 1, 1), float(self.factor)),), []
        for layer, where in self.where(batch):
            if "expert_outputs" in batch.model.moe[layer].refused:
                stage, rule = "contributions", scale_contribution
            else:
                stage, rule = "weights", scale_weight
            made.append(Edit(layer, stage, rule, where, values, self.edit_phase))
        return made
