"""How well a model foretells plain texts under interventions: the loss that perplexity is of."""

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
)
from moe_interp.models import MoEModel
from moe_interp.models._traced_edits import apply_edits
from moe_interp.models._traced_loss import text_loss
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
    losses = np.full((len(recipes), len(texts)), np.nan)
    root = model.nnsight
    for rows in planned_batches(tokenized.lengths, len(recipes), batch_size):
        recipe, text = np.divmod(rows, len(texts))
        encoded = tokenized.batch(text.tolist())
        batch = Batch(model, text, encoded.spans)
        groups = [(np.flatnonzero(recipe == n), recipes[n]) for n in np.unique(recipe)]
        edits = edit_table(batch, groups, "prefill")
        layers = [model.moe[layer] for layer in sorted(edits)]
        inputs, _ = forward_arguments(model, encoded)
        token_ids, real = encoded.input_ids, encoded.attention_mask
        with torch.no_grad(), root.trace(inputs, backend=model.backend()):
            apply_edits(layers, edits)
            found = text_loss(root.output.logits, token_ids, real).save()
        losses[recipe, text] = found.double().cpu().numpy()
    if np.isnan(losses).any():
        n, place = (int(i) for i in np.argwhere(np.isnan(losses))[0])
        raise ValueError(
            f"The loss of the text {texts[place]!r} under {list(recipes[n]) or 'no intervention'} "
            "is not a number (NaN). Check the model's weights and dtype; half precision may "
            "overflow."
        )
    return losses
