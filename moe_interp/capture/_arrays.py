"""The arrays of a record: their full shapes are known before the first batch, which fills its part.

Because every batch writes only the rows of its own tokens and prompts, batches may come in any
order, and the same plan serves arrays on disk.
"""

from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import version

import numpy as np
import xarray as xr
from einops import rearrange
from jaxtyping import Float, Int
from numpy import ndarray
from torch import Tensor

from moe_interp import __version__
from moe_interp.capture._store import KIND, SCHEMA_VERSION
from moe_interp.models import Architecture
from moe_interp.prompts import PromptSet, TokenizedPrompts

DIMS = {
    "expert_index": ("token", "layer", "top_k"),
    "routing_weights": ("token", "layer", "top_k"),
    "router_logits": ("token", "layer", "expert"),
    "router_probs": ("token", "layer", "expert"),
    "mean_router_input": ("span", "prompt", "layer", "d_model"),
    "random_profile": ("span", "draw", "prompt", "layer", "expert"),
}


def empty_arrays(
    architecture: Architecture,
    tokens: TokenizedPrompts,
    quantities: Sequence[str],
    *,
    n_draws: int,
) -> dict[str, ndarray]:
    """Allocate what is recorded, in full.

    Args:
        architecture: The model's sizes.
        tokens: The prompts as tokens.
        quantities: What to keep of tokens or spans; the routing weights are kept in any case, to be
            checked.
        n_draws: Number of random routers.

    Returns:
        The arrays by name.
    """
    sizes = {
        "token": int(tokens.lengths.sum()),
        "layer": len(architecture.moe_layers),
        "top_k": architecture.top_k,
        "expert": architecture.n_experts,
        "prompt": len(tokens.token_ids),
        "span": len(tokens.spans),
        "draw": n_draws,
        "d_model": architecture.d_model,
    }
    real = np.float64 if architecture.dtype == "float64" else np.float32
    kinds = {
        "expert_index": np.int16,
        "random_profile": np.float32,
        "mean_router_input": np.float32,
    }
    names = [*quantities, "routing_weights", *(["random_profile"] if n_draws else [])]
    return {
        name: np.zeros([sizes[dim] for dim in DIMS[name]], dtype=kinds.get(name, real))
        for name in names
    }


def fill_batch(
    arrays: Mapping[str, ndarray],
    recorded: Mapping[int, Mapping[str, Tensor]],
    tokens: TokenizedPrompts,
    chosen: Sequence[int],
) -> None:
    """Write what one batch recorded to its place.

    Args:
        arrays: The arrays of the whole record.
        recorded: What `record_layers` returned, by layer.
        tokens: The prompts as tokens.
        chosen: The prompts of the batch, in the order of its rows.
    """
    place = np.concatenate([token_rows(tokens.lengths, prompt) for prompt in chosen])
    sizes = [[span[prompt].sum() for prompt in chosen] for span in tokens.spans.values()]
    for row, found in enumerate(recorded.values()):
        for name, array in arrays.items():
            if name == "random_profile":
                n_slots = np.array(sizes) * arrays["expert_index"].shape[-1]
                slots = found["random_slots"].cpu().numpy()
                # A prompt without a token in a span has no shares there, not shares of 0.
                known = np.where(n_slots > 0, n_slots, np.nan)
                array[:, :, chosen, row] = slots / rearrange(known, "span row -> span 1 row 1")
            elif name == "mean_router_input":
                array[:, chosen, row] = found[name].cpu().numpy()
            else:
                value = found[name].cpu()
                wide = value if name == "expert_index" else value.double()
                # Some models score more than their routed experts; these come first.
                array[place, row] = wide.numpy()[:, : array.shape[2]]


def token_rows(lengths: Int[ndarray, " prompt"], prompt: int) -> Int[ndarray, " pos"]:
    """The rows of a prompt's tokens, when prompts follow each other in their own order.

    Args:
        lengths: Number of tokens of each prompt.
        prompt: Which prompt.

    Returns:
        Its rows, in order.
    """
    start = int(lengths[:prompt].sum())
    return np.arange(start, start + int(lengths[prompt]))


def check_finite(
    weights: Float[ndarray, "token layer top_k"],
    architecture: Architecture,
    tokens: TokenizedPrompts,
    prompts: PromptSet,
) -> None:
    """Refuse routing weights that are not finite, which make every number after them void.

    Args:
        weights: The recorded weights.
        architecture: The model's sizes.
        tokens: The prompts as tokens.
        prompts: The prompts.

    Raises:
        ValueError: If a weight is NaN or infinite.
    """
    bad = ~np.isfinite(weights)
    if not bad.any():
        return
    token, row, _ = (int(place) for place in np.argwhere(bad)[0])
    prompt = int(np.searchsorted(np.cumsum(tokens.lengths), token, side="right"))
    raise ValueError(
        f"{int(bad.any(axis=(1, 2)).sum())} tokens got routing weights that are not finite, the "
        f"first in layer {architecture.moe_layers[row]} of prompt {prompts.ids[prompt]!r}. "
        f"The model overflows in {architecture.dtype}; load it with another dtype."
    )


def to_dataset(
    architecture: Architecture,
    prompts: PromptSet,
    tokens: TokenizedPrompts,
    arrays: Mapping[str, ndarray],
    quantities: Sequence[str],
) -> xr.Dataset:
    """Join the arrays with what they are about.

    Args:
        architecture: The model.
        prompts: The prompts.
        tokens: The prompts as tokens.
        arrays: What was recorded.
        quantities: Which of the arrays by token or span to keep.

    Returns:
        The dataset of a `RoutingRecord`.
    """
    kept = [name for name in arrays if name in quantities or name == "random_profile"]
    variables = {name: (DIMS[name], arrays[name]) for name in kept}
    inside = np.stack([np.concatenate(span) for span in tokens.spans.values()])
    variables["in_span"] = (("span", "token"), inside)
    lengths = tokens.lengths
    first = np.repeat(np.cumsum(lengths) - lengths, lengths)
    coords = {
        "layer": ("layer", np.array(architecture.moe_layers)),
        "span": ("span", _texts(tokens.spans)),
        "prompt_index": ("token", np.repeat(np.arange(len(lengths)), lengths).astype(np.int32)),
        "pos": ("token", (np.arange(lengths.sum()) - first).astype(np.int32)),
        "token_id": ("token", np.concatenate(tokens.token_ids).astype(np.int32)),
        "token_text": ("token", _texts(text for texts in tokens.token_text for text in texts)),
        "text": ("prompt", _texts(prompts.texts)),
        "topic": ("prompt", _texts(prompts.topics)),
        "harm": ("prompt", _harm(prompts)),
        "pair": ("prompt", _texts(prompts.pairs)),
        "wording": ("prompt", _texts(prompts.wordings)),
        "response": ("prompt", _texts(prompts.responses)),
        "id": ("prompt", _texts(prompts.ids)),
    }
    attributes = {
        "kind": KIND,
        "schema_version": SCHEMA_VERSION,
        "model": architecture.to_dict(),
        "prompts": {
            "source": prompts.source,
            "digest": prompts.digest,
            "card": None if prompts.card is None else prompts.card.to_dict(),
        },
        "versions": _versions(),
    }
    return xr.Dataset(variables, coords=coords, attrs=attributes)


def _texts(values: Iterable[str | None]) -> ndarray:
    """Texts of any length; a missing one is empty, which no label can be."""
    return np.array([value or "" for value in values], dtype=object)


def _harm(prompts: PromptSet) -> ndarray:
    """Booleans if all are known; else numbers with NaN, which nobody can take for a mask."""
    if prompts.has_harm:
        return prompts.harm
    return np.array([np.nan if p.harm is None else p.harm for p in prompts], dtype=np.float32)


def _versions() -> dict[str, str]:
    libraries = ("torch", "transformers", "nnsight")
    return {"moe_interp": __version__, **{name: version(name) for name in libraries}}
