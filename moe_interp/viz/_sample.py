"""Choose the prompts whose tokens a report shows, and pack their routing into few bytes."""

import base64
from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr
from jaxtyping import Bool
from numpy import ndarray

from moe_interp.experts import Expert
from moe_interp.viz._circuitsvis import safe_token
from moe_interp.viz._tables import Recorded

MAX_PROMPTS = 24
MAX_BYTES = 480_000
# Of values of every expert, so many are kept for each token and layer.
MAX_KEPT = 16


def sample_prompts(dataset: xr.Dataset, *, most: int = MAX_PROMPTS) -> list[int]:
    """Choose prompts balanced over topics and harm; members of a pair stay together.

    Args:
        dataset: A routing record's data set.
        most: How many prompts to choose at most.

    Returns:
        Positions along ``prompt``, in groups of pairs, one topic after the other in turn.
    """
    queues: dict[str, list[list[int]]] = {}
    for group in _groups(dataset):
        queues.setdefault(_label(dataset, "topic", group[0]), []).append(group)
    chosen: list[int] = []
    while any(queues.values()):
        for queue in queues.values():
            if queue and len(chosen) + len(queue[0]) <= max(most, len(queue[0])):
                chosen += queue.pop(0)
            else:
                queue.clear()
    return chosen


def weights_of(record: Recorded, expert: Expert) -> np.ndarray:
    """Read the routing weight of one expert at every token.

    Args:
        record: A routing record.
        expert: The expert.

    Returns:
        One number for each token, 0 where it was not chosen.

    Raises:
        ValueError: If its layer was not recorded.
    """
    layers = [int(layer) for layer in record.dataset["layer"].values]
    if expert.layer not in layers:
        raise ValueError(
            f"The record has no layer {expert.layer}. Its layers: {', '.join(map(str, layers))}."
        )
    here = record.dataset.isel(layer=layers.index(expert.layer)).transpose("token", ...)
    used = np.where(here["expert_index"].values == expert.expert, here["routing_weights"].values, 0)
    return used.sum(axis=-1)


def tokens_inside(record: Recorded, span: str | None) -> Bool[ndarray, " token"]:
    """Which tokens of a record lie in a span; all of them for None.

    Args:
        record: A routing record.
        span: A recorded span, or None.

    Returns:
        One boolean for each token.

    Raises:
        ValueError: If the span was not recorded.
    """
    dataset = record.dataset
    if span is None:
        return np.ones(dataset.sizes["token"], dtype=bool)
    known = [str(name) for name in dataset["span"].values] if "span" in dataset.coords else []
    if span not in known:
        raise ValueError(f"The span {span!r} was not recorded. Recorded: {', '.join(known)}.")
    return dataset["in_span"].sel(span=span).values.astype(bool)


def pack_tokens(
    dataset: xr.Dataset,
    *,
    most: int = MAX_PROMPTS,
    prompts: Sequence[int] | None = None,
    values: np.ndarray | None = None,
    bound: float | None = None,
) -> dict[str, Any]:
    """Pack tokens, chosen experts and routing weights of a sample of prompts.

    Chosen experts are 8-bit (16-bit beyond 256 experts), routing weights 1/255 of the largest
    one, so that 48 layers with 8 of 128 experts cost 768 bytes a token and not 50 kB.

    Args:
        dataset: A routing record's data set.
        most: How many prompts to take at most; fewer where they would exceed 480 kB.
        prompts: The prompts to take instead of a sample.
        values: Signed numbers ``[token layer top_k]`` or ``[token layer expert]`` to pack in
            place of routing weights; of many experts those with the largest magnitudes.
        bound: The magnitude painted fully; by default the largest one packed.

    Returns:
        Prompts with inert token texts, and two base64 arrays ``[token layer top_k]``.
    """
    owner = np.asarray(dataset["prompt_index"].values)
    taken = dataset[["expert_index", "routing_weights"]].transpose("token", "layer", "top_k")
    n_layers, width = taken.sizes["layer"], taken.sizes["top_k"]
    known = taken["expert_index"]
    n_experts = 1 + (int(known.max()) if known.size and known.dtype != np.uint8 else 255)
    if values is not None and values.shape[-1] != width:
        n_experts, width = values.shape[-1], min(values.shape[-1], MAX_KEPT)
    wide = n_experts > 256
    room = MAX_BYTES // (n_layers * width * (3 if wide else 2))
    chosen: list[np.ndarray] = []
    token_text = dataset["token_text"]
    shown: list[dict[str, Any]] = []
    for prompt in sample_prompts(dataset, most=most) if prompts is None else prompts:
        tokens = np.flatnonzero(owner == prompt)
        cut = len(tokens) > room
        if not shown:
            tokens = tokens[:room]
        elif cut:
            break
        room -= len(tokens)
        chosen.append(tokens)
        texts = [safe_token(str(text)) for text in token_text[tokens].values]
        shown.append(_about(dataset, prompt) | {"tokens": texts, "cut": bool(cut)})
    rows = np.concatenate(chosen) if chosen else np.zeros(0, dtype=int)
    # A record may be larger than memory: nothing is read but what is shown.
    taken = taken.isel(token=rows)
    index, numbers = taken["expert_index"].values, taken["routing_weights"].values
    if values is not None:
        index, numbers = _largest(index, values[rows])
    steps, scale = _steps(numbers, signed=values is not None, bound=bound)
    return {
        "prompts": shown,
        "layers": [int(layer) for layer in dataset["layer"].values],
        "top_k": width,
        "index": to_base64(index.astype("<u2" if wide else "uint8")),
        "index_bytes": 2 if wide else 1,
        "weights": to_base64(steps),
        "scale": scale,
        "signed": values is not None,
        "verb": "is chosen for" if values is None else "has values at",
    }


def _about(dataset: xr.Dataset, prompt: int) -> dict[str, Any]:
    return {
        "id": _label(dataset, "id", prompt) or str(prompt),
        "pair": _label(dataset, "pair", prompt) or f"prompt {prompt}",
        "text": _label(dataset, "text", prompt)[:80],
        "topic": _label(dataset, "topic", prompt),
        "harm": _harm(dataset, prompt),
    }


def _largest(index: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Turn ``[token layer expert]`` into the experts of the largest magnitudes and their values."""
    if values.shape == index.shape:
        return index, values
    kept = min(values.shape[-1], MAX_KEPT)
    size = np.where(np.isnan(values), np.inf, np.abs(values))
    order = np.argsort(-size, axis=-1, kind="stable")[..., :kept]
    return order, np.take_along_axis(values, order, axis=-1)


def _steps(numbers: np.ndarray, *, signed: bool, bound: float | None) -> tuple[np.ndarray, float]:
    """Round numbers to one byte each; a number that is not zero keeps at least one step."""
    numbers = numbers.astype("float64")
    known = np.nan_to_num(numbers)
    scale = bound or float(np.abs(known).max(initial=0.0)) or 1.0
    if not signed:
        # A chosen expert keeps at least one step, or it would look as if it had not been chosen.
        return np.clip(np.rint(np.abs(known) / scale * 255), 1, 255).astype("uint8"), scale
    steps = np.clip(np.rint(known / scale * 127), -127, 127)
    steps = np.where((steps == 0) & (known != 0), np.sign(known), steps)
    return np.where(np.isnan(numbers), -128, steps).astype("int8"), scale


def to_base64(values: np.ndarray) -> str:
    """Pack numbers as text, row by row, for the script that reads them."""
    return base64.b64encode(np.ascontiguousarray(values).tobytes()).decode("ascii")


def _groups(dataset: xr.Dataset) -> list[list[int]]:
    groups: dict[str, list[int]] = {}
    for prompt in range(dataset.sizes["prompt"]):
        pair = _label(dataset, "pair", prompt)
        key = f"{_label(dataset, 'topic', prompt)}\n{pair}" if pair else f"\n{prompt}"
        groups.setdefault(key, []).append(prompt)
    # Where prompts have no partner, harmful and harmless ones take turns instead.
    singles = [group for group in groups.values() if len(group) == 1]
    if len(singles) < len(groups):
        return [group[:4] for group in groups.values()]
    harmful = [group for group in singles if _harm(dataset, group[0])]
    harmless = [group for group in singles if not _harm(dataset, group[0])]
    turns = max(len(harmful), len(harmless))
    return [side[i] for i in range(turns) for side in (harmful, harmless) if i < len(side)]


def _label(dataset: xr.Dataset, name: str, prompt: int) -> str:
    if name not in dataset:
        return ""
    value = dataset[name].values[prompt]
    return "" if value is None or value != value else str(value)


def _harm(dataset: xr.Dataset, prompt: int) -> bool | None:
    if "harm" not in dataset:
        return None
    value = dataset["harm"].values[prompt]
    return None if value is None or value != value else bool(value)
