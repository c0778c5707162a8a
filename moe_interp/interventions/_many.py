"""Measure many expert sets at once: the engine under sweeps, nulls and searches."""

from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
from jaxtyping import Float

from moe_interp.experts import Expert, ExpertSet
from moe_interp.interventions._ban import Ban
from moe_interp.interventions._checks import as_expert_set
from moe_interp.interventions._intervention import Intervention
from moe_interp.interventions._measure import Metric, measure
from moe_interp.interventions._rows import as_prompt_set
from moe_interp.interventions._zero import Zero
from moe_interp.models import MoEModel
from moe_interp.prompts import PromptSet

#: Ways to take experts away, by name.
MODES: Mapping[str, Callable[[ExpertSet], Intervention]] = {"ban": Ban, "zero": Zero}

Mode = str | Callable[[ExpertSet], Intervention]


def measure_many(
    model: MoEModel,
    prompts: PromptSet | Sequence[str],
    expert_sets: Sequence[ExpertSet | Iterable[Expert | tuple[int, int] | str] | str],
    *,
    metric: Metric,
    mode: Mode = "ban",
    max_new_tokens: int = 24,
    batch_rows: int | str = "auto",
) -> Float[np.ndarray, "set prompt"]:
    """Measure every prompt with each set of experts taken away, many sets sharing each batch.

    Equal to one run for each set, up to rounding, and much faster: the rows of a batch are pairs
    of a set and a prompt, and each row has its own experts taken away. Sets that occur more than
    once run once; the empty set gives the untouched model.

    Args:
        model: The model.
        prompts: The prompts.
        expert_sets: The sets of experts to take away.
        metric: What to measure: a metric, or a function of next-token logits (batch, d_vocab).
        mode: ``"ban"``, ``"zero"``, or a function that turns a set into an intervention.
        max_new_tokens: How much to generate for a metric of texts; else not used.
        batch_rows: Rows in one forward; ``"auto"`` fills batches up to a number of tokens.

    Returns:
        The metric of each prompt under each set.

    Raises:
        ValueError: If the mode is unknown, a layer or expert does not exist, a ban leaves too few
            experts, or the metric does not give one number a row.

    Example:
        >>> import moe_interp as mi
        >>> model = mi.load_model("organism:topic")
        >>> prompts = ["how do i open the lock to start an attack ?"]
        >>> refusal = mi.RefusalLogOdds(model.tokenizer)
        >>> measure_many(model, prompts, ["", "L3E8,L3E9"], metric=refusal)[:, 0] > 0
        array([ True, False])
    """
    make = intervention_maker(mode)
    chosen = [as_expert_set(experts) for experts in expert_sets]
    distinct = list(dict.fromkeys(chosen))
    recipes = [(make(experts),) if len(experts) else () for experts in distinct]
    measured = measure(
        model,
        as_prompt_set(prompts),
        recipes,
        metric,
        max_new_tokens=max_new_tokens,
        batch_size=batch_rows,
    )
    place = {experts: row for row, experts in enumerate(distinct)}
    return measured[[place[experts] for experts in chosen]]


def intervention_maker(mode: Mode) -> Callable[[ExpertSet], Intervention]:
    """The function that turns a set of experts into an intervention.

    Args:
        mode: The name of a mode, or such a function itself.

    Returns:
        The function.

    Raises:
        ValueError: If there is no mode of that name.
    """
    if not isinstance(mode, str):
        return mode
    if mode not in MODES:
        raise ValueError(f"`mode` must be one of {tuple(MODES)}, or a function, got {mode!r}.")
    return MODES[mode]


def mode_name(mode: Mode) -> str:
    """What a mode is called: its name, or the name of the function."""
    return mode if isinstance(mode, str) else getattr(mode, "__name__", repr(mode))
