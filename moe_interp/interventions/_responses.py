"""How well a model foretells responses to prompts under interventions."""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float

from moe_interp.errors import PromptError
from moe_interp.interventions._intervention import Batch
from moe_interp.interventions._plan import edit_table
from moe_interp.interventions._rows import (
    Recipe,
    check_recipes,
    forward_arguments,
    planned_batches,
    spans_needed,
)
from moe_interp.models import MoEModel
from moe_interp.models._traced_edits import apply_edits
from moe_interp.models._traced_loss import inside_loss
from moe_interp.prompts import PromptSet, TokenizedPrompts, listed, tokenize


def response_losses(
    model: MoEModel,
    prompts: PromptSet,
    recipes: Sequence[Recipe],
    *,
    batch_size: int | str = "auto",
) -> Float[np.ndarray, "recipe prompt"]:
    """Measure how well responses are foretold: mean negative log-likelihood of their tokens.

    The response stands behind the prompt as in a chat; what marks its end is not counted.

    Args:
        model: The model.
        prompts: Prompts that all have a response.
        recipes: Lists of interventions.
        batch_size: Rows in one forward; ``"auto"`` fills batches up to a number of tokens.

    Returns:
        Nats per token, for each recipe and prompt.

    Raises:
        PromptError: If a prompt has no response, or is longer with it than the model reads.
        ValueError: If an intervention does not fit the model, or losses are not numbers.
    """
    check_recipes(model, recipes)
    tokenized = with_responses(model, prompts, spans_needed(recipes))
    losses = np.full((len(recipes), len(prompts)), np.nan)
    root = model.nnsight
    for rows in planned_batches(tokenized.lengths, len(recipes), batch_size):
        recipe, prompt = np.divmod(rows, len(prompts))
        encoded = tokenized.batch(prompt.tolist())
        batch = Batch(model, prompt, encoded.spans)
        groups = [(np.flatnonzero(recipe == n), recipes[n]) for n in np.unique(recipe)]
        edits = edit_table(batch, groups, "prefill")
        layers = [model.moe[layer] for layer in sorted(edits)]
        inputs, _ = forward_arguments(model, encoded)
        token_ids, inside = encoded.input_ids, encoded.spans["response"]
        with torch.no_grad(), root.trace(inputs, backend=model.backend()):
            apply_edits(layers, edits)
            found = inside_loss(root.output.logits, token_ids, inside).save()
        losses[recipe, prompt] = found.double().cpu().numpy()
    if np.isnan(losses).any():
        n, place = (int(i) for i in np.argwhere(np.isnan(losses))[0])
        raise ValueError(
            f"The loss of the response to {prompts.ids[place]!r} under "
            f"{list(recipes[n]) or 'no intervention'} is not a number (NaN). Check the model's "
            "weights and dtype; half precision may overflow."
        )
    return losses


def with_responses(
    model: MoEModel, prompts: PromptSet, spans: Sequence[str] = ()
) -> TokenizedPrompts:
    """Read prompts with their responses as tokens.

    Args:
        model: The model.
        prompts: The prompts.
        spans: Further spans to mark.

    Returns:
        The tokens, with the span ``"response"``.

    Raises:
        PromptError: If a prompt has no response, or is longer with it than the model reads.
    """
    without = [prompt.id for prompt in prompts if prompt.response is None]
    if without:
        raise PromptError(
            f"{len(without)} of {len(prompts)} prompts have no `response` to be foretold: "
            f"{listed(without)}. Give each one, or leave them out with `select`."
        )
    names = tuple(dict.fromkeys(("response", *spans)))
    return tokenize(model.tokenizer, prompts, max_length=model.max_positions, spans=names)
