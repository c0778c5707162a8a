"""How well a model foretells responses to prompts under interventions."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from moe_interp.errors import PromptError
from moe_interp.interventions._losses import span_losses
from moe_interp.interventions._rows import Recipe, check_recipes, spans_needed
from moe_interp.models import MoEModel
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
    return span_losses(
        model,
        tokenized,
        recipes,
        "response",
        batch_size=batch_size,
        called=lambda prompt: f"the response to {prompts.ids[prompt]!r}",
    )


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
