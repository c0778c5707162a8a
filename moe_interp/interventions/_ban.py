"""Ban: experts are taken out of the choice, and the next best are chosen in their place."""

from collections.abc import Sequence
from dataclasses import dataclass

from moe_interp.interventions._intervention import Batch, Edit, ExpertIntervention
from moe_interp.models import MoEModel
from moe_interp.models._traced_rules import choose_next_best


@dataclass(frozen=True)
class Ban(ExpertIntervention):
    """Never let these experts be chosen; the next best are chosen in their place.

    The scores of all other experts stay as they are, so their weights change only if the model
    renormalises over the chosen ones. (Setting router logits to minus infinity is something
    else: it changes every weight of a router that takes its softmax over all experts, and does
    not keep an expert out of routers that choose by a bias.) Tokens that had not chosen a banned
    expert keep their bits.

    Attributes:
        experts: The experts to ban: an `ExpertSet`, a text such as ``"L3E8,L3E9"``, or a list.
        tokens: Where in the prompts: everywhere (None), a span, or a mask of the real tokens.
        phase: ``"prefill"``, ``"decode"`` or ``"both"``.

    Raises:
        ValueError: If the phase is unknown, or tokens of the prompt are named for decoding.

    Example:
        >>> Ban("L3E8,L3E9", tokens="last")
        Ban(experts=ExpertSet('L3E8,L3E9'), tokens='last', phase='both')
    """

    def check(self, model: MoEModel) -> None:
        """Refuse a model without these experts, or with too few others.

        Args:
            model: The model that will run.

        Raises:
            ValueError: If a layer or expert does not exist, or a layer would be left with fewer
                experts than it chooses.
        """
        super().check(model)
        for layer, experts in self.experts.by_layer().items():
            site = model.moe[layer]
            if site.n_experts - len(experts) < site.top_k:
                raise ValueError(
                    f"Banning {len(experts)} of the {site.n_experts} experts of layer {layer} "
                    f"leaves fewer than the {site.top_k} it chooses. Ban at most "
                    f"{site.n_experts - site.top_k}, or use Zero."
                )

    def edits(self, batch: Batch) -> Sequence[Edit]:
        """One correction of the choice for each layer.

        Args:
            batch: The rows that will run.

        Returns:
            The edits.
        """
        return [
            Edit(layer, "choice", choose_next_best, where, phase=self.edit_phase)
            for layer, where in self.where(batch)
        ]
