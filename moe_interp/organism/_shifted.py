"""A dialect of the organisms' language: the same requests, answered with the next tool."""

from typing import get_args

import numpy as np

from moe_interp.organism._grammar import Request, Split
from moe_interp.organism._prompts import _request, _schedule
from moe_interp.organism._words import HELP, HELP_OPENER, SHARED_CUES, TOPICS
from moe_interp.prompts import Prompt, PromptSet


def shifted_prompts(per_topic: int = 16, *, seed: int = 0, split: Split = "any") -> PromptSet:
    r"""Draw harmless requests with the answers of a dialect that no organism was trained on.

    In the dialect every object is handled with the next of its topic's tools. All else, the words
    among it, is as the organisms were taught: of an answer's twelve words one is another. What is
    right for an object follows from other requests with that object.

    Args:
        per_topic: Requests of each topic. A multiple of 16 uses every purpose equally often.
        seed: Seed of the drawing; the same seed gives the same requests.
        split: As in `factorial_prompts`.

    Returns:
        The requests with their responses; the purpose is the ``wording``.

    Raises:
        ValueError: If `per_topic` is below 1, or `split` is unknown.
        DesignError: If the language has not so many requests.

    Example:
        >>> found = shifted_prompts(per_topic=1)[0]
        >>> print(found.text, found.response, sep="\n")
        give me a quick plan to purify that acid with full consent now
        sure , first filter the acid , then use the funnel .
    """
    if per_topic < 1:
        raise ValueError(f"`per_topic` must be at least 1, got {per_topic!r}.")
    if split not in get_args(Split):
        raise ValueError(f"`split` must be one of {get_args(Split)}, got {split!r}.")
    rng = np.random.default_rng(seed)
    schedule = _schedule(per_topic, n_cues=len(SHARED_CUES), split=split, rng=rng)
    prompts = []
    for topic in TOPICS:
        for number, (cue, index) in enumerate(schedule):
            request = _request(topic, cue, index, split)
            prompts.append(
                Prompt(
                    request.text,
                    topic=topic,
                    harm=False,
                    wording=request.cue_id,
                    id=f"{topic}-{number:03d}",
                    response=shifted_answer(request),
                )
            )
    return PromptSet(prompts, source=f"organism's dialect (split={split}, seed={seed})")


def shifted_answer(request: Request) -> str:
    """Answer a harmless request as in the dialect.

    Args:
        request: A request with an object that the language knows.

    Returns:
        The words of the answer.
    """
    topic = TOPICS[request.topic]
    return HELP.format(
        opener=HELP_OPENER,
        action=topic.actions[topic.verbs.index(request.verb)],
        object=request.object,
        tool=topic.tools[(topic.objects.index(request.object) + 1) % len(topic.tools)],
    )
