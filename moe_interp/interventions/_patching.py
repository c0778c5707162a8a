"""Activation patching: what of one run, put into another, brings its behaviour along."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float

from moe_interp.experts import Expert, ExpertSet
from moe_interp.interventions._checks import as_expert_set
from moe_interp.interventions._frozen import with_frozen_routing
from moe_interp.interventions._intervention import Intervention
from moe_interp.interventions._measure import Metric, measure, metric_name, metric_unit
from moe_interp.interventions._patch_output import PatchBlock, PatchOutput
from moe_interp.interventions._rows import as_prompt_set
from moe_interp.interventions._source import outputs_of
from moe_interp.interventions._tokens import Tokens
from moe_interp.models import MoEModel
from moe_interp.notebook import Shown
from moe_interp.prompts import PromptSet

if TYPE_CHECKING:
    from pandas import DataFrame

DIRECTIONS = ("denoise", "noise")


@dataclass(frozen=True)
class PatchResult(Shown):
    """A metric of clean, corrupted and patched runs, for each pair of prompts.

    Attributes:
        prompts: The prompts that ran with the patch: the corrupted ones if it denoises, else the
            clean ones.
        metric: Name of the metric.
        unit: Its unit.
        patched_in: What was patched, in words.
        direction: ``"denoise"``: clean activations in the corrupted run; ``"noise"``: corrupted
            activations in the clean run.
        clean: The metric of each clean prompt.
        corrupted: The metric of each corrupted prompt.
        patched: The metric of each patched run.
    """

    prompts: PromptSet
    metric: str
    unit: str
    patched_in: str
    direction: str
    clean: Float[np.ndarray, " prompt"]
    corrupted: Float[np.ndarray, " prompt"]
    patched: Float[np.ndarray, " prompt"]

    @property
    def effect(self) -> Float[np.ndarray, " prompt"]:
        """Patched minus the same prompt's run without the patch."""
        return self.patched - (self.corrupted if self.direction == "denoise" else self.clean)

    @property
    def share(self) -> Float[np.ndarray, " prompt"]:
        """The effect as a share of the whole difference between the runs.

        0 if the patch does nothing, 1 if it brings the metric all the way to the other run; NaN
        where the runs do not differ.
        """
        whole = self.clean - self.corrupted
        whole = whole if self.direction == "denoise" else -whole
        return np.divide(self.effect, whole, out=np.full(len(whole), np.nan), where=whole != 0)

    def to_frame(self) -> "DataFrame":
        """One row a pair: the prompt that ran patched, and clean, corrupted, patched, effect."""
        return self.prompts.to_frame().assign(
            clean=self.clean,
            corrupted=self.corrupted,
            patched=self.patched,
            effect=self.effect,
            share=self.share,
        )

    def to_dict(self) -> dict[str, Any]:
        """The numbers as JSON-safe values."""
        return {
            "metric": self.metric,
            "unit": self.unit,
            "patched_in": self.patched_in,
            "direction": self.direction,
            "prompts": list(self.prompts.ids),
            "clean": self.clean.tolist(),
            "corrupted": self.corrupted.tolist(),
            "patched": self.patched.tolist(),
        }

    def summary(self) -> str:
        """Mean metric of the three kinds of runs, in words."""
        return (
            f"{self.patched_in} ({self.direction}) on {self.metric} ({self.unit}), mean of "
            f"{len(self.prompts)} pairs: clean {self.clean.mean():.3g}, corrupted "
            f"{self.corrupted.mean():.3g}, patched {self.patched.mean():.3g}."
        )


def patch(
    model: MoEModel,
    clean: PromptSet | Sequence[str],
    corrupted: PromptSet | Sequence[str],
    *,
    metric: Metric,
    experts: ExpertSet | Iterable[Expert | tuple[int, int] | str] | str | None = None,
    layers: Sequence[int] | None = None,
    quantity: str = "expert_contributions",
    tokens: Tokens | None = None,
    direction: str = "denoise",
    freeze_downstream_routing: bool = False,
    max_new_tokens: int = 24,
    batch_size: int | str = "auto",
) -> PatchResult:
    """Patch what experts, or whole blocks, put out from one run into another, pair by pair.

    Denoising asks what suffices to restore the clean behaviour, noising what is needed for it.
    With the routing of later layers free, a patch may act by sending tokens to other experts;
    frozen, it may not.

    Args:
        model: The model.
        clean: The prompts that show the behaviour.
        corrupted: As many that do not; each with as many tokens as its partner.
        metric: What to measure: a metric, or a function of next-token logits (batch, d_vocab).
        experts: Experts to patch jointly, see `PatchOutput`.
        layers: Instead of experts, layers whose whole block is patched, see `PatchBlock`.
        quantity: What of the experts is patched: ``"expert_contributions"`` (with their weights)
            or ``"expert_outputs"`` (without).
        tokens: Where in the prompts: everywhere (None), a span, or a mask of the real tokens.
        direction: ``"denoise"``: clean into corrupted; ``"noise"``: corrupted into clean.
        freeze_downstream_routing: Whether layers after the first patched one keep the routing
            that the patched prompt has without the patch.
        max_new_tokens: How much to generate for a metric of texts; else not used.
        batch_size: As in `run`.

    Returns:
        The metric of the clean, corrupted and patched runs.

    Raises:
        ValueError: If not exactly one of experts and layers is given, something does not exist in
            the model, or partners differ in their number of tokens.
        UnsupportedQuantityError: If a layer does not offer what is patched.
    """
    clean, corrupted = as_prompt_set(clean), as_prompt_set(corrupted)
    if direction not in DIRECTIONS:
        raise ValueError(f"`direction` must be one of {DIRECTIONS}, got {direction!r}.")
    if (experts is None) == (layers is None):
        raise ValueError("Give either `experts` or `layers` to patch, not both and not neither.")
    if len(clean) != len(corrupted):
        raise ValueError(
            f"`clean` has {len(clean)} prompts and `corrupted` {len(corrupted)}. They are patched "
            "pair by pair, so give as many of each."
        )
    source, target = (clean, corrupted) if direction == "denoise" else (corrupted, clean)
    if layers is not None:
        taken = outputs_of(model, source, layers, quantities=["output"], batch_size=batch_size)
        change: Intervention = PatchBlock(layers, taken, tokens=tokens)
    else:
        chosen = as_expert_set(experts)
        taken = outputs_of(model, source, chosen, quantities=[quantity], batch_size=batch_size)
        change = PatchOutput(chosen, taken, quantity=quantity, tokens=tokens)
    recipe: tuple[Intervention, ...] = (change,)
    if freeze_downstream_routing:
        recipe = with_frozen_routing(model, target, recipe, batch_size=batch_size)
    options = {"max_new_tokens": max_new_tokens, "batch_size": batch_size}
    plain, patched = measure(model, target, [(), recipe], metric, **options)
    (other,) = measure(model, source, [()], metric, **options)
    before = (other, plain) if direction == "denoise" else (plain, other)
    return PatchResult(
        prompts=target,
        metric=metric_name(metric),
        unit=metric_unit(metric),
        patched_in=repr(change),
        direction=direction,
        clean=before[0],
        corrupted=before[1],
        patched=patched,
    )
