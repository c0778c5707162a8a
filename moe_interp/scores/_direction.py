"""Direct attribution: how far each expert writes along a direction of the residual stream."""

from collections.abc import Sequence

import nnsight
import numpy as np
import torch
from jaxtyping import Float
from numpy import ndarray

from moe_interp.capture import plan_batches
from moe_interp.errors import SpanError
from moe_interp.interventions import as_prompt_set, forward_arguments
from moe_interp.models import MoELayer, MoEModel, read_layers
from moe_interp.prompts import PromptSet, tokenize
from moe_interp.scores._gradients import by_expert
from moe_interp.scores._scores import Scores

Direction = Float[ndarray, " d_model"] | Float[ndarray, "prompt d_model"]


def direction_attribution(
    model: MoEModel,
    prompts: PromptSet | Sequence[str],
    direction: Direction,
    *,
    span: str = "last",
    batch_size: int | str = "auto",
) -> Scores:
    r"""Measure how far each expert's contribution points along a direction, by prompt.

    The score of expert :math:`e` is :math:`\sum_t \langle c_{t,e}, d \rangle` over the tokens of a
    span, :math:`c` being what it adds to the residual stream. It is exact and direct: what later
    layers make of it does not count. Summed over the experts of a layer it is the block's own
    projection, less its shared expert's.

    Args:
        model: The model.
        prompts: The prompts.
        direction: A vector, or one for each prompt; `mean_difference` and `logit_direction` make
            them. Its length counts: give a unit vector for lengths along it.
        span: Where in the prompts: ``"last"`` or another span.
        batch_size: Prompts a batch; ``"auto"`` fills batches up to a number of tokens.

    Returns:
        The projection of each prompt and expert, in the unit of the direction.

    Raises:
        ValueError: If the direction does not fit the model and prompts, or the model's experts do
            not write into the residual stream directly.
        SpanError: If there is no such span.

    References:
        nostalgebraist (2020), "interpreting GPT: the logit lens"; Wang et al. (2023),
        "Interpretability in the Wild", section 3.1: direct effects on a logit difference.

    Example:
        >>> import moe_interp as mi
        >>> model = mi.load_model("organism:topic")
        >>> direction = np.ones(model.architecture.d_model)
        >>> scores = mi.direction_attribution(model, ["how do i bake bread ?"], direction)
        >>> scores.array.shape
        (1, 4, 16)
    """
    prompts = as_prompt_set(prompts)
    layers = list(model.moe.values())
    _check_writes(layers)
    vectors = _checked_direction(direction, len(prompts), model.architecture.d_model)
    tokens = tokenize(model.tokenizer, prompts, max_length=model.max_positions)
    scores = np.zeros((len(prompts), len(layers), model.architecture.n_experts))
    names = ("expert_index", "expert_contributions")
    for chosen in plan_batches(tokens.lengths, batch_size=batch_size):
        encoded = tokens.batch(chosen)
        if span not in encoded.spans:
            known = ", ".join(map(repr, encoded.spans))
            raise SpanError(f"There is no span {span!r}. Spans are {known}.")
        inputs, options = forward_arguments(model, encoded)
        with torch.no_grad(), model.nnsight.trace(inputs, backend=model.backend(), **options):
            read = nnsight.save(read_layers(layers, names))
        inside = encoded.spans[span]
        for row, layer in enumerate(layers):
            values = read[layer.layer]
            along = torch.from_numpy(vectors[chosen]).to(values["expert_contributions"])
            projected = torch.einsum("bpkd,bd->bpk", values["expert_contributions"], along)
            here = inside.to(projected.device)[..., None]
            scored = by_expert(layer, values["expert_index"], projected.double() * here)
            scores[chosen, row] = (scored * layer.facts["sum_scale"]).cpu().numpy()
    return Scores.of_array("direction_attribution", "projection", scores, layers=tuple(model.moe))


def _check_writes(layers: Sequence[MoELayer]) -> None:
    """Refuse experts whose sum is projected or normed before it reaches the residual stream."""
    for layer in layers:
        if layer.projection is not None or layer.final_norm is not None:
            raise ValueError(
                f"The experts of layer {layer.layer} do not write into the residual stream: their "
                "sum is projected or normed first, so that one expert has no projection of its "
                "own. Use `attribution`."
            )


def _checked_direction(
    direction: Direction, n_prompts: int, d_model: int
) -> Float[ndarray, "prompt d_model"]:
    if direction.shape not in ((d_model,), (n_prompts, d_model)):
        raise ValueError(
            f"`direction` must have the shape ({d_model},) or ({n_prompts}, {d_model}), got "
            f"{direction.shape}."
        )
    return np.broadcast_to(np.asarray(direction, dtype=np.float64), (n_prompts, d_model))


def mean_difference(
    model: MoEModel,
    prompts: PromptSet,
    layer: int,
    *,
    batch_size: int | str = "auto",
) -> Float[ndarray, " d_model"]:
    """The direction from harmless to harmful prompts, of what enters a MoE layer's router.

    The difference between the mean of harmful and that of harmless prompts at their last token,
    as a unit vector.

    Args:
        model: The model.
        prompts: Prompts with harm known.
        layer: Absolute decoder layer.
        batch_size: Prompts a batch.

    Returns:
        The direction.

    Raises:
        ValueError: If there are not prompts of both kinds.
        KeyError: If the layer has no experts.

    References:
        Arditi et al. (2024), "Refusal in Language Models Is Mediated by a Single Direction",
        section 2.3: difference of means, there of the residual stream itself.

    Example:
        >>> import moe_interp as mi
        >>> model = mi.load_model("organism:topic")
        >>> prompts = mi.load_prompts("organism", per_topic=4)
        >>> direction = mi.mean_difference(model, prompts, 2)
        >>> round(float((direction**2).sum()), 6)
        1.0
    """
    harm = prompts.harm
    if not (harm.any() and (~harm).any()):
        raise ValueError("`prompts` must hold harmful and harmless prompts, got one kind only.")
    one = [model.moe[layer]]
    tokens = tokenize(model.tokenizer, prompts, max_length=model.max_positions)
    last = np.zeros((len(prompts), model.architecture.d_model))
    for chosen in plan_batches(tokens.lengths, batch_size=batch_size):
        encoded = tokens.batch(chosen)
        inputs, options = forward_arguments(model, encoded)
        with torch.no_grad(), model.nnsight.trace(inputs, backend=model.backend(), **options):
            read = nnsight.save(read_layers(one, ("input",)))
        last[chosen] = read[layer]["input"][:, -1].double().cpu().numpy()
    direction = last[harm].mean(0) - last[~harm].mean(0)
    return direction / np.linalg.norm(direction)
