"""Texts as token ids, with the specials a tokenizer adds told apart, and none of them twice."""

from collections.abc import Sequence
from typing import Any

from moe_interp.prompts._chat import Rendered

TokenIds = tuple[tuple[int, ...], ...]
Added = tuple[tuple[bool, ...], ...]
#: Texts that a tokenizer gets at once; what it holds of each is larger than its tokens.
AT_ONCE = 1024


def token_ids_of(
    tokenizer: Any,  # noqa: ANN401
    rendered: Rendered,
) -> tuple[TokenIds, Added]:
    """The token ids of texts.

    Args:
        tokenizer: A Hugging Face tokenizer.
        rendered: The texts, and whether a chat template has written their special tokens.

    Returns:
        The token ids of each text, and which of them are specials that the tokenizer added.
    """
    all_ids, all_added = [], []
    # A number is an object of its own in each text that has it; one of them is enough.
    one: dict[int, int] = {}
    for first in range(0, len(rendered.texts), AT_ONCE):
        tokens = tokenizer(
            list(rendered.texts[first : first + AT_ONCE]),
            add_special_tokens=not rendered.has_template,
            return_special_tokens_mask=True,
            return_attention_mask=False,
            padding=False,
            truncation=False,
            verbose=False,
        )
        for ids, mask in zip(tokens["input_ids"], tokens["special_tokens_mask"], strict=True):
            added = [bool(flag) and not rendered.has_template for flag in mask]
            # A text that was rendered before it came here brings its own first token.
            keep = [not (added[n] and _repeats_neighbour(ids, added, n)) for n in range(len(ids))]
            all_ids.append(
                tuple(one.setdefault(i, i) for i, kept in zip(ids, keep, strict=True) if kept)
            )
            all_added.append(tuple(a for a, kept in zip(added, keep, strict=True) if kept))
    return tuple(all_ids), tuple(all_added)


def _repeats_neighbour(ids: Sequence[int], added: Sequence[bool], n: int) -> bool:
    neighbours = [m for m in (n - 1, n + 1) if 0 <= m < len(ids)]
    return any(ids[m] == ids[n] and not added[m] for m in neighbours)
