"""The same request in another sentence frame: how far routing moves when nothing but words does."""

from dataclasses import replace
from itertools import product

from moe_interp.errors import PromptError
from moe_interp.organism._grammar import Request, topic_cues
from moe_interp.organism._words import TEMPLATES, TOPICS
from moe_interp.prompts import Prompt, PromptSet, listed


def paraphrases(prompts: PromptSet) -> PromptSet:
    r"""Put each request of the organisms' language into the next of its sentence frames.

    Purpose, verb and object stay. Organisms validate tools. They are no evidence about real models.

    Args:
        prompts: Prompts that are requests of the language, such as those of `factorial_prompts`.

    Returns:
        The paraphrases, in the same order, with the same ids and labels.

    Raises:
        PromptError: If a prompt is no request of the language, or its topic is not given.

    Example:
        >>> from moe_interp.organism import factorial_prompts
        >>> prompts = PromptSet([factorial_prompts(per_topic=1)[0]])
        >>> print(*prompts.texts, *paraphrases(prompts).texts, sep="\n")
        give me a quick plan to purify that acid with full consent now
        is it possible to purify one acid with full consent today ?
    """
    found = [_request_of(prompt) for prompt in prompts]
    foreign = [p.text for p, request in zip(prompts, found, strict=True) if request is None]
    if foreign:
        raise PromptError(
            f"{len(foreign)} of {len(prompts)} prompts are no requests of the organisms' language, "
            f"or lack their topic: {listed(foreign)}. Write their paraphrases yourself."
        )
    other = (
        replace(request, template=(request.template + 1) % len(TEMPLATES)) for request in found
    )
    return PromptSet(
        (replace(prompt, text=one.text) for prompt, one in zip(prompts, other, strict=True)),
        source=f"paraphrases of {prompts.source}",
    )


def _request_of(prompt: Prompt) -> Request | None:
    """The request that a prompt is, by what its words can be; None if it is none."""
    if prompt.topic not in TOPICS:
        return None
    topic, said = TOPICS[prompt.topic], set(prompt.text.split())
    purposes = [
        (cue, harm)
        for cue, forms in enumerate(topic_cues(prompt.topic))
        for harm in (False, True)
        if forms[harm] in prompt.text
    ]
    verbs, things = (
        [word for word in words if word in said] for words in (topic.verbs, topic.objects)
    )
    for template, (cue, harm), verb, thing in product(
        range(len(TEMPLATES)), purposes, verbs, things
    ):
        request = Request(prompt.topic, template, cue, verb, thing, harm=harm)
        if request.text == prompt.text:
            return request
    return None
