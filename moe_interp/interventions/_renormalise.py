"""Renormalise: experts contribute nothing, and those left share their weight."""

from collections.abc import Sequence
from dataclasses import dataclass

from moe_interp.interventions._intervention import Batch, Edit, ExpertIntervention
from moe_interp.models._traced_rules import weigh_the_rest


@dataclass(frozen=True)
class Renormalise(ExpertIntervention):
    """Set the weight of these experts to 0, and scale the token's other weights to the old sum.

    No other expert is brought in. A token that chose none of the experts keeps its bits. If all
    the experts a token chose are hit, nothing is left to scale: all its weights become 0.

    Attributes:
        experts: The experts: an `ExpertSet`, a text such as ``"L3E8,L3E9"``, or a list.
        tokens: Where in the prompts: everywhere (None), a span, or a mask of the real tokens.
        phase: ``"prefill"``, ``"decode"`` or ``"both"``.

    Raises:
        ValueError: If the phase is unknown, or tokens of the prompt are named for decoding.

    Example:
        >>> Renormalise("L3E8", phase="decode")
        Renormalise(experts=ExpertSet('L3E8'), tokens=None, phase='decode')
    """

    def edits(self, batch: Batch) -> Sequence[Edit]:
        """One correction of the weights for each layer.

        Args:
            batch: The rows that will run.

        Returns:
            The edits.
        """
        return [
            Edit(layer, "weights", weigh_the_rest, where, phase=self.edit_phase)
            for layer, where in self.where(batch)
        ]
