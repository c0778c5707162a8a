"""The arrays of a record: their full shapes are known before the first batch, which fills its part.

Because every batch writes only the rows of its own tokens and prompts, batches may come in any
order, and the same plan serves arrays on disk.
"""

from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import version
from typing import Any

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


def dimensions(
    architecture: Architecture, tokens: TokenizedPrompts, *, n_draws: int
) -> dict[str, int]:
    """The length of every dimension that arrays of a record have.

    Args:
        architecture: The model's sizes.
        tokens: The prompts as tokens.
        n_draws: Number of random routers.

    Returns:
        The lengths by name.
    """
    return {
        "token": int(tokens.lengths.sum()),
        "layer": len(architecture.moe_layers),
        "top_k": architecture.top_k,
        "expert": architecture.n_experts,
        "prompt": len(tokens.token_ids),
        "span": len(tokens.spans),
        "draw": n_draws,
        "d_model": architecture.d_model,
    }


def formats(
    architecture: Architecture,
    quantities: Sequence[str],
    *,
    n_draws: int,
    weight_dtype: str = "float32",
) -> dict[str, np.dtype]:
    """What is recorded, and in which format: experts as small integers, logits as they are.

    Args:
        architecture: The model's sizes.
        quantities: What to keep of tokens or spans; the routing weights are kept in any case, to be
            checked.
        n_draws: Number of random routers.
        weight_dtype: Format of routing weights and probabilities; those of a model in double
            precision stay double, unless they are to be half.

    Returns:
        The formats by name.
    """
    real = np.dtype(np.float64 if architecture.dtype == "float64" else np.float32)
    weights = np.dtype(np.float16) if weight_dtype == "float16" else real
    kinds = {
        "expert_index": np.dtype(np.uint8 if architecture.n_experts <= 256 else np.uint16),
        "routing_weights": weights,
        "router_probs": weights,
        "router_logits": real,
        "random_profile": np.dtype(np.float32),
        "mean_router_input": np.dtype(np.float32),
    }
    names = [*quantities, "routing_weights", *(["random_profile"] if n_draws else [])]
    return {name: kinds[name] for name in dict.fromkeys(names)}


def empty_arrays(
    architecture: Architecture,
    tokens: TokenizedPrompts,
    quantities: Sequence[str],
    *,
    n_draws: int,
    weight_dtype: str = "float32",
) -> dict[str, ndarray]:
    """Allocate what is recorded, in full.

    Args:
        architecture: The model's sizes.
        tokens: The prompts as tokens.
        quantities: As in `formats`.
        n_draws: As in `formats`.
        weight_dtype: As in `formats`.

    Returns:
        The arrays by name.
    """
    sizes = dimensions(architecture, tokens, n_draws=n_draws)
    kinds = formats(architecture, quantities, n_draws=n_draws, weight_dtype=weight_dtype)
    return {
        name: np.zeros([sizes[dim] for dim in DIMS[name]], dtype=kind)
        for name, kind in kinds.items()
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
    place = token_rows(tokens, chosen)
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


def void_prompts(
    arrays: Mapping[str, ndarray], tokens: TokenizedPrompts, failed: Iterable[int]
) -> None:
    """Leave no number where a prompt failed.

    Args:
        arrays: The arrays of the whole record.
        tokens: The prompts as tokens.
        failed: The prompts that failed.
    """
    failed = list(failed)
    if not failed:
        return
    place = token_rows(tokens, failed)
    for name, array in arrays.items():
        nothing = 0 if array.dtype.kind == "u" else np.nan
        where = {"token": place, "prompt": failed}
        index = tuple(where.get(dim, slice(None)) for dim in DIMS[name])
        array[index] = nothing


def token_rows(tokens: TokenizedPrompts, chosen: Sequence[int]) -> Int[ndarray, " row"]:
    """The rows of the tokens of prompts, when prompts follow each other in their own order.

    Args:
        tokens: The prompts as tokens.
        chosen: Which prompts.

    Returns:
        Their rows, prompt after prompt.
    """
    ends = tokens.ends
    return np.concatenate(
        [np.arange(ends[prompt] - tokens.lengths[prompt], ends[prompt]) for prompt in chosen]
    )


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
    by_token = of_tokens(tokens, 0)
    variables["in_span"] = by_token.pop("in_span")
    coords = {
        "layer": ("layer", np.array(architecture.moe_layers)),
        "span": ("span", _texts(tokens.spans)),
        **by_token,
        **of_prompts(prompts),
    }
    return xr.Dataset(variables, coords=coords, attrs=attributes(architecture, prompts))


def of_tokens(tokens: TokenizedPrompts, first: int) -> dict[str, tuple[tuple[str, ...], ndarray]]:
    """What is known of tokens before a model runs.

    Args:
        tokens: The tokens of some prompts.
        first: Position of the first of these prompts among all.

    Returns:
        By name, the dimensions and the values.
    """
    lengths = tokens.lengths
    owner = np.repeat(np.arange(len(lengths)), lengths)
    known = {
        "prompt_index": (owner + first).astype(np.int32),
        "pos": (np.arange(lengths.sum()) - (tokens.ends - lengths)[owner]).astype(np.int32),
        "token_id": np.concatenate(tokens.token_ids).astype(np.int32),
        "token_text": _texts(text for texts in tokens.token_text for text in texts),
    }
    inside = np.stack([np.concatenate(span) for span in tokens.spans.values()])
    return {
        "in_span": (("span", "token"), inside),
        **{name: (("token",), values) for name, values in known.items()},
    }


def of_prompts(prompts: PromptSet) -> dict[str, tuple[tuple[str, ...], ndarray]]:
    """What a record says of prompts.

    Args:
        prompts: The prompts.

    Returns:
        By name, the dimensions and the values.
    """
    known = {
        "text": _texts(prompts.texts),
        "topic": _texts(prompts.topics),
        "harm": _harm(prompts),
        "pair": _texts(prompts.pairs),
        "wording": _texts(prompts.wordings),
        "response": _texts(prompts.responses),
        "id": _texts(prompts.ids),
    }
    return {name: (("prompt",), values) for name, values in known.items()}


def attributes(architecture: Architecture, prompts: PromptSet) -> dict[str, Any]:
    """What a record says of itself.

    Args:
        architecture: The model.
        prompts: The prompts.

    Returns:
        JSON-safe values.
    """
    return {
        "kind": KIND,
        "schema_version": SCHEMA_VERSION,
        "model": architecture.to_dict(),
        "prompts": {
            "source": prompts.source,
            "digest": prompts.digest,
            "card": None if prompts.card is None else prompts.card.to_dict(),
        },
        "versions": versions(),
    }


def _texts(values: Iterable[str | None]) -> ndarray:
    """Texts of any length; a missing one is empty, which no label can be."""
    return np.array([value or "" for value in values], dtype=object)


def _harm(prompts: PromptSet) -> ndarray:
    """Booleans if all are known; else numbers with NaN, which nobody can take for a mask."""
    if prompts.has_harm:
        return prompts.harm
    return np.array([np.nan if p.harm is None else p.harm for p in prompts], dtype=np.float32)


def versions() -> dict[str, str]:
    """The versions of what a record's numbers come from.

    Returns:
        By library.
    """
    libraries = ("torch", "transformers", "nnsight")
    return {"moe_interp": __version__, **{name: version(name) for name in libraries}}
