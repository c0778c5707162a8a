"""Choose the prompts whose tokens a report shows, and pack their routing into few bytes."""

import base64
from typing import Any

import numpy as np
import xarray as xr

from moe_interp.viz._circuitsvis import safe_token

MAX_PROMPTS = 24
MAX_BYTES = 480_000


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


def pack_tokens(dataset: xr.Dataset, *, most: int = MAX_PROMPTS) -> dict[str, Any]:
    """Pack tokens, chosen experts and routing weights of a sample of prompts.

    Chosen experts are 8-bit (16-bit beyond 256 experts), routing weights 1/255 of the largest
    one, so that 48 layers with 8 of 128 experts cost 768 bytes a token and not 50 kB.

    Args:
        dataset: A routing record's data set.
        most: How many prompts to take at most; fewer where they would exceed 480 kB.

    Returns:
        Prompts with inert token texts, and two base64 arrays ``[token layer top_k]``.
    """
    owner = np.asarray(dataset["prompt_index"].values)
    chosen_tokens: list[np.ndarray] = []
    prompts: list[dict[str, Any]] = []
    n_layers, top_k = dataset.sizes["layer"], dataset.sizes["top_k"]
    wide = int(dataset["expert_index"].max()) > 255
    room = MAX_BYTES // (n_layers * top_k * (3 if wide else 2))
    for prompt in sample_prompts(dataset, most=most):
        tokens = np.flatnonzero(owner == prompt)
        cut = len(tokens) > room
        if not prompts:
            tokens = tokens[:room]
        elif cut:
            break
        room -= len(tokens)
        chosen_tokens.append(tokens)
        text = dataset["token_text"].values[tokens]
        prompts.append(
            {
                "id": _label(dataset, "id", prompt) or str(prompt),
                "pair": _label(dataset, "pair", prompt) or f"prompt {prompt}",
                "text": _label(dataset, "text", prompt)[:80],
                "topic": _label(dataset, "topic", prompt),
                "harm": _harm(dataset, prompt),
                "tokens": [safe_token(str(token)) for token in text],
                "cut": bool(cut),
            }
        )
    picked = dataset[["expert_index", "routing_weights"]].isel(
        token=np.concatenate(chosen_tokens) if chosen_tokens else []
    )
    picked = picked.transpose("token", "layer", "top_k")
    weights = np.nan_to_num(picked["routing_weights"].values.astype("float64"))
    scale = float(np.abs(weights).max(initial=0.0)) or 1.0
    # A chosen expert keeps at least one step, or it would look as if it had not been chosen.
    steps = np.clip(np.rint(np.abs(weights) / scale * 255), 1, 255).astype("uint8")
    index = picked["expert_index"].values.astype("<u2" if wide else "uint8")
    return {
        "prompts": prompts,
        "layers": [int(layer) for layer in dataset["layer"].values],
        "top_k": top_k,
        "index": base64.b64encode(index.tobytes()).decode("ascii"),
        "index_bytes": 2 if wide else 1,
        "weights": base64.b64encode(steps.tobytes()).decode("ascii"),
        "scale": scale,
    }


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
