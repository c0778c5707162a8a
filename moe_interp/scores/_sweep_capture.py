"""The untouched model's forward, of which a sweep keeps what its other forwards start from.

Taking an expert away changes nothing in the layers below it, and, in a causal model, nothing at
the tokens before the first that chose it. So a forward may begin at its layer, with the hidden
states that the untouched model had there, and at that token, with the keys and values of the
tokens before. Prompts are padded on the left: all of them end at the same position, so that the
last tokens of any of them can share a batch.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import nnsight
import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers.cache_utils import DynamicCache

from moe_interp.interventions import forward_arguments
from moe_interp.metrics import LogitMetric
from moe_interp.models import MoEModel
from moe_interp.models._traced_judge import judge
from moe_interp.prompts import Encoded
from moe_interp.scores._sweep_anatomy import Anatomy, Reuse


@dataclass(frozen=True)
class Captured:
    """What the untouched model computed for some of the prompts.

    Attributes:
        encoded: The prompts, padded on the left.
        numbers: Which of all prompts they are.
        logits: Next-token logits after each; the metric of each, where a server made it of them.
        chosen: By layer, the experts chosen.
        hidden: By layer, what entered it; what left the last one counts as entering a next.
        n_outputs: How many values a decoder layer returns; 0 if it returns one tensor bare.
        keys: The keys of each layer's attention; None if they were not kept.
        values: The values of each layer's attention.
    """

    encoded: Encoded
    numbers: Int[np.ndarray, " prompt"]
    logits: Float[Tensor, "prompt ..."]
    chosen: Mapping[int, Int[Tensor, "prompt pos top_k"]]
    hidden: Mapping[int, Tensor]
    n_outputs: int
    keys: tuple[Tensor, ...] | None
    values: tuple[Tensor, ...] | None

    @property
    def width(self) -> int:
        """Positions, padding included."""
        return self.encoded.input_ids.shape[1]

    @property
    def lengths(self) -> Int[np.ndarray, " prompt"]:
        """How many tokens each prompt has."""
        return self.encoded.attention_mask.sum(1).numpy()


def capture(
    model: MoEModel,
    encoded: Encoded,
    numbers: Int[np.ndarray, " prompt"],
    places: Anatomy,
    reuse: Reuse,
    layers: Sequence[int],
    metric: LogitMetric | None = None,
) -> Captured:
    """Run prompts untouched, and keep what is to be taken over.

    Args:
        model: The model.
        encoded: The prompts, padded on the left.
        numbers: Which of all prompts they are.
        places: Where the forward can be cut.
        reuse: What is to be taken over.
        layers: The layers at which experts will be taken away.
        metric: What to make of the logits on the model's server, in their place.

    Returns:
        What was kept.
    """
    root, stack = model.nnsight, places.stack
    sites = dict(model.moe)
    inputs, options = forward_arguments(model, encoded)
    cache = DynamicCache() if reuse.positions else None
    if cache is not None:
        options = {**options, "past_key_values": cache, "use_cache": True}
    enters = set(layers) if reuse.layers else set()
    first = min(enters, default=0)
    if reuse.own:
        enters |= {layer + 1 for layer in enters}
    numbered = range(len(stack)) if stack else list(sites)
    with torch.no_grad(), root.trace(inputs, backend=model.backend(), **options):
        hidden, chosen, n_outputs = {}, {}, 0
        for number in numbered:
            if number in enters:
                hidden[number] = stack[number].input
            if number in sites:
                chosen[number] = sites[number].read("expert_index")["expert_index"]
            if number == first and enters:
                output = stack[number].output
                n_outputs = len(output) if isinstance(output, tuple) else 0
            if number + 1 == len(stack) and number + 1 in enters:
                output = stack[number].output
                hidden[number + 1] = output[0] if isinstance(output, tuple) else output
        logits = root.output.logits[:, -1].clone()
        if metric is not None:
            logits = judge(logits, metric)
        kept = nnsight.save(
            {"hidden": hidden, "chosen": chosen, "logits": logits, "n_outputs": n_outputs}
        )
    keys, values = (None, None) if cache is None else _kept(cache, encoded, len(stack))
    return Captured(
        encoded=encoded,
        numbers=numbers,
        logits=kept["logits"],
        chosen={layer: index.cpu() for layer, index in kept["chosen"].items()},
        hidden=kept["hidden"],
        n_outputs=kept["n_outputs"],
        keys=keys,
        values=values,
    )


def _kept(
    cache: DynamicCache, encoded: Encoded, n_layers: int
) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """The keys and values of each layer, which must hold one entry a token."""
    n_prompts, width = encoded.input_ids.shape
    for layer in cache.layers:
        for kept in (layer.keys, layer.values):
            if kept is None or (kept.shape[0], kept.shape[-2]) != (n_prompts, width):
                raise ValueError("A layer keeps something else than keys and values of tokens.")
    if len(cache.layers) != n_layers:
        raise ValueError("Not every layer keeps keys and values.")
    keys = tuple(layer.keys for layer in cache.layers)
    return keys, tuple(layer.values for layer in cache.layers)
