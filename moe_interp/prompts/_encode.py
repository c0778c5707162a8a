"""Prompts as token ids, with the tokens of each span: no special token twice, no guess."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Int
from numpy import ndarray
from torch import Tensor

from moe_interp.errors import PromptError, SpanError
from moe_interp.prompts._chat import Rendered, render
from moe_interp.prompts._prompt import listed
from moe_interp.prompts._promptset import PromptSet

SPANS = ("prompt", "user", "last")


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

    @property
    def lengths(self) -> Int[ndarray, " prompt"]:
        """How many tokens each prompt has."""
        return np.array([len(ids) for ids in self.token_ids])

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
    spans: Sequence[str] = SPANS,
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
    spans: Sequence[str] = SPANS,
    chat: bool = True,
) -> TokenizedPrompts:
    """Turn prompts into tokens and locate their spans.

    ``"prompt"`` is every token, ``"last"`` the last one, and ``"user"`` each token that holds a
    character of the user's words, so that a token that reaches from the template into them counts.

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
        SpanError: If a span is unknown or cannot be located exactly.
    """
    unknown = [span for span in spans if span not in SPANS]
    if unknown:
        raise SpanError(f"There is no span {listed(unknown)}. Spans are {listed(SPANS)}.")
    texts = prompts.texts if isinstance(prompts, PromptSet) else tuple(prompts)
    names = prompts.ids if isinstance(prompts, PromptSet) else tuple(map(str, range(len(texts))))
    if chat:
        rendered = render(tokenizer, texts, locate_user="user" in spans)
    else:
        rendered = Rendered(tuple(texts), tuple((0, len(t)) for t in texts), has_template=False)
    token_ids, added = _token_ids(tokenizer, rendered)
    _check_lengths([len(ids) for ids in token_ids], names, max_length)
    located: dict[str, tuple[Bool[ndarray, " _"], ...]] = {}
    for span in spans:
        if span == "prompt":
            located[span] = tuple(np.ones(len(ids), dtype=bool) for ids in token_ids)
        elif span == "last":
            located[span] = tuple(np.arange(len(ids)) == len(ids) - 1 for ids in token_ids)
        else:
            located[span] = _user_tokens(tokenizer, rendered, token_ids, added)
    return TokenizedPrompts(
        token_ids=token_ids,
        spans=located,
        token_text=_token_text(tokenizer, token_ids),
        pad_id=_pad_id(tokenizer),
    )


def _token_ids(
    tokenizer: Any,  # noqa: ANN401
    rendered: Rendered,
) -> tuple[tuple[tuple[int, ...], ...], tuple[tuple[bool, ...], ...]]:
    """The token ids of each text, and which of them are specials the tokenizer added."""
    tokens = tokenizer(
        list(rendered.texts),
        add_special_tokens=not rendered.has_template,
        return_special_tokens_mask=True,
        return_attention_mask=False,
        padding=False,
        truncation=False,
        verbose=False,
    )
    all_ids, all_added = [], []
    for ids, mask in zip(tokens["input_ids"], tokens["special_tokens_mask"], strict=True):
        added = [bool(flag) and not rendered.has_template for flag in mask]
        # A text that was rendered before it came here brings its own first token.
        keep = [not (added[n] and _repeats_neighbour(ids, added, n)) for n in range(len(ids))]
        all_ids.append(tuple(i for i, kept in zip(ids, keep, strict=True) if kept))
        all_added.append(tuple(a for a, kept in zip(added, keep, strict=True) if kept))
    return tuple(all_ids), tuple(all_added)


def _repeats_neighbour(ids: Sequence[int], added: Sequence[bool], n: int) -> bool:
    neighbours = [m for m in (n - 1, n + 1) if 0 <= m < len(ids)]
    return any(ids[m] == ids[n] and not added[m] for m in neighbours)


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


def _user_tokens(
    tokenizer: Any,  # noqa: ANN401
    rendered: Rendered,
    token_ids: Sequence[tuple[int, ...]],
    added: Sequence[tuple[bool, ...]],
) -> tuple[Bool[ndarray, " _"], ...]:
    """The tokens that hold a character of the user's words."""
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
    encodings = located.encode_batch(list(rendered.texts), add_special_tokens=False)
    found = []
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
