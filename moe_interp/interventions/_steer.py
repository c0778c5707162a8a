"""Steer: the router's logits are shifted, and the model's own selection runs on them."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from jaxtyping import Float
from numpy.random import Generator
from torch import Tensor

from moe_interp.experts import Expert, ExpertSet
from moe_interp.interventions._checks import (
    as_expert_set,
    check_experts,
    check_layers,
    check_offered,
)
from moe_interp.interventions._intervention import Batch, Edit, PlacedIntervention
from moe_interp.interventions._tokens import Tokens
from moe_interp.models import MoEModel
from moe_interp.models._traced_rules import push_below_all, raise_above_all, shift_logits

#: Added to the highest logit, or taken from the lowest, in SteerMoE's released settings.
MARGIN = 0.01
RULES = {None: shift_logits, "max": raise_above_all, "min": push_below_all}

ByExpert = Mapping[Expert | tuple[int, int] | str | int, float | Sequence[float] | Tensor]
Experts = ExpertSet | Iterable[Expert | tuple[int, int] | str] | str


@dataclass(frozen=True)
class Steer(PlacedIntervention):
    """Shift router logits before the model selects experts and makes their weights.

    Weights of other experts change wherever the router normalises over all of them. A shift does
    not always bring an expert in: a sigmoid saturates, a bias or a limit to groups may decide
    otherwise; `Force` always does.

    With a margin the logits of the experts are set instead, token by token, to the token's highest
    logit plus 0.01 (``"max"``) or to its lowest minus 0.01 (``"min"``) [1]. There the router's
    log-probabilities are set so; for a softmax router that is the same, for others it is not, and
    logits are what is set here. Of several `Steer` each sees the logits that the one before left.

    Attributes:
        shifts: Numbers by expert, such as ``{"L3E8": 2.0}``, or one number for each expert of a
            layer, such as ``{3: [0.0] * 16}``. With a margin also just the experts.
        margin: ``"max"`` or ``"min"``: numbers are then margins, 0.01 if only experts are given.
        tokens: Where in the prompts: everywhere (None), a span, or a mask of the real tokens.
        phase: ``"prefill"``, ``"decode"`` or ``"both"``.

    Raises:
        TypeError: If experts are given without numbers and without a margin.
        ValueError: If the margin or phase is unknown, a shift is not a number, or tokens of the
            prompt are named for decoding.

    References:
        [1] Fayyaz et al. (2025), "Steering MoE LLMs via Expert (De)Activation", arXiv 2509.09660.

    Example:
        >>> Steer({"L3E8": 2.0})
        Steer(shifts=((Expert(layer=3, expert=8), 2.0),), margin=None, tokens=None, phase='both')
        >>> Steer("L3E8", margin="max")
        Steer(shifts=((Expert(layer=3, expert=8), 0.01),), margin='max', tokens=None, phase='both')
    """

    shifts: ByExpert | Experts
    margin: str | None = field(default=None, kw_only=True)
    tokens: Tokens | None = field(default=None, kw_only=True)
    phase: str = field(default="both", kw_only=True)

    def __post_init__(self) -> None:
        if self.margin not in RULES:
            raise ValueError(f"`margin` must be 'max', 'min' or None, got {self.margin!r}.")
        object.__setattr__(self, "shifts", _frozen_shifts(self.shifts, self.margin))
        self.freeze_place()

    def check(self, model: MoEModel) -> None:
        """Refuse a model without these experts, or with another number of them.

        Args:
            model: The model that will run.

        Raises:
            ValueError: If a layer or expert does not exist, or a layer has another number of
                experts than it is given numbers.
            UnsupportedQuantityError: If a layer does not offer its logits.
        """
        for place, shift in self.shifts:
            if isinstance(place, Expert):
                check_experts(model, ExpertSet([place]))
                continue
            check_layers(model, [place])
            if len(shift) != model.moe[place].n_experts:
                raise ValueError(
                    f"`shifts` gives layer {place} {len(shift)} numbers, but it has "
                    f"{model.moe[place].n_experts} experts."
                )
        check_offered(model, self.layers, "router_logits")

    @property
    def layers(self) -> tuple[int, ...]:
        """The layers whose logits it changes."""
        found = {place.layer if isinstance(place, Expert) else place for place, _ in self.shifts}
        return tuple(sorted(found))

    @property
    def named_experts(self) -> ExpertSet:
        """The experts whose logits it changes; of a whole layer, those whose number is not 0."""
        return ExpertSet(self._by_expert())

    def matched(self, places: Mapping[Expert, Expert], rng: Generator) -> "Steer":
        """Give the same shifts to other experts.

        Args:
            places: For each expert, the one that stands in for it.
            rng: Not used.

        Returns:
            The intervention at those experts.
        """
        shifts = {places[expert]: number for expert, number in self._by_expert().items()}
        return replace(self, shifts=shifts)

    def _by_expert(self) -> dict[Expert, float]:
        """The numbers of all experts; those of a whole layer and of its experts add up."""
        numbers: dict[Expert, float] = {}
        for place, shift in self.shifts:
            row = [(place, shift)] if isinstance(place, Expert) else _row(place, shift)
            for expert, number in row:
                numbers[expert] = numbers.get(expert, 0.0) + number
        return numbers if self.margin else {e: number for e, number in numbers.items() if number}

    def edits(self, batch: Batch) -> Sequence[Edit]:
        """One correction of the logits for each layer.

        Args:
            batch: The rows that will run.

        Returns:
            The edits.
        """
        tokens, made = self.at_tokens(batch), []
        for layer in self.layers:
            shift = torch.zeros(1, 1, batch.model.moe[layer].n_experts)
            hit = torch.zeros_like(shift, dtype=torch.bool)
            for place, number in self.shifts:
                if isinstance(place, Expert) and place.layer == layer:
                    shift[..., place.expert] += number
                    hit[..., place.expert] = True
                elif place == layer:
                    shift += torch.tensor(number)
                    hit |= True
            made.append(
                Edit(layer, "logits", RULES[self.margin], hit & tokens, (shift,), self.edit_phase)
            )
        return made


def _row(layer: int, numbers: Sequence[float]) -> list[tuple[Expert, float]]:
    return [(Expert(layer, expert), number) for expert, number in enumerate(numbers)]


def _frozen_shifts(
    shifts: ByExpert | Experts, margin: str | None
) -> tuple[tuple[Expert | int, float | tuple[float, ...]], ...]:
    if not isinstance(shifts, Mapping):
        if margin is None:
            raise TypeError(
                f"`shifts` must say by how much, as in {{'L3E8': 2.0}}, got {shifts!r}. Experts "
                "alone do with margin='max' or margin='min'."
            )
        return tuple((expert, MARGIN) for expert in as_expert_set(shifts))
    frozen: list[tuple[Expert | int, float | tuple[float, ...]]] = []
    for place, number in shifts.items():
        if isinstance(place, int | np.integer):
            row = tuple(map(float, np.asarray(torch.as_tensor(number), dtype=float).ravel()))
            frozen.append((int(place), row))
        else:
            named = as_expert_set(place if isinstance(place, str) else [place])
            frozen.extend((expert, float(number)) for expert in named)
    for place, number in frozen:
        numbers: Float[Tensor, " _"] = torch.tensor(number).reshape(-1)
        if any(map(math.isnan, numbers.tolist())):
            raise ValueError(f"`shifts` of {place} is not a number (NaN).")
    return tuple(frozen)
