"""PatchOutput and PatchBlock: what experts, or whole blocks, put out is taken from another run."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from moe_interp.interventions._checks import check_layers, check_offered
from moe_interp.interventions._intervention import (
    Batch,
    Edit,
    ExpertIntervention,
    PlacedIntervention,
)
from moe_interp.interventions._mean import STAGES
from moe_interp.interventions._source import CapturedRun
from moe_interp.interventions._tokens import Tokens
from moe_interp.interventions._transplant import at_prompt_tokens, check_prefill, check_source
from moe_interp.models import MoEModel
from moe_interp.models._traced_rules import put_contributions, put_output, put_outputs

RULES = {"expert_outputs": put_outputs, "expert_contributions": put_contributions}


@dataclass(frozen=True)
class PatchOutput(ExpertIntervention):
    """Take what these experts write from another run, token by token; all of them jointly.

    By default that is their contribution, weight included: an expert that only the other run chose
    adds what it added there, and one that only this run chose adds nothing. So the patch of all
    experts of a layer gives the sum that they had in the other run, whatever the routing; the
    shared expert stays as it is. With ``"expert_outputs"`` the routing and weights of this run
    stay, and an expert's output is replaced where both runs chose it.

    Attributes:
        experts: The experts: an `ExpertSet`, a text such as ``"L3E8,L3E9"``, or a list.
        source: What `outputs_of` returns.
        quantity: ``"expert_contributions"`` or ``"expert_outputs"``.
        tokens: Where in the prompts: everywhere (None), a span, or a mask of the real tokens.
        phase: ``"prefill"``.

    Raises:
        TypeError: If the source is of another kind.
        ValueError: If the quantity or phase is another, or the source lacks a layer or it.
    """

    source: CapturedRun
    quantity: str = field(default="expert_contributions", kw_only=True)
    phase: str = field(default="prefill", kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.quantity not in RULES:
            raise ValueError(f"`quantity` must be one of {tuple(RULES)}, got {self.quantity!r}.")
        layers = tuple(self.experts.by_layer())
        check_source(self.source, layers, ("expert_index", self.quantity), "outputs_of")
        check_prefill(self)

    def check(self, model: MoEModel) -> None:
        """Refuse a model without these experts, or that does not offer what is patched.

        Args:
            model: The model that will run.

        Raises:
            ValueError: If a layer or expert does not exist.
            UnsupportedQuantityError: If a layer does not offer what is patched.
        """
        super().check(model)
        instead = "Patch `expert_contributions` instead."
        check_offered(model, self.experts.by_layer(), self.quantity, instead)

    def edits(self, batch: Batch) -> Sequence[Edit]:
        """One correction of the outputs, or of the contributions, for each layer.

        Args:
            batch: The rows that will run.

        Returns:
            The edits.
        """
        made = []
        for layer, where in self.where(batch):
            values = tuple(
                self.source.lay(layer, name, batch) for name in ("expert_index", self.quantity)
            )
            here = where & batch.real_tokens[..., None]
            stage, rule = STAGES[self.quantity], RULES[self.quantity]
            made.append(Edit(layer, stage, rule, here, values, "prefill"))
        return made


@dataclass(frozen=True)
class PatchBlock(PlacedIntervention):
    """Take the whole output of MoE blocks from another run, shared expert included.

    Attributes:
        layers: Absolute decoder layers.
        source: What `outputs_of` returns, with ``"output"``.
        tokens: Where in the prompts: everywhere (None), a span, or a mask of the real tokens.
        phase: ``"prefill"``.

    Raises:
        TypeError: If the source is of another kind.
        ValueError: If the phase is another, or the source lacks a layer or the outputs.
    """

    layers: Sequence[int]
    source: CapturedRun
    tokens: Tokens | None = field(default=None, kw_only=True)
    phase: str = field(default="prefill", kw_only=True)

    def __post_init__(self) -> None:
        object.__setattr__(self, "layers", tuple(sorted(set(self.layers))))
        self.freeze_place()
        check_source(self.source, self.layers, ("output",), "outputs_of")
        check_prefill(self)

    def check(self, model: MoEModel) -> None:
        """Refuse a model without these layers, or that does not offer their output.

        Args:
            model: The model that will run.

        Raises:
            ValueError: If a layer does not exist or is dense.
            UnsupportedQuantityError: If a layer does not offer its output.
        """
        check_layers(model, self.layers)
        check_offered(model, self.layers, "output")

    def edits(self, batch: Batch) -> Sequence[Edit]:
        """One correction of the block's output for each layer.

        Args:
            batch: The rows that will run.

        Returns:
            The edits.
        """
        where = at_prompt_tokens(self, batch)
        return [
            Edit(
                layer,
                "output",
                put_output,
                where,
                (self.source.lay(layer, "output", batch),),
                "prefill",
            )
            for layer in self.layers
        ]
