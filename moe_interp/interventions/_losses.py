"""How well tokens are foretold under interventions, text by text."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from jaxtyping import Float

from moe_interp.interventions._intervention import Batch
from moe_interp.interventions._plan import edit_table
from moe_interp.interventions._rows import Recipe, forward_arguments, planned_batches
from moe_interp.models import MoEModel
from moe_interp.models._traced_edits import apply_edits
from moe_interp.models._traced_loss import inside_loss
from moe_interp.prompts import TokenizedPrompts


def span_losses(
    model: MoEModel,
    tokenized: TokenizedPrompts,
    recipes: Sequence[Recipe],
    span: str,
    *,
    batch_size: int | str,
    called: Callable[[int], str],
) -> Float[np.ndarray, "recipe text"]:
    """Measure the mean negative log-likelihood of the tokens of a span, in nats.

    Args:
        model: The model.
        tokenized: The texts as tokens.
        recipes: Lists of interventions that were checked.
        span: Which tokens; none may be the first of its text, which nothing foretells.
        batch_size: Rows in one forward; ``"auto"`` fills batches up to a number of tokens.
        called: Names a text by its position, for an error.

    Returns:
        Nats per token, for each recipe and text.

    Raises:
        ValueError: If an intervention does not fit the model, or losses are not numbers.
    """
    n_texts = len(tokenized.lengths)
    losses = np.full((len(recipes), n_texts), np.nan)
    root = model.nnsight
    for rows in planned_batches(tokenized.lengths, len(recipes), batch_size):
        recipe, text = np.divmod(rows, n_texts)
        encoded = tokenized.batch(text.tolist())
        batch = Batch(model, text, encoded.spans)
        groups = [(np.flatnonzero(recipe == n), recipes[n]) for n in np.unique(recipe)]
        edits = edit_table(batch, groups, "prefill")
        layers = [model.moe[layer] for layer in sorted(edits)]
        inputs, _ = forward_arguments(model, encoded)
        token_ids, inside = encoded.input_ids, encoded.spans[span]
        with torch.no_grad(), root.trace(inputs, backend=model.backend()):
            apply_edits(layers, edits)
            found = inside_loss(root.output.logits, token_ids, inside).save()
        losses[recipe, text] = found.double().cpu().numpy()
    if np.isnan(losses).any():
        n, place = (int(i) for i in np.argwhere(np.isnan(losses))[0])
        raise ValueError(
            f"The loss of {called(place)} under {list(recipes[n]) or 'no intervention'} is not a "
            "number (NaN). Check the model's weights and dtype; half precision may overflow."
        )
    return losses
