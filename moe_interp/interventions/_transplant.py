"""Transplant: tokens are routed as they were in another run."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from jaxtyping import Bool
from torch import Tensor

from moe_interp.capture import RoutingRecord
from moe_interp.interventions._checks import check_layers
from moe_interp.interventions._intervention import Batch, Edit, PlacedIntervention
from moe_interp.interventions._source import CapturedRun, as_captured
from moe_interp.interventions._tokens import Tokens
from moe_interp.models import MoEModel
from moe_interp.models._traced_rules import choose_given, weigh_as_given

PARTS = ("both", "index")


@dataclass(frozen=True)
class Transplant(PlacedIntervention):
    """Route each token as the token at its place was routed in another run.

    Prompt goes to prompt, in list order, and token to token. Experts that both runs choose keep
    their slots, so transplanting a run into itself is bit-identical if it was captured in batches
    of the same size. Generated tokens are routed freely: the source has none. Interventions that
    come later in the list act on the transplanted routing; a slot that they give to an expert
    which the source did not choose keeps the weight that the model gives it.

    Attributes:
        source: What `routing_of` or `record_routing` returns.
        layers: Which layers; all those of the source if not given.
        part: ``"both"``: experts and weights; ``"index"``: the experts, weighed by the model.
        tokens: Where in the prompts: everywhere (None), a span, or a mask of the real tokens.
        phase: ``"prefill"``.

    Raises:
        TypeError: If the source is of another kind.
        ValueError: If the part or phase is another, or the source lacks a layer or the weights.
    """

    source: CapturedRun | RoutingRecord
    layers: Sequence[int] | None = None
    part: str = field(default="both", kw_only=True)
    tokens: Tokens | None = field(default=None, kw_only=True)
    phase: str = field(default="prefill", kw_only=True)

    def __post_init__(self) -> None:
        source = as_captured(self.source)
        object.__setattr__(self, "source", source)
        layers = source.layers if self.layers is None else tuple(sorted(set(self.layers)))
        object.__setattr__(self, "layers", layers)
        if self.part not in PARTS:
            raise ValueError(f"`part` must be one of {PARTS}, got {self.part!r}.")
        needed = ("expert_index", "routing_weights") if self.part == "both" else ("expert_index",)
        check_source(source, layers, needed, "routing_of")
        self.freeze_place()
        check_prefill(self)

    def check(self, model: MoEModel) -> None:
        """Refuse a model without these layers, or that chooses otherwise than the source's.

        Args:
            model: The model that will run.

        Raises:
            ValueError: If a layer does not exist or is dense, or chooses another number of
                experts or among fewer.
        """
        check_layers(model, self.layers)
        for layer in self.layers:
            site, index = model.moe[layer], self.source.values[layer]["expert_index"]
            most = max((int(part.max()) for part in index if part.numel()), default=0)
            if index[0].shape[-1] != site.top_k or most >= site.n_experts:
                raise ValueError(
                    f"The source chooses {index[0].shape[-1]} experts, up to number {most}, in "
                    f"layer {layer}; {model.architecture.model_class!r} chooses {site.top_k} of "
                    f"{site.n_experts}. Capture it from the same model."
                )

    def edits(self, batch: Batch) -> Sequence[Edit]:
        """A correction of the choice, and of the weights, for each layer.

        Args:
            batch: The rows that will run.

        Returns:
            The edits.
        """
        where = at_prompt_tokens(self, batch)
        made = []
        for layer in self.layers:
            index = self.source.lay(layer, "expert_index", batch)
            made.append(Edit(layer, "choice", choose_given, where, (index,), "prefill"))
            if self.part == "both":
                weights = self.source.lay(layer, "routing_weights", batch)
                values = (index, weights)
                made.append(Edit(layer, "weights", weigh_as_given, where, values, "prefill"))
        return made


def at_prompt_tokens(intervention: PlacedIntervention, batch: Batch) -> Bool[Tensor, "row token 1"]:
    """The chosen tokens of an intervention that takes values from prompts; never padding."""
    return intervention.at_tokens(batch) & batch.real_tokens[..., None]


def check_prefill(intervention: PlacedIntervention) -> None:
    """Refuse generated tokens where values are taken from prompts.

    Raises:
        ValueError: If the phase is another than the prefill.
    """
    if intervention.phase != "prefill":
        raise ValueError(
            f"`phase` of {type(intervention).__name__} must be 'prefill', got "
            f"{intervention.phase!r}: its source holds tokens of prompts, no generated ones."
        )


def check_source(
    source: CapturedRun, layers: Sequence[int], needed: Sequence[str], made_by: str
) -> None:
    """Refuse a source that lacks a layer or a quantity.

    Raises:
        TypeError: If it is no captured run.
        ValueError: If it lacks something.
    """
    if not isinstance(source, CapturedRun):
        raise TypeError(f"`source` must be what {made_by} returns, got {source!r}.")
    missing = [layer for layer in layers if layer not in source.values]
    if missing:
        raise ValueError(
            f"The source does not hold layer {missing[0]}; it holds layers "
            f"{', '.join(map(str, source.layers))}."
        )
    for name in needed:
        if any(name not in source.values[layer] for layer in layers):
            raise ValueError(
                f"The source holds {', '.join(source.quantities)}, not `{name}`. Capture it with "
                f"{made_by}."
            )
