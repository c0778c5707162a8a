"""Mean: the output of experts becomes their mean output over reference prompts."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from moe_interp.experts import Expert, ExpertSet
from moe_interp.interventions._checks import check_offered
from moe_interp.interventions._intervention import Batch, Edit, ExpertIntervention
from moe_interp.interventions._rows import as_prompt_set
from moe_interp.interventions._source import Layers, captured_batches, layers_named
from moe_interp.models import MoEModel
from moe_interp.models._traced_rules import put_vectors
from moe_interp.prompts import PromptSet

#: Quantities of a slot that can be replaced, and the stage at which they are.
STAGES = {"expert_outputs": "outputs", "expert_contributions": "contributions"}


Vector = Float[Tensor, " d_written"] | Float[np.ndarray, " d_written"] | Sequence[float]
ByExpert = Mapping[Expert | tuple[int, int] | str, Vector]


@dataclass(frozen=True, eq=False, repr=False)
class MeanOutputs:
    """Mean output of experts over the tokens that chose them; made by `mean_outputs`.

    Two of them are equal only if they are the same object.

    Attributes:
        quantity: ``"expert_outputs"`` (unweighted) or ``"expert_contributions"`` (weighted).
        means: By absolute decoder layer, one vector for each expert; 0 where nothing was counted.
        counts: By layer, how many tokens chose each expert.
    """

    quantity: str
    means: Mapping[int, Float[Tensor, "expert d_written"]]
    counts: Mapping[int, Int[Tensor, " expert"]]

    def __repr__(self) -> str:
        known = sum(int((count > 0).sum()) for count in self.counts.values())
        return f"MeanOutputs({self.quantity} of {known} experts)"


def mean_outputs(
    model: MoEModel,
    prompts: PromptSet | Sequence[str],
    experts: Layers = None,
    *,
    quantity: str = "expert_outputs",
    batch_size: int | str = "auto",
) -> MeanOutputs:
    """Average what each expert puts out over all tokens of reference prompts that chose it.

    Args:
        model: The model, untouched.
        prompts: The reference prompts.
        experts: Experts or layers; all of them if not given. All experts of a layer are averaged.
        quantity: ``"expert_outputs"`` (unweighted) or ``"expert_contributions"`` (weighted).
        batch_size: As in `run`.

    Returns:
        The means, with the number of tokens that each is made of.

    Raises:
        ValueError: If a layer, expert or quantity does not exist.
        UnsupportedQuantityError: If a layer does not offer the quantity.
        PromptError: If a prompt is longer than the model reads.

    Example:
        >>> import moe_interp as mi
        >>> model = mi.load_model("organism:topic")
        >>> mean_outputs(model, ["how do i bake bread ?"], [1]).means[1].shape
        torch.Size([16, 64])
    """
    if quantity not in STAGES:
        raise ValueError(f"`quantity` must be one of {tuple(STAGES)}, got {quantity!r}.")
    layers = layers_named(model, experts)
    check_offered(model, layers, quantity, "Average `expert_contributions` instead.")
    sums: dict[int, Tensor] = {}
    counts = {layer: torch.zeros(model.moe[layer].n_experts, dtype=torch.int64) for layer in layers}
    names = ("expert_index", quantity)
    for _, encoded, found in captured_batches(
        model, as_prompt_set(prompts), layers, names, batch_size
    ):
        real = encoded.attention_mask.bool()
        for layer, values in found.items():
            index = values["expert_index"].cpu()[real].flatten()
            written = values[quantity].cpu()[real].flatten(0, 1).double()
            kept = index < len(counts[layer])
            if layer not in sums:
                sums[layer] = written.new_zeros(len(counts[layer]), written.shape[-1])
            sums[layer].index_add_(0, index[kept], written[kept])
            counts[layer].index_add_(0, index[kept], torch.ones_like(index[kept]))
    means = {
        layer: (total / counts[layer].clamp(min=1)[:, None]).float()
        for layer, total in sums.items()
    }
    return MeanOutputs(quantity, means, counts)


@dataclass(frozen=True)
class Mean(ExpertIntervention):
    """Replace the output of these experts by their mean output; the routing stays as it is.

    The mean is taken of the unweighted output, and the token's own weight multiplies it, unless
    `reference` holds contributions: then what the expert adds to the block becomes their mean.

    Attributes:
        experts: The experts: an `ExpertSet`, a text such as ``"L3E8,L3E9"``, or a list.
        reference: What `mean_outputs` returns, or a mapping of experts to vectors that are taken
            for the means of their unweighted outputs.
        tokens: Where in the prompts: everywhere (None), a span, or a mask of the real tokens.
        phase: ``"prefill"``, ``"decode"`` or ``"both"``.

    Raises:
        TypeError: If the reference is of another kind.
        ValueError: If there is no reference, it has no mean of an expert, the phase is unknown,
            or tokens of the prompt are named for decoding.

    Example:
        >>> Mean("L3E8", {"L3E8": [0.0] * 64})
        Mean(experts=ExpertSet('L3E8'), tokens=None, phase='both', \
reference=MeanOutputs(expert_outputs of 1 experts))
    """

    reference: MeanOutputs | ByExpert | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.reference is None:
            raise ValueError(
                "Mean needs a `reference`: mean_outputs(model, prompts, experts), or a mapping of "
                "experts to vectors."
            )
        if isinstance(self.reference, Mapping):
            object.__setattr__(self, "reference", _given_means(self.reference))
        if not isinstance(self.reference, MeanOutputs):
            raise TypeError(
                "`reference` of Mean must be what mean_outputs returns, or a mapping of experts "
                f"to vectors, got {self.reference!r}."
            )
        check_counts(self.experts, self.reference.counts, "mean output")

    def check(self, model: MoEModel) -> None:
        """Refuse a model without these experts, or that does not offer what is replaced.

        Args:
            model: The model that will run.

        Raises:
            ValueError: If a layer or expert does not exist.
            UnsupportedQuantityError: If a layer does not offer what is replaced.
        """
        super().check(model)
        layers = tuple(self.experts.by_layer())
        quantity = self.reference.quantity
        check_offered(model, layers, quantity, "Average `expert_contributions` instead.")

    def edits(self, batch: Batch) -> Sequence[Edit]:
        """One correction of the outputs, or of the contributions, for each layer.

        Args:
            batch: The rows that will run.

        Returns:
            The edits.
        """
        stage, phase = STAGES[self.reference.quantity], self.edit_phase
        return [
            Edit(layer, stage, put_vectors, where, (), phase, (self.reference.means[layer],))
            for layer, where in self.where(batch)
        ]


def check_counts(experts: ExpertSet, counts: Mapping[int, Tensor], what: str) -> None:
    """Refuse experts of which a reference holds nothing.

    Args:
        experts: The experts that are asked for.
        counts: By layer, how many tokens of the reference chose each expert.
        what: What the expert has none of.

    Raises:
        ValueError: If a layer is not in the reference, or no token chose an expert.
    """
    for layer, ids in experts.by_layer().items():
        if layer not in counts:
            raise ValueError(
                f"The reference does not hold layer {layer}; it holds layers "
                f"{', '.join(map(str, sorted(counts)))}. Make it for these experts."
            )
        for expert in ids:
            if expert >= len(counts[layer]) or not int(counts[layer][expert]):
                raise ValueError(
                    f"Expert L{layer}E{expert} was never chosen in the reference, so it has no "
                    f"{what}. Use more reference prompts, or leave the expert out."
                )


def _given_means(
    given: ByExpert,
) -> MeanOutputs:
    """Vectors by expert, as means that were counted once."""
    vectors: dict[int, dict[int, Tensor]] = {}
    for name, vector in given.items():
        expert = next(iter(ExpertSet.parse(name) if isinstance(name, str) else ExpertSet([name])))
        vectors.setdefault(expert.layer, {})[expert.expert] = torch.as_tensor(
            np.asarray(vector) if not isinstance(vector, Tensor) else vector
        ).float()
    means, counts = {}, {}
    for layer, by_expert in vectors.items():
        shapes = {tuple(vector.shape) for vector in by_expert.values()}
        if len(shapes) > 1 or len(next(iter(shapes))) != 1:
            raise ValueError(
                "`reference` must give every expert of a layer one vector (d_model), got shapes "
                f"{sorted(shapes)} in layer {layer}."
            )
        n_experts = max(by_expert) + 1
        means[layer] = torch.zeros(n_experts, *next(iter(shapes)))
        counts[layer] = torch.zeros(n_experts, dtype=torch.int64)
        for expert, vector in by_expert.items():
            means[layer][expert] = vector
            counts[layer][expert] = 1
    return MeanOutputs("expert_outputs", means, counts)
