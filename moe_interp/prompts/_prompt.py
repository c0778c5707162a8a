"""One prompt, and the rules that prompts keep together."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from moe_interp.errors import PromptError


@dataclass(frozen=True)
class Prompt:
    """One prompt and its place in the design.

    Attributes:
        text: What the user says; the chat template is applied later, by the tokenizer.
        topic: What the prompt is about, whether harmful or not.
        harm: Whether it asks for something harmful, or, in sets that judge responses, whether the
            response is; None if that is unknown.
        pair: Shared by the harmful and the harmless member of a matched pair.
        wording: Shared by prompts that were built from the same phrase. Such prompts are not
            independent, so that statistics must exchange them together.
        id: The prompt's own name, unique in its set.
        response: An answer that stands after the prompt; models read it only where the span
            ``"response"`` is asked for.

    Example:
        >>> Prompt("How do I bake bread?", topic="cooking", harm=False).topic
        'cooking'
    """

    text: str
    topic: str | None = None
    harm: bool | None = None
    pair: str | None = None
    wording: str | None = None
    id: str | None = None
    response: str | None = None

    def __post_init__(self) -> None:
        if not self.text.strip():
            raise PromptError("A prompt's `text` is empty; give the words the user says.")
        if self.response is not None and not self.response.strip():
            raise PromptError(
                f"The `response` of the prompt {self.text!r} is empty; give its words, or None."
            )


def listed(names: Iterable[object], *, shown: int = 5) -> str:
    """The first few names, quoted, for a message.

    Args:
        names: What to list.
        shown: How many at most.

    Returns:
        For example ``'a', 'b' and 3 more``.
    """
    names = list(names)
    text = ", ".join(map(repr, names[:shown]))
    return text if len(names) <= shown else f"{text} and {len(names) - shown} more"


def with_ids(prompts: tuple[Prompt, ...]) -> tuple[Prompt, ...]:
    """Name the nameless by their position.

    Args:
        prompts: Prompts, some of them perhaps without an id.

    Returns:
        The same prompts, all with an id that no other of them has been given.
    """
    given = {prompt.id for prompt in prompts}
    free = (f"p{n:04d}" for n in range(2 * len(prompts)) if f"p{n:04d}" not in given)
    return tuple(p if p.id is not None else replace(p, id=next(free)) for p in prompts)


def check_design(prompts: Sequence[Prompt], names: Sequence[str]) -> None:
    """Refuse prompts whose ids or pairs contradict each other.

    Args:
        prompts: The prompts, in order.
        names: What to call each of them in a message: its id, or its row in a file.

    Raises:
        PromptError: If an id is taken twice, or a pair is not one harmful and one harmless prompt
            of one topic.
    """
    seen: dict[str, str] = {}
    members: dict[tuple[str, bool], tuple[Prompt, str]] = {}
    for prompt, name in zip(prompts, names, strict=True):
        if prompt.id is not None:
            if prompt.id in seen:
                raise PromptError(
                    f"Prompt ids must be unique, but {seen[prompt.id]} and {name} are both called "
                    f"{prompt.id!r}. Rename one of them."
                )
            seen[prompt.id] = name
        if prompt.pair is None:
            continue
        _check_member(prompt, name, members)
        members[prompt.pair, bool(prompt.harm)] = (prompt, name)


def _check_member(
    prompt: Prompt, name: str, members: dict[tuple[str, bool], tuple[Prompt, str]]
) -> None:
    """Refuse a prompt that does not fit the earlier members of its pair."""
    pair = str(prompt.pair)
    if prompt.harm is None:
        raise PromptError(
            f"{name} belongs to pair {pair!r} but does not say whether it is harmful. "
            "A pair is one harmful and one harmless prompt: give its `harm`."
        )
    same = members.get((pair, prompt.harm))
    if same is not None:
        level = "harmful" if prompt.harm else "harmless"
        raise PromptError(
            f"Pair {pair!r} has two {level} prompts, {same[1]} and {name}. "
            "A pair is one harmful and one harmless prompt: give each pair its own name."
        )
    other = members.get((pair, not prompt.harm))
    if other is not None and other[0].topic != prompt.topic:
        raise PromptError(
            f"Pair {pair!r} joins topic {other[0].topic!r} ({other[1]}) with topic "
            f"{prompt.topic!r} ({name}). Both members of a pair share their topic."
        )
