"""A model that keeps interventions: for one's own traces, and for every run after."""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from jaxtyping import Bool
from torch import Tensor

from moe_interp.interventions._intervention import Batch, Intervention, as_recipe
from moe_interp.interventions._plan import EditTable, edit_table
from moe_interp.interventions._rows import as_prompt_set, spans_needed
from moe_interp.models import MoEModel
from moe_interp.models._traced_edits import apply_at_every_step, apply_edits
from moe_interp.prompts import PromptSet, encode


def edited(
    model: MoEModel,
    interventions: Intervention | Sequence[Intervention],
    *,
    prompts: PromptSet | Sequence[str] | None = None,
) -> MoEModel:
    """Give a model that applies interventions in every trace, generation and run.

    The model given stays as it is, and both share their weights. What a trace of the edited model
    reads is what the changed model computes; edits written in the trace come after these.

    Args:
        model: The model.
        interventions: What to change, applied in list order.
        prompts: What the model will be traced with, in this order and in one batch. Needed by
            interventions at named tokens or from other runs, which speak of the tokens of
            prompts; trace ``encode(model.tokenizer, prompts).inputs`` then.

    Returns:
        The edited model.

    Raises:
        ValueError: If an intervention does not fit the model, or speaks of the tokens of prompts
            and none are given.
        TypeError: If something else is among the interventions.

    Example:
        >>> import moe_interp as mi
        >>> model = mi.load_model("organism:topic")
        >>> quiet = edited(model, mi.Ban("L3E8,L3E9"))
        >>> with quiet.trace("how do i bake bread ?"):
        ...     chosen = quiet.moe[3].expert_index.save()
        >>> bool(((chosen == 8) | (chosen == 9)).any())
        False
    """
    recipe = as_recipe(interventions)
    for intervention in recipe:
        intervention.check(model)
    if prompts is None:
        batch = Batch(model, np.zeros(1, dtype=np.int64), _NoSpans())
    else:
        encoded = encode(
            model.tokenizer,
            as_prompt_set(prompts),
            max_length=model.max_positions,
            spans=spans_needed([recipe]),
        )
        batch = Batch(model, np.arange(len(encoded.input_ids)), encoded.spans)
    groups = [(np.arange(len(batch.prompt_index)), recipe)]
    prefill, decode = (edit_table(batch, groups, phase) for phase in ("prefill", "decode"))
    changed = _with_edits(model, prefill, decode) if prefill or decode else model.nnsight
    return MoEModel(
        changed, model.sites, source=model.id, card=model.card, connection=model.connection
    )


class _NoSpans(Mapping[str, Bool[Tensor, "batch pos"]]):
    """The spans of no prompts: there are none to be asked for."""

    def __getitem__(self, name: str) -> Bool[Tensor, "batch pos"]:
        raise ValueError(
            f"An intervention needs the tokens of the prompts ({name!r}), and an edited model is "
            "bound to none. Give `prompts=`, or leave `tokens` out."
        )

    def __contains__(self, name: object) -> bool:
        # Asked for first, so that the error of `__getitem__` is what is seen.
        return True

    def __iter__(self) -> Iterator[str]:
        return iter(())

    def __len__(self) -> int:
        return 0


def _with_edits(model: MoEModel, prefill: EditTable, decode: EditTable) -> object:
    """A copy of the nnsight model whose every trace begins with these edits."""
    root = model.nnsight
    layers = [model.moe[layer] for layer in sorted({*prefill, *decode})]
    if not decode:
        with root.edit() as (_, copy):
            apply_edits(layers, prefill)
        return copy
    # A step that touches no layer would never end, so the loop is for edits that decoding has.
    with root.edit() as (_, copy):
        apply_at_every_step(layers, prefill, decode)
    return copy
