"""How well a model foretells plain texts under interventions: the loss that perplexity is of."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from jaxtyping import Float

from moe_interp.errors import PromptError
from moe_interp.interventions._losses import span_losses
from moe_interp.interventions._rows import Recipe, check_recipes
from moe_interp.models import MoEModel
from moe_interp.prompts import tokenize


def text_losses(
    model: MoEModel,
    texts: Sequence[str],
    recipes: Sequence[Recipe],
    *,
    batch_size: int | str = "auto",
) -> Float[np.ndarray, "recipe text"]:
    """Measure how well texts are foretold: mean negative log-likelihood of their tokens.

    Texts are read as they are, without a chat template, with the first token that the tokenizer
    puts before any text. A text's first token is not foretold. The perplexity of a text is the
    exponential of its number.

    Args:
        model: The model.
        texts: The texts.
        recipes: Lists of interventions; spans speak of the text's own tokens.
        batch_size: Rows in one forward; ``"auto"`` fills batches up to a number of tokens.

    Returns:
        Nats per token, for each recipe and text.

    Raises:
        PromptError: If there is no text, or one has fewer than two tokens or more than the model
            reads.
        ValueError: If an intervention does not fit the model or the texts, or losses are not
            numbers.
    """
    if not len(texts):
        raise PromptError("There is no text to foretell. Give at least one neutral text.")
    check_recipes(model, recipes)
    tokenized = tokenize(model.tokenizer, texts, max_length=model.max_positions, chat=False)
    short = [text for text, n in zip(texts, tokenized.lengths, strict=True) if n < 2]
    if short:
        raise PromptError(
            f"{short[0]!r} has a single token, and nothing in it is foretold. Give texts of at "
            "least two tokens."
        )
    foretold = tuple(np.arange(n) > 0 for n in tokenized.lengths)
    tokenized = replace(tokenized, spans={**tokenized.spans, "foretold": foretold})
    return span_losses(
        model,
        tokenized,
        recipes,
        "foretold",
        batch_size=batch_size,
        called=lambda text: f"the text {texts[text]!r}",
    )
