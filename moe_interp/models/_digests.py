"""Short names for a model's weights and its tokenizer, the same in every process."""

import hashlib
import json
from typing import Any

import torch

from moe_interp.models._model import MoEModel

_VALUES_PER_WEIGHT = 1024


def weights_digest(model: MoEModel) -> str:
    """A short name for a model's weights, from values spread over each of them.

    Args:
        model: The model; of one on a server, only names and shapes are known.

    Returns:
        Sixteen hexadecimal digits.
    """
    digested = hashlib.sha256()
    for name, weight in model.nnsight._module.state_dict().items():
        digested.update(f"{name} {tuple(weight.shape)} {weight.dtype}".encode())
        if weight.device.type != "meta" and weight.numel():
            flat = weight.detach().flatten()
            some = flat[:: max(1, len(flat) // _VALUES_PER_WEIGHT)].contiguous().cpu()
            digested.update(some.view(torch.uint8).numpy().tobytes())
    return digested.hexdigest()[:16]


def tokenizer_digest(tokenizer: Any) -> str:  # noqa: ANN401
    """A short name for a tokenizer: its vocabulary, its rules and its chat template.

    Args:
        tokenizer: A Hugging Face tokenizer.

    Returns:
        Sixteen hexadecimal digits.
    """
    rules: dict[str, Any] = {}
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        # How the last call was padded and cut stays in there, and is no rule.
        rules = {**json.loads(backend.to_str()), "padding": None, "truncation": None}
    known = {
        "vocabulary": sorted(tokenizer.get_vocab().items()),
        "rules": rules,
        "special": {name: str(token) for name, token in tokenizer.special_tokens_map.items()},
        "template": getattr(tokenizer, "chat_template", None),
    }
    return hashlib.sha256(json.dumps(known, sort_keys=True).encode()).hexdigest()[:16]
