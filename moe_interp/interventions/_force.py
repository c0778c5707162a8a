"""Force: experts are put into the choice, and the weakest chosen ones leave."""

from collections.abc import Sequence
from dataclasses import dataclass

from moe_interp.interventions._intervention import Batch, Edit, ExpertIntervention
from moe_interp.models import MoEModel
from moe_interp.models._traced_rules import put_into_choice


@dataclass(frozen=True)
class Force(ExpertIntervention):
    """Let every token choose these experts; the weakest of those it chose leave.

    A forced expert keeps its own score, so its weight is as small as the score is: read
    ``layer.routing_weights`` to see whether it matters, and add `Scale` if it should. A router
    limited to groups may be forced into a group that it has ruled out; the weight is then made
    from the expert's score, as it would be within a kept group. Who is weakest goes by the scores
    that the model chooses by. Tokens that chose the experts anyway keep their bits.

    Attributes:
        experts: The experts: an `ExpertSet`, a text such as ``"L3E8,L3E9"``, or a list.
        tokens: Where in the prompts: everywhere (None), a span, or a mask of the real tokens.
        phase: ``"prefill"``, ``"decode"`` or ``"both"``.

    Raises:
        ValueError: If the phase is unknown, or tokens of the prompt are named for decoding.

    Example:
        >>> Force("L3E8", tokens="last")
        Force(experts=ExpertSet('L3E8'), tokens='last', phase='both')
    """

    def check(self, model: MoEModel) -> None:
        """Refuse a model without these experts, or that chooses fewer.

        Args:
            model: The model that will run.

        Raises:
            ValueError: If a layer or expert does not exist, or a layer chooses fewer experts.
        """
        super().check(model)
        for layer, experts in self.experts.by_layer().items():
            if len(experts) > model.moe[layer].top_k:
                raise ValueError(
                    f"Forcing {len(experts)} experts of layer {layer}, which chooses "
                    f"{model.moe[layer].top_k} for each token. Force at most as many."
                )

    def edits(self, batch: Batch) -> Sequence[Edit]:
        """One correction of the choice for each layer.

        Args:
            batch: The rows that will run.

        Returns:
            The edits.
        """
        return [
            Edit(layer, "choice", put_into_choice, where, phase=self.edit_phase)
            for layer, where in self.where(batch)
        ]
