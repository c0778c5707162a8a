"""The text a model is given for a prompt, and where in it the user's words lie."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jinja2

from moe_interp.errors import PromptError, SpanError

# Letters only, so that no template takes it for markup and no filter changes it.
_SENTINEL = "Thesewordsstandforwhattheusersays"


@dataclass(frozen=True)
class Rendered:
    """Prompts as the model is given them.

    Attributes:
        texts: The whole text of each prompt.
        user_spans: First character of the user's words in it, and the one after their last.
        has_template: Whether a chat template was applied. It then writes its own special tokens,
            and the tokenizer must add none.
    """

    texts: tuple[str, ...]
    user_spans: tuple[tuple[int, int], ...]
    has_template: bool


def render(
    tokenizer: Any,  # noqa: ANN401
    texts: Sequence[str],
    *,
    add_generation_prompt: bool = True,
    locate_user: bool = True,
) -> Rendered:
    """Apply the tokenizer's chat template, if it has one, to single turns of a user.

    What the template writes before and after a user's words is found with a known word in their
    place. Each prompt must then be exactly that, its words, and that (outer white space may be
    stripped): a template that changes the words or repeats them is refused.

    Args:
        tokenizer: A Hugging Face tokenizer.
        texts: What the user says in each prompt.
        add_generation_prompt: Whether the text ends where the assistant is to speak.
        locate_user: Whether the user's words are located; without, `user_spans` is empty.

    Returns:
        The texts and where the user's words lie in them. Without a template, the texts as given.

    Raises:
        PromptError: If the template refuses a prompt.
        SpanError: If the user's words cannot be located exactly.
    """
    if getattr(tokenizer, "chat_template", None) is None:
        spans = tuple((0, len(text)) for text in texts) if locate_user else ()
        return Rendered(tuple(texts), spans, has_template=False)

    def apply(text: str) -> str:
        turn = [{"role": "user", "content": text}]
        try:
            return tokenizer.apply_chat_template(
                turn, tokenize=False, add_generation_prompt=add_generation_prompt
            )
        except jinja2.TemplateError as error:
            raise PromptError(
                f"The chat template of {type(tokenizer).__name__} refused the prompt {text!r}: "
                f"{error}"
            ) from error

    rendered = tuple(apply(text) for text in texts)
    if not locate_user:
        return Rendered(rendered, (), has_template=True)
    pieces = apply(_SENTINEL).split(_SENTINEL)
    if len(pieces) != 2:
        raise SpanError(
            f"The chat template of {type(tokenizer).__name__} changes the user's words or shows "
            f"them more than once (a test word came back {len(pieces) - 1} times), so the span "
            "'user' has no single place. Use the spans 'prompt' or 'last'."
        )
    before, after = pieces
    spans = tuple(_locate(*pair, before, after) for pair in zip(texts, rendered, strict=True))
    return Rendered(rendered, spans, has_template=True)


def _locate(text: str, rendered: str, before: str, after: str) -> tuple[int, int]:
    """Where `rendered` holds `text` between the template's two parts."""
    start, end = len(before), len(rendered) - len(after)
    written = rendered[start:end]
    framed = start <= end and rendered.startswith(before) and rendered.endswith(after)
    if not framed or written not in (text, text.strip(), text.lstrip(), text.rstrip()):
        raise SpanError(
            f"The chat template changes the words of the prompt {text!r}, or what it writes "
            "around them depends on them, so the span 'user' cannot be located. "
            "Use the spans 'prompt' or 'last'."
        )
    return start, end
