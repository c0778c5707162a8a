"""Zero: experts contribute nothing, while the routing stays as it is."""

from collections.abc import Sequence
from dataclasses import dataclass

from moe_interp.interventions._intervention import Batch, Edit, ExpertIntervention
from moe_interp.models._traced_rules import weigh_nothing


@dataclass(frozen=True)
class Zero(ExpertIntervention):
    """Set the contribution of these experts to 0; who is chosen, and with what weight, stays.

    No other expert takes their place and no weight is rescaled, so the block's output is the
    old one minus these experts' contributions.

    Attributes:
        experts: The experts: an `ExpertSet`, a text such as ``"L3E8,L3E9"``, or a list.
        tokens: Where in the prompts: everywhere (None), a span, or a mask of the real tokens.
        phase: ``"prefill"``, ``"decode"`` or ``"both"``.

    Raises:
        ValueError: If the phase is unknown, or tokens of the prompt are named for decoding.

    Example:
        >>> Zero([(3, 8)], phase="prefill")
        Zero(experts=ExpertSet('L3E8'), tokens=None, phase='prefill')
    """

    def edits(self, batch: Batch) -> Sequence[Edit]:
        """One correction of the weights for each layer.

        Args:
            batch: The rows that will run.

        Returns:
            The edits.
        """
        return [
            Edit(layer, "weights", weigh_nothing, where, phase=self.edit_phase)
            for layer, where in self.where(batch)
        ]
