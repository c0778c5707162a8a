"""Responses as tokens that follow a prompt, as if the model had written them (teacher forcing)."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from moe_interp.errors import PromptError
from moe_interp.prompts._chat import Rendered
from moe_interp.prompts._tokens import Added, TokenIds, token_ids_of


def without_end(
    token_ids: TokenIds, added: Added, responses: Sequence[str | None]
) -> tuple[TokenIds, Added]:
    """Take off the specials that a tokenizer adds at the end, where a response is to follow.

    Args:
        token_ids: The tokens of each prompt.
        added: Which of them the tokenizer added.
        responses: The response to each prompt, or None.

    Returns:
        The tokens without an end-of-text token between a prompt and its response, and which of
        them were added.
    """
    sizes = [
        len(ids) if response is None else _open_length(flags)
        for ids, flags, response in zip(token_ids, added, responses, strict=True)
    ]
    return (
        tuple(ids[:size] for ids, size in zip(token_ids, sizes, strict=True)),
        tuple(flags[:size] for flags, size in zip(added, sizes, strict=True)),
    )


def follow(
    tokenizer: Any,  # noqa: ANN401
    rendered: Rendered,
    token_ids: TokenIds,
    responses: Sequence[str | None],
    names: Sequence[str],
) -> TokenIds:
    """Append each response to the tokens of its prompt.

    The prompt keeps the tokens it has without a response, so that what stands before a response
    does not depend on it. The response's tokens are those of the joined text where that begins
    with the prompt's tokens, and else, where a token would reach over the border, those of the
    response by itself.

    Args:
        tokenizer: A Hugging Face tokenizer.
        rendered: The prompts as texts.
        token_ids: The tokens of each prompt, without added specials at the end.
        responses: The response to each prompt, or None.
        names: What to call each prompt.

    Returns:
        The tokens of each prompt and its response.

    Raises:
        PromptError: If a response has no token.
    """
    chosen = [n for n, response in enumerate(responses) if response is not None]
    if not chosen:
        return token_ids
    joined = replace(
        rendered, texts=tuple(f"{rendered.texts[n]}{responses[n]}" for n in chosen), user_spans=()
    )
    whole, added = token_ids_of(tokenizer, joined)
    longer = list(token_ids)
    for n, ids, flags in zip(chosen, whole, added, strict=True):
        prompt, text = token_ids[n], ids[: _open_length(flags)]
        follows = len(text) > len(prompt) and text[: len(prompt)] == prompt
        tail = text[len(prompt) :] if follows else _alone(tokenizer, str(responses[n]))
        if not tail:
            raise PromptError(f"The response to prompt {names[n]!r} has no token. Leave it out.")
        longer[n] = (*prompt, *tail)
    return tuple(longer)


def _open_length(added: Sequence[bool]) -> int:
    """How many tokens there are up to the last that is the text's own."""
    own = [n for n, flag in enumerate(added) if not flag]
    return own[-1] + 1 if own else 0


def _alone(
    tokenizer: Any,  # noqa: ANN401
    text: str,
) -> tuple[int, ...]:
    # Taken for rendered, a text gets no special token.
    return token_ids_of(tokenizer, Rendered((text,), (), has_template=True))[0][0]
