"""The direction of the residual stream that raises one logit over another, for each prompt."""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from numpy import ndarray
from torch import nn

from moe_interp.capture import plan_batches
from moe_interp.errors import UnsupportedArchitectureError
from moe_interp.interventions import as_prompt_set, forward_arguments
from moe_interp.metrics import LogitDifference
from moe_interp.models import MoEModel
from moe_interp.prompts import PromptSet, tokenize

# Largest difference allowed between the direction's own answer and the model's logits.
_TOLERANCE = 1e-3


def logit_direction(
    model: MoEModel,
    prompts: PromptSet | Sequence[str],
    metric: LogitDifference,
    *,
    batch_size: int | str = "auto",
) -> Float[ndarray, "prompt d_model"]:
    r"""Find what a vector written at the last token adds to a logit difference, directly.

    The direction is :math:`\gamma \circ (W_U[a] - W_U[b]) / \mathrm{rms}(h)`: the unembedding's
    difference through the final norm, whose scale is held at what it is for the prompt. So a
    projection is exact for the direct path as long as the scale stays; later layers do not count.

    Args:
        model: The model.
        prompts: The prompts.
        metric: The logit difference.
        batch_size: Prompts a batch; ``"auto"`` fills batches up to a number of tokens.

    Returns:
        One direction for each prompt; its product with the final residual stream is the logit
        difference.

    Raises:
        UnsupportedArchitectureError: If the model does not end in an RMS norm and a linear map,
            or changes its logits after that (a scale, a cap).
        UnsupportedOnServerError: If its weights are on a server.

    References:
        Elhage et al. (2021), "A Mathematical Framework for Transformer Circuits": direct paths;
        the frozen scale is the usual way to make the final norm linear.

    Example:
        >>> import moe_interp as mi
        >>> model = mi.load_model("organism:topic")
        >>> metric = mi.LogitDifference(5, 6)
        >>> direction = mi.logit_direction(model, ["how do i bake bread ?"], metric)
        >>> direction.shape == (1, model.architecture.d_model)
        True
    """
    model.require_weights("The direction of a logit")
    prompts = as_prompt_set(prompts)
    path, head = _ending(model)
    difference = (head.weight[metric.token_id] - head.weight[metric.foil_id]).detach().double()
    tokens = tokenize(model.tokenizer, prompts, max_length=model.max_positions)
    directions = np.zeros((len(prompts), len(difference)))
    for chosen in plan_batches(tokens.lengths, batch_size=batch_size):
        inputs, options = forward_arguments(model, tokens.batch(chosen))
        root = model.nnsight
        norm = root.get(path)
        with torch.no_grad(), root.trace(inputs, **options):
            before = norm.input[:, -1].save()
            after = norm.output[:, -1].save()
            logits = root.output.logits[:, -1].save()
        scale = torch.where(before == 0, 0.0, after.double() / before.double())
        direction = scale * difference
        told = (direction * before.double()).sum(-1)
        expected = logits[:, metric.token_id].double() - logits[:, metric.foil_id].double()
        error = float(((told - expected).abs() / logits.double().abs().amax(-1)).max())
        if error > _TOLERANCE:
            raise UnsupportedArchitectureError(
                f"{model.architecture.model_class!r} does more than a norm and a linear map after "
                f"its last layer (the logit difference is off by {error:.2g}). Use `attribution`."
            )
        directions[chosen] = direction.cpu().numpy()
    return directions


def _ending(model: MoEModel) -> tuple[str, nn.Module]:
    """Path of the final norm, and the unembedding."""
    module = model.nnsight._module
    decoder, head = module.get_decoder(), module.get_output_embeddings()
    norms = [child for name, child in decoder.named_children() if "norm" in name]
    if not norms or "RMSNorm" not in type(norms[-1]).__name__ or not isinstance(head, nn.Linear):
        raise UnsupportedArchitectureError(
            f"{model.architecture.model_class!r} does not end in an RMS norm and a linear "
            "unembedding, so that a direction for a logit cannot be told. Use `attribution`."
        )
    path = next(path for path, part in module.named_modules() if part is norms[-1])
    return path, head
