"""What an intervention is: a value that says how to edit the routing of a batch, layer by layer."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from moe_interp.experts import Expert, ExpertSet
from moe_interp.interventions._tokens import Tokens, frozen_tokens, token_mask
from moe_interp.models import MoEModel

Phase = Literal["prefill", "decode", "both"]
Stage = Literal["choice", "weights"]
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

    def rows(self, chosen: Int[np.ndarray, " row"]) -> "Batch":
        """The batch of some of the rows.

        Args:
            chosen: Positions of the rows.

        Returns:
            The same batch, of these rows only.
        """
        index = torch.from_numpy(chosen)
        spans = {name: span[index] for name, span in self.spans.items()}
        return Batch(self.model, self.prompt_index[chosen], spans)


@dataclass(frozen=True)
class Edit:
    """One change to one layer, ready to travel into a trace: a plain function and tensors.

    ``rule`` is called inside the trace, at one of two stages:

    - ``"choice"``: ``rule(layer, scores, index, where, *values) -> index`` corrects the model's
      choice of experts, given the scores it chose by; the weights follow from the new choice.
    - ``"weights"``: ``rule(layer, index, weights, where, *values) -> weights`` corrects what
      multiplies the outputs of the chosen experts.

    Both see ``[batch pos ...]`` tensors, and must leave everything untouched where ``where`` is
    False: that is how rows of one batch come to have different interventions.

    Attributes:
        layer: Absolute decoder layer.
        stage: When the rule runs.
        rule: A plain function; it may run on another machine, so it imports nothing.
        where: The experts (and tokens) it applies to; row and token axes may have length 1.
        values: Further tensors for the rule, each with row and token axes like `where`.
        phase: Whether it holds for the prompt, for generated tokens, or for both.
    """

    layer: int
    stage: Stage
    rule: Callable[..., Tensor]
    where: Bool[Tensor, "row token expert"]
    values: tuple[Tensor, ...] = ()
    phase: Phase = "both"


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


@dataclass(frozen=True)
class ExpertIntervention(Intervention):
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
        object.__setattr__(self, "tokens", frozen_tokens(self.tokens))
        if self.phase not in PHASES:
            raise ValueError(f"`phase` must be one of {PHASES}, got {self.phase!r}.")
        if self.phase == "decode" and self.tokens is not None:
            raise ValueError(
                "`tokens` names tokens of the prompt, which are not there in phase 'decode'. "
                "Leave `tokens` out, or use phase 'prefill'."
            )

    def check(self, model: MoEModel) -> None:
        """Refuse a model without these layers and experts.

        Args:
            model: The model that will run.

        Raises:
            ValueError: If a layer does not exist or is dense, or an expert does not exist.
        """
        check_experts(model, self.experts)

    def where(self, batch: Batch) -> Iterator[tuple[int, Bool[Tensor, "row token expert"]]]:
        """The experts of each layer as a mask, limited to the chosen tokens.

        Args:
            batch: The rows that will run.

        Yields:
            Each layer, with its mask; axes of rows and tokens have length 1 if all are alike.
        """
        tokens: Any = None
        if self.tokens is not None:
            tokens = token_mask(self.tokens, batch.spans, batch.prompt_index)[..., None]
        for layer, experts in self.experts.by_layer().items():
            mask = torch.zeros(1, 1, batch.model.moe[layer].n_experts, dtype=torch.bool)
            mask[..., list(experts)] = True
            yield layer, mask if tokens is None else mask & tokens

    @property
    def expert_phase(self) -> Phase:
        """The phase in which edits hold: prompt tokens are there in the prefill only."""
        return "prefill" if self.tokens is not None else self.phase


def as_expert_set(
    experts: ExpertSet | Iterable[Expert | tuple[int, int] | str] | str,
) -> ExpertSet:
    """Read experts in any of their forms; a text is a list such as ``"L3E8,L3E9"``."""
    if isinstance(experts, ExpertSet):
        return experts
    return ExpertSet.parse(experts) if isinstance(experts, str) else ExpertSet(experts)


def check_experts(model: MoEModel, experts: ExpertSet) -> None:
    """Refuse experts that the model does not have, and say which it has.

    Raises:
        ValueError: If a layer does not exist or is dense, or an expert does not exist.
    """
    facts = model.architecture
    for layer, chosen in experts.by_layer().items():
        if layer >= facts.n_layers:
            raise ValueError(
                f"There is no layer {layer} in {facts.model_class!r}, whose MoE layers are "
                f"{_ranges(list(model.moe))}."
            )
        if layer not in model.moe:
            raise ValueError(
                f"Layer {layer} of {facts.model_class!r} is dense, it has no experts. "
                f"MoE layers: {_ranges(list(model.moe))}."
            )
        wrong = [expert for expert in chosen if expert >= model.moe[layer].n_experts]
        if wrong:
            raise ValueError(
                f"Layer {layer} of {facts.model_class!r} has experts "
                f"0–{model.moe[layer].n_experts - 1}, got {', '.join(map(str, wrong))}."
            )


def _ranges(numbers: Sequence[int]) -> str:
    """Write sorted numbers as runs, for example ``1–3, 5``."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}–{run[-1]}" for run in runs)
