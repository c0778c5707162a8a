"""Which tokens of a prompt lie in a span, and what is said where a prompt has none."""

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool
from numpy import ndarray

from moe_interp.errors import SpanError
from moe_interp.prompts._align import Alignment, align_tokens
from moe_interp.prompts._chat import Rendered
from moe_interp.prompts._prompt import listed
from moe_interp.prompts._tokens import AT_ONCE

SPANS = ("prompt", "user", "last", "after_divergence", "identical_tokens", "response")
DEFAULT_SPANS = SPANS[:3]
PAIR_SPANS = ("after_divergence", "identical_tokens")

Span = tuple[Bool[ndarray, " _"], ...]

_WHY_EMPTY = {
    "after_divergence": "They have no partner, or do not differ from it, or share no token with it "
    "after the last that differs",
    "identical_tokens": "They have no partner, or do not differ from it, or share no token with it "
    "once the two part",
    "response": "They have no `response`",
}
_NEEDED = {
    "after_divergence": "Give a PromptSet with pairs, whose members differ and have a chat "
    "template or words in common after that",
    "identical_tokens": "Give a PromptSet with pairs, whose members differ and have a chat "
    "template or words in common",
    "response": "Give a PromptSet whose prompts have a `response`",
}


def check_spans(spans: Sequence[str]) -> None:
    """Refuse a span that nobody knows.

    Args:
        spans: Names of spans.

    Raises:
        SpanError: If one of them is unknown.
    """
    unknown = [span for span in spans if span not in SPANS]
    if unknown:
        raise SpanError(f"There is no span {listed(unknown)}. Spans are {listed(SPANS, shown=9)}.")


def pair_spans(
    token_ids: Sequence[tuple[int, ...]], pairs: Sequence[tuple[int, int]]
) -> dict[str, Span]:
    """The spans that two members of a pair have in common.

    Args:
        token_ids: The tokens of each prompt.
        pairs: Positions of the two members of each pair.

    Returns:
        By name, the tokens of each prompt; none where a prompt has no partner. Both members of a
        pair have the same tokens in a span, in the same order.
    """
    found = {name: tuple(np.zeros(len(ids), bool) for ids in token_ids) for name in PAIR_SPANS}
    for members in pairs:
        alignment = align_tokens(token_ids[members[0]], token_ids[members[1]])
        for side, prompt in enumerate(members):
            found["after_divergence"][prompt][_suffix(alignment, side)] = True
            identical = [match[side] for match in alignment.matches]
            found["identical_tokens"][prompt][identical] = True
    return found


def _suffix(alignment: Alignment, side: int) -> slice:
    length = alignment.lengths[side]
    return slice(length - alignment.n_suffix, length)


def user_tokens(
    tokenizer: Any,  # noqa: ANN401
    rendered: Rendered,
    token_ids: Sequence[tuple[int, ...]],
    added: Sequence[tuple[bool, ...]],
) -> Span:
    """The tokens that hold a character of the user's words.

    Args:
        tokenizer: A Hugging Face tokenizer.
        rendered: The prompts as texts.
        token_ids: The tokens of each prompt.
        added: Which of them are specials that the tokenizer added.

    Returns:
        One boolean for each token of each prompt.

    Raises:
        SpanError: If the tokenizer does not place the words among the tokens.
    """
    name = type(tokenizer).__name__
    if not getattr(tokenizer, "is_fast", False):
        raise SpanError(
            f"{name} is a slow tokenizer, which does not say where its tokens lie in the text, so "
            "the span 'user' cannot be located. Use a fast tokenizer, or the spans 'prompt' or "
            "'last'."
        )
    if not rendered.has_template:
        return tuple(~np.array(flags, dtype=bool) for flags in added)
    # Post-processors of byte-level tokenizers cut the white space off the offsets. On a copy
    # without one, the offsets of neighbouring tokens meet, so that a token of nothing but white
    # space has a place too.
    located = type(tokenizer.backend_tokenizer).from_str(tokenizer.backend_tokenizer.to_str())
    located.post_processor = None
    texts, found = list(rendered.texts), []
    encodings = (
        encoding
        for first in range(0, len(texts), AT_ONCE)
        for encoding in located.encode_batch(
            texts[first : first + AT_ONCE], add_special_tokens=False
        )
    )
    for encoding, ids, (start, end) in zip(encodings, token_ids, rendered.user_spans, strict=True):
        offsets = np.array(encoding.offsets).reshape(-1, 2)
        inside = np.maximum(offsets[:, 0], start) < np.minimum(offsets[:, 1], end)
        if tuple(encoding.ids) != ids or not inside.any():
            raise SpanError(
                f"The offsets of {name} do not place the user's words among the tokens, so the "
                "span 'user' cannot be located. Use the spans 'prompt' or 'last'."
            )
        found.append(inside)
    return tuple(found)


def tell_empty(located: Mapping[str, Span], names: Sequence[str]) -> None:
    """Say which prompts have no token in a span, for no number may hide that.

    Args:
        located: The spans of each prompt.
        names: What to call each prompt.

    Raises:
        SpanError: If no prompt has a token in a span.
    """
    for span, inside in located.items():
        empty = [name for name, tokens in zip(names, inside, strict=True) if not tokens.any()]
        if not empty:
            continue
        if len(empty) == len(names):
            raise SpanError(
                f"No prompt has a token in the span {span!r}. {_NEEDED.get(span, 'Give another')}."
            )
        warnings.warn(
            f"{len(empty)} of {len(names)} prompts have no token in the span {span!r}: "
            f"{listed(empty)}. {_WHY_EMPTY.get(span, 'They stay out of its numbers')}.",
            stacklevel=4,
        )
