"""Prompts as token ids, with the tokens of each span: no special token twice, no guess."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Int
from numpy import ndarray
from torch import Tensor

from moe_interp.errors import PromptError
from moe_interp.prompts._chat import Rendered, render
from moe_interp.prompts._prompt import listed
from moe_interp.prompts._promptset import PromptSet
from moe_interp.prompts._response import follow, without_end
from moe_interp.prompts._spans import (
    DEFAULT_SPANS,
    PAIR_SPANS,
    Span,
    check_spans,
    pair_spans,
    tell_empty,
    user_tokens,
)
from moe_interp.prompts._tokens import Added, TokenIds, token_ids_of


@dataclass(frozen=True)
class Encoded:
    """A padded batch of prompts.

    Attributes:
        input_ids: Token ids, padding included.
        attention_mask: 1 for real tokens, 0 for padding.
        spans: By name, the tokens of each span; never padding.
        token_text: The text of each prompt's real tokens.
    """

    input_ids: Int[Tensor, "batch pos"]
    attention_mask: Int[Tensor, "batch pos"]
    spans: Mapping[str, Bool[Tensor, "batch pos"]]
    token_text: tuple[tuple[str, ...], ...]

    @property
    def position_ids(self) -> Int[Tensor, "batch pos"]:
        """Position of each token in its own prompt, whatever the padding; 0 for padding."""
        return (self.attention_mask.cumsum(dim=1) - 1).clamp(min=0)

    @property
    def inputs(self) -> dict[str, Tensor]:
        """What a model's forward is called with."""
        return {
            "input_ids": self.input_ids,
            "attention_mask": self.attention_mask,
            "position_ids": self.position_ids,
        }


@dataclass(frozen=True)
class TokenizedPrompts:
    """All prompts as tokens, not padded yet.

    Attributes:
        token_ids: The token ids of each prompt.
        spans: By name, whether each token of each prompt lies in the span; as many values as the
            prompt has tokens.
        token_text: The text of each token.
        pad_id: The id that padding is filled with.
    """

    token_ids: tuple[tuple[int, ...], ...]
    spans: Mapping[str, tuple[Bool[ndarray, " _"], ...]]
    token_text: tuple[tuple[str, ...], ...]
    pad_id: int

    @cached_property
    def lengths(self) -> Int[ndarray, " prompt"]:
        """How many tokens each prompt has."""
        return np.array([len(ids) for ids in self.token_ids])

    @cached_property
    def ends(self) -> Int[ndarray, " prompt"]:
        """How many tokens each prompt and those before it have together."""
        return np.cumsum(self.lengths)

    def part(self, first: int, end: int) -> "TokenizedPrompts":
        """Take prompts that follow each other.

        Args:
            first: Position of the first one.
            end: Position after the last one.

        Returns:
            Those prompts alone.
        """
        return TokenizedPrompts(
            token_ids=self.token_ids[first:end],
            spans={name: span[first:end] for name, span in self.spans.items()},
            token_text=self.token_text[first:end],
            pad_id=self.pad_id,
        )

    def batch(self, chosen: Sequence[int], *, padding_side: str = "left") -> Encoded:
        """Pad some of the prompts to a common length.

        Args:
            chosen: Positions of the prompts, in the order of the rows.
            padding_side: ``"left"`` or ``"right"``.

        Returns:
            The batch.

        Raises:
            ValueError: If `padding_side` has another value.
        """
        if padding_side not in ("left", "right"):
            raise ValueError(f"`padding_side` must be 'left' or 'right', got {padding_side!r}.")
        lengths = self.lengths[list(chosen)]
        shape = (len(lengths), int(lengths.max()))
        starts = shape[1] - lengths if padding_side == "left" else np.zeros_like(lengths)
        input_ids = np.full(shape, self.pad_id, dtype=np.int64)
        attention_mask = np.zeros(shape, dtype=np.int64)
        spans = {name: np.zeros(shape, dtype=bool) for name in self.spans}
        for row, prompt in enumerate(chosen):
            place = (row, slice(int(starts[row]), int(starts[row] + lengths[row])))
            input_ids[place] = self.token_ids[prompt]
            attention_mask[place] = 1
            for name, span in self.spans.items():
                spans[name][place] = span[prompt]
        return Encoded(
            input_ids=torch.from_numpy(input_ids),
            attention_mask=torch.from_numpy(attention_mask),
            spans={name: torch.from_numpy(span) for name, span in spans.items()},
            token_text=tuple(self.token_text[prompt] for prompt in chosen),
        )


def encode(
    tokenizer: Any,  # noqa: ANN401
    prompts: PromptSet | Sequence[str],
    *,
    max_length: int | None = None,
    padding_side: str = "left",
    spans: Sequence[str] = DEFAULT_SPANS,
) -> Encoded:
    """Turn prompts into one padded batch of tokens.

    Args:
        tokenizer: A Hugging Face tokenizer; its chat template is applied if it has one.
        prompts: The prompts, or their texts.
        max_length: The most tokens the model reads; None does not check.
        padding_side: ``"left"`` or ``"right"``.
        spans: The spans to locate.

    Returns:
        The batch, in the order of the prompts.

    Raises:
        PromptError: If a prompt is longer than `max_length`; none is ever cut.
        SpanError: If a span is unknown or cannot be located exactly.
        ValueError: If `padding_side` has another value.
    """
    tokenized = tokenize(tokenizer, prompts, max_length=max_length, spans=spans)
    return tokenized.batch(range(len(prompts)), padding_side=padding_side)


def tokenize(
    tokenizer: Any,  # noqa: ANN401
    prompts: PromptSet | Sequence[str],
    *,
    max_length: int | None = None,
    spans: Sequence[str] = DEFAULT_SPANS,
    chat: bool = True,
) -> TokenizedPrompts:
    """Turn prompts into tokens and locate their spans.

    ``"prompt"``: every token of the prompt.

    ``"user"``: each token that holds a character of the user's words, so that a token that reaches
    from the template into them counts.

    ``"last"``: the prompt's last token.

    ``"after_divergence"``: what both members of a pair end with, the tokens after the last one
    that differs.

    ``"identical_tokens"``: these, and the tokens that both members have, in one order, between the
    first that differs and the last; the same ids in another context.

    ``"response"``: the response. Responses are read only where this span is asked for, and the
    other spans are the prompt's in any case.

    A prompt without a partner, or without a response, has no token in the spans that need one; a
    warning names such prompts.

    Args:
        tokenizer: A Hugging Face tokenizer; its chat template is applied if it has one.
        prompts: The prompts, or their texts.
        max_length: The most tokens the model reads; None does not check.
        spans: The spans to locate.
        chat: Whether a chat template is applied, if there is one; else texts are read as they are.

    Returns:
        The tokens of each prompt, to be padded batch by batch.

    Raises:
        PromptError: If a prompt is longer than `max_length`, or has no token.
        SpanError: If a span is unknown, cannot be located exactly, or is empty in all prompts.
    """
    check_spans(spans)
    texts = prompts.texts if isinstance(prompts, PromptSet) else tuple(prompts)
    names = prompts.ids if isinstance(prompts, PromptSet) else tuple(map(str, range(len(texts))))
    if chat:
        rendered = render(tokenizer, texts, locate_user="user" in spans)
    else:
        rendered = Rendered(tuple(texts), tuple((0, len(t)) for t in texts), has_template=False)
    token_ids, added = token_ids_of(tokenizer, rendered)
    responses: Sequence[str | None] = ()
    if "response" in spans:
        responses = prompts.responses if isinstance(prompts, PromptSet) else [None] * len(texts)
        token_ids, added = without_end(token_ids, added, responses)
    _check_lengths([len(ids) for ids in token_ids], names, max_length)
    pairs = prompts.pair_positions if isinstance(prompts, PromptSet) else ()
    located = _located(tokenizer, rendered, token_ids, added, pairs, spans)
    if "response" in spans:
        longer = follow(tokenizer, rendered, token_ids, responses, names)
        located = _extended(located, token_ids, longer)
        token_ids = longer
        _check_lengths([len(ids) for ids in token_ids], names, max_length)
    tell_empty(located, names)
    return TokenizedPrompts(
        token_ids=token_ids,
        spans={span: located[span] for span in spans},
        token_text=_token_text(tokenizer, token_ids),
        pad_id=_pad_id(tokenizer),
    )


def _located(
    tokenizer: Any,  # noqa: ANN401
    rendered: Rendered,
    token_ids: TokenIds,
    added: Added,
    pairs: Sequence[tuple[int, int]],
    spans: Sequence[str],
) -> dict[str, Span]:
    """The spans of the prompts themselves."""
    located: dict[str, Span] = {}
    if "prompt" in spans:
        located["prompt"] = tuple(np.ones(len(ids), dtype=bool) for ids in token_ids)
    if "last" in spans:
        located["last"] = tuple(np.arange(len(ids)) == len(ids) - 1 for ids in token_ids)
    if "user" in spans:
        located["user"] = user_tokens(tokenizer, rendered, token_ids, added)
    if set(PAIR_SPANS) & set(spans):
        shared = pair_spans(token_ids, pairs)
        located |= {name: shared[name] for name in PAIR_SPANS if name in spans}
    return located


def _extended(
    located: Mapping[str, Span], token_ids: TokenIds, longer: TokenIds
) -> dict[str, Span]:
    """The spans once a response stands after each prompt, and the response's own."""
    sizes = [(len(ids), len(more)) for ids, more in zip(token_ids, longer, strict=True)]
    extended = {
        name: tuple(
            np.append(tokens, np.zeros(after - before, dtype=bool))
            for tokens, (before, after) in zip(span, sizes, strict=True)
        )
        for name, span in located.items()
    }
    extended["response"] = tuple(np.arange(after) >= before for before, after in sizes)
    return extended


def _check_lengths(lengths: Sequence[int], names: Sequence[str], limit: int | None) -> None:
    empty = [name for name, length in zip(names, lengths, strict=True) if length == 0]
    if empty:
        raise PromptError(f"These prompts have no token: {listed(empty)}. Leave them out.")
    too_long = [
        f"{name} ({length} tokens)"
        for name, length in zip(names, lengths, strict=True)
        if limit is not None and length > limit
    ]
    if too_long:
        raise PromptError(
            f"{len(too_long)} of {len(lengths)} prompts are longer than the {limit} tokens that "
            f"the model reads: {listed(too_long)}. Shorten them, or leave them out with `select`."
        )


def _token_text(
    tokenizer: Any,  # noqa: ANN401
    token_ids: Sequence[tuple[int, ...]],
) -> tuple[tuple[str, ...], ...]:
    """The text of each token by itself; decoding would strip sentencepiece's leading blank."""
    vocabulary = sorted({token for ids in token_ids for token in ids})
    text = {}
    for token, piece in zip(vocabulary, tokenizer.convert_ids_to_tokens(vocabulary), strict=True):
        has_blank = piece is not None and "▁" in piece
        text[token] = piece.replace("▁", " ") if has_blank else tokenizer.decode([token])
    return tuple(tuple(text[token] for token in ids) for ids in token_ids)


def _pad_id(tokenizer: Any) -> int:  # noqa: ANN401
    for name in ("pad_token_id", "eos_token_id"):
        if getattr(tokenizer, name, None) is not None:
            return int(getattr(tokenizer, name))
    return 0
