"""What a capture is a capture of: it goes on only with the same model, prompts and options."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from moe_interp.models import MoEModel
from moe_interp.models._digests import tokenizer_digest, weights_digest
from moe_interp.prompts import PromptSet, TokenizedPrompts


def identity_of(
    model: MoEModel, prompts: PromptSet, tokens: TokenizedPrompts, options: Mapping[str, Any]
) -> dict[str, Any]:
    """Collect, by the name that a refusal gives it, all that a stored record depends on.

    Args:
        model: The model.
        prompts: The prompts.
        tokens: The prompts as tokens.
        options: Options of the capture, as values that JSON can hold.

    Returns:
        The fields as JSON-safe values.
    """
    config = model.config
    architecture = {
        name: value for name, value in model.architecture.to_dict().items() if name != "source"
    }
    fields = {
        "model": model.id,
        "revision": getattr(model.nnsight, "revision", None),
        "commit": getattr(config, "_commit_hash", None),
        "architecture": architecture,
        "weights": weights_digest(model),
        "tokenizer": tokenizer_digest(model.tokenizer),
        "prompts": prompts.digest,
        "spans": list(tokens.spans),
        "tokens": tokens_digest(tokens),
        **options,
    }
    return json.loads(json.dumps(fields))


def tokens_digest(tokens: TokenizedPrompts) -> str:
    """A short name for token ids and the tokens of each span.

    Args:
        tokens: The prompts as tokens.

    Returns:
        Sixteen hexadecimal digits.
    """
    digested = hashlib.sha256()
    for prompt, ids in enumerate(tokens.token_ids):
        digested.update(np.asarray([len(ids), *ids], dtype=np.int64).tobytes())
        for span in tokens.spans.values():
            digested.update(np.packbits(span[prompt]).tobytes())
    return digested.hexdigest()[:16]


def differences(known: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """Say which fields differ, and how.

    Args:
        known: What a store was made with.
        now: What is asked for.

    Returns:
        The fields, each with both values; empty if none differs.
    """
    told = []
    for name in {**known, **now}:
        there, here = known.get(name), now.get(name)
        if there == here:
            continue
        if isinstance(there, dict) and isinstance(here, dict):
            inside = differences(there, here)
            told.append(f"{name} ({inside})")
        else:
            told.append(f"{name} {_short(there)} there, {_short(here)} now")
    return "; ".join(told)


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
