"""What an intervention is: a value that says how to edit the routing of a batch, layer by layer."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Int
from numpy.random import Generator
from torch import Tensor

from moe_interp.errors import DesignError
from moe_interp.experts import Expert, ExpertSet
from moe_interp.interventions._checks import as_expert_set, check_experts
from moe_interp.interventions._tokens import Tokens, frozen_tokens, token_mask
from moe_interp.models import MoEModel

Phase = Literal["prefill", "decode", "both"]
Stage = Literal["logits", "choice", "weights", "mixture", "outputs", "contributions", "output"]
PHASES: tuple[str, ...] = ("prefill", "decode", "both")


@dataclass(frozen=True)
class Batch:
    """The rows of one forward pass, as an intervention sees them.

    Attributes:
        model: The model that will run.
        prompt_index: Which of the prompts each row is.
        spans: By name, the tokens of each span; ``"prompt"`` marks all real tokens.
    """

    model: MoEModel
    prompt_index: Int[np.ndarray, " batch"]
    spans: Mapping[str, Bool[Tensor, "batch pos"]]

    @property
    def real_tokens(self) -> Bool[Tensor, "batch pos"]:
        """Which tokens are no padding."""
        return self.spans["prompt"]

    def rows(self, chosen: Int[np.ndarray, " row"]) -> "Batch":
        """The batch of some of the rows.

        Args:
            chosen: Positions of the rows, in ascending order.

        Returns:
            The same batch, of these rows only.
        """
        if len(chosen) == len(self.prompt_index):
            return self
        index = torch.from_numpy(chosen)
        spans = {name: span[index] for name, span in self.spans.items()}
        return Batch(self.model, self.prompt_index[chosen], spans)


@dataclass(frozen=True)
class Edit:
    """One change to one layer, ready to travel into a trace: a plain function and tensors.

    ``rule`` is called inside the trace, at one of these stages. They run in this order in every
    layer, whatever the order of interventions; edits of one stage run in list order.

    - ``"logits"``: ``rule(layer, logits, where, ...) -> logits`` corrects the router's output; the
      model's own selection runs on it.
    - ``"choice"``: ``rule(layer, scores, index, where, ...) -> index`` corrects the model's choice
      of experts, given the scores it chose by; the weights follow from the new choice.
    - ``"weights"``: ``rule(layer, index, weights, where, ...) -> weights`` corrects what
      multiplies the outputs of the chosen experts.
    - ``"mixture"``: ``rule(layer, router_input, index, weights, where, ...) -> (index, weights,
      changed)`` routes each token anew, by as many experts as it likes, given what the router
      saw; ``changed`` are the tokens for which it did. ``where`` has a single column.
    - ``"outputs"``: ``rule(layer, index, outputs, where, ...) -> outputs`` corrects what the chosen
      experts put out, before it is weighted.
    - ``"contributions"``: ``rule(layer, index, contributions, where, ...) -> contributions``
      corrects the weighted outputs, which then are added up. A pair ``(index, contributions)``
      with more slots than before may be returned as well.
    - ``"output"``: ``rule(layer, output, where, ...) -> output`` corrects what leaves the block.

    All see ``[batch pos ...]`` tensors, and must leave everything untouched where ``where`` is
    False: that is how rows of one batch come to have different interventions. What comes after
    ``where`` are the edit's `values`, then what it has `shared`.

    Attributes:
        layer: Absolute decoder layer.
        stage: When the rule runs.
        rule: A plain function; it may run on another machine, so it imports nothing.
        where: The experts (and tokens) it applies to; row and token axes may have length 1. A
            single column speaks of the whole token.
        values: Further tensors for the rule, each with row and token axes like `where`.
        phase: Whether it holds for the prompt, for generated tokens, or for both.
        shared: Further tensors without such axes, the same for every row.
    """

    layer: int
    stage: Stage
    rule: Callable[..., Tensor | tuple[Tensor, Tensor]]
    where: Bool[Tensor, "row token expert"]
    values: tuple[Tensor, ...] = ()
    phase: Phase = "both"
    shared: tuple[Tensor, ...] = ()


class Intervention(ABC):
    """A change to a model's routing or experts, as a value that can be listed and compared.

    Subclass it to add your own: make the class a frozen dataclass and return `Edit` values from
    `edits`. Interventions given as a list are applied in its order.
    """

    @abstractmethod
    def edits(self, batch: Batch) -> Sequence[Edit]:
        """Say what to change in one batch.

        Args:
            batch: The rows that will run.

        Returns:
            The edits, in the order in which they apply.
        """

    def check(self, model: MoEModel) -> None:  # noqa: B027  Nothing to check by default.
        """Refuse a model that this intervention cannot be applied to.

        Args:
            model: The model that will run.

        Raises:
            ValueError: If it names a layer or expert that the model does not have.
        """

    @property
    def named_experts(self) -> ExpertSet:
        """The experts it changes; none if it changes something else."""
        return ExpertSet()

    def matched(self, places: Mapping[Expert, Expert], rng: Generator) -> "Intervention":
        """Give the same change at random, for a null distribution.

        Args:
            places: For each of `named_experts`, the one that stands in for it.
            rng: Source of randomness, for what names no experts.

        Returns:
            The same intervention at those experts.

        Raises:
            DesignError: If there is no random counterpart to this kind of change.
        """
        raise DesignError(
            f"{type(self).__name__} names no experts that others could stand in for, so it has no "
            "matched null. Compare it with the same change from another source, or give the "
            "class a method `matched`."
        )


class PlacedIntervention(Intervention):
    """An intervention at some tokens, in some phase of a run: a base without fields.

    Subclasses are dataclasses with the fields `tokens` and `phase`, and call `freeze_place`.

    Attributes:
        tokens: Where in the prompts it holds: everywhere (None), in a span, or where a mask is
            True (one boolean for each real token of each prompt, padding not counted).
            Spans and masks speak of prompt tokens: with them, generated tokens are left alone.
        phase: ``"prefill"`` while the prompt is read, ``"decode"`` while text is generated,
            or ``"both"``.
    """

    tokens: Tokens | None
    phase: str

    def freeze_place(self) -> None:
        """Bring the tokens to a form that cannot change, and check the phase.

        Raises:
            ValueError: If the phase is unknown, or tokens of the prompt are named for decoding.
        """
        object.__setattr__(self, "tokens", frozen_tokens(self.tokens))
        if self.phase not in PHASES:
            raise ValueError(f"`phase` must be one of {PHASES}, got {self.phase!r}.")
        if self.phase == "decode" and self.tokens is not None:
            raise ValueError(
                "`tokens` names tokens of the prompt, which are not there in phase 'decode'. "
                "Leave `tokens` out, or use phase 'prefill'."
            )

    def at_tokens(self, batch: Batch) -> Bool[Tensor, "row token 1"]:
        """The chosen tokens as a mask; axes of rows and tokens have length 1 for all of them.

        Args:
            batch: The rows that will run.

        Returns:
            The mask.
        """
        if self.tokens is None:
            return torch.ones(1, 1, 1, dtype=torch.bool)
        return token_mask(self.tokens, batch.spans, batch.prompt_index)[..., None]

    @property
    def edit_phase(self) -> Phase:
        """The phase in which edits hold: prompt tokens are there in the prefill only."""
        return "prefill" if self.tokens is not None else self.phase


@dataclass(frozen=True)
class ExpertIntervention(PlacedIntervention):
    """An intervention on a set of experts, at some tokens, in some phase of a run.

    Attributes:
        experts: The experts it changes.
        tokens: Where in the prompts it holds: everywhere (None), in a span, or where a mask is
            True (one boolean for each real token of each prompt, padding not counted).
            Spans and masks speak of prompt tokens: with them, generated tokens are left alone.
        phase: ``"prefill"`` while the prompt is read, ``"decode"`` while text is generated,
            or ``"both"``.

    Raises:
        ValueError: If the phase is unknown, or tokens of the prompt are named for decoding.
    """

    experts: ExpertSet | Iterable[Expert | tuple[int, int] | str] | str
    tokens: Tokens | None = field(default=None, kw_only=True)
    phase: str = field(default="both", kw_only=True)

    def __post_init__(self) -> None:
        object.__setattr__(self, "experts", as_expert_set(self.experts))
        self.freeze_place()

    def check(self, model: MoEModel) -> None:
        """Refuse a model without these layers and experts.

        Args:
            model: The model that will run.

        Raises:
            ValueError: If a layer does not exist or is dense, or an expert does not exist.
        """
        check_experts(model, self.experts)

    @property
    def named_experts(self) -> ExpertSet:
        """The experts it changes."""
        return self.experts

    def matched(self, places: Mapping[Expert, Expert], rng: Generator) -> "ExpertIntervention":
        """Give the same change to other experts.

        Args:
            places: For each expert, the one that stands in for it.
            rng: Not used.

        Returns:
            The intervention at those experts.

        Raises:
            ValueError: If it cannot act on one of them.
        """
        return replace(self, experts=ExpertSet(places[expert] for expert in self.experts))

    def where(self, batch: Batch) -> Iterator[tuple[int, Bool[Tensor, "row token expert"]]]:
        """The experts of each layer as a mask, limited to the chosen tokens.

        Args:
            batch: The rows that will run.

        Yields:
            Each layer, with its mask; axes of rows and tokens have length 1 if all are alike.
        """
        tokens = self.at_tokens(batch)
        for layer, experts in self.experts.by_layer().items():
            mask = torch.zeros(1, 1, batch.model.moe[layer].n_experts, dtype=torch.bool)
            mask[..., list(experts)] = True
            yield layer, mask & tokens


def as_recipe(interventions: Intervention | Sequence[Intervention]) -> tuple[Intervention, ...]:
    """A list of interventions, whether one or several are given.

    Args:
        interventions: One intervention, or several in the order in which they apply.

    Returns:
        The interventions.

    Raises:
        TypeError: If something else is among them.
    """
    recipe = (interventions,) if isinstance(interventions, Intervention) else tuple(interventions)
    wrong = [item for item in recipe if not isinstance(item, Intervention)]
    if wrong:
        raise TypeError(
            f"`interventions` must be Intervention values such as Ban('L3E8'), got {wrong[0]!r}."
        )
    return recipe
