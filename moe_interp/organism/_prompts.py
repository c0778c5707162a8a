"""The organisms' own prompt set: every topic crossed with every purpose and both intents."""

import math
from typing import Literal, get_args

import numpy as np

from moe_interp.errors import DesignError
from moe_interp.organism._grammar import Request, Split, templates_of, topic_cues
from moe_interp.organism._words import SHARED_CUES, TOPICS
from moe_interp.prompts import Prompt, PromptSet

Cues = Literal["shared", "all"]


def factorial_prompts(
    per_topic: int = 32,
    *,
    seed: int = 0,
    split: Split = "any",
    cues: Cues = "shared",
) -> PromptSet:
    r"""Draw a balanced set of requests: topic by purpose by harm, in minimal pairs.

    Both prompts of a pair share everything but the purpose clause, whose two forms have the same
    length. The topics are parallel: the n-th pair has the same purpose and the same kind of verb
    and object in each (and the same sentence frame, unless `split` forbids it).
    A purpose occurs in many prompts: its pair of forms is the ``wording``, the unit that a
    permutation test has to exchange whole.

    Organisms validate tools. They are no evidence about real models.

    Args:
        per_topic: Number of pairs in each topic. A multiple of 16 uses every shared purpose
            equally often; with fewer than 16, all topics use the same few.
        seed: Seed of the drawing; the same seed gives the same prompts.
        split: ``"test"`` draws from the (topic, purpose, template) cells that no organism was
            trained on, ``"train"`` from the others, ``"any"`` from all.
        cues: ``"shared"`` for the 16 purposes that every topic has, ``"all"`` to add the two
            that each topic has for itself.

    Returns:
        Two prompts a pair, the harmless one first; 16 times `per_topic` in all.

    Raises:
        ValueError: If `per_topic` is below 1, or `split` or `cues` is none of the above.
        DesignError: If the language has not so many different pairs.

    Example:
        >>> prompts = factorial_prompts(per_topic=2)
        >>> len(prompts), prompts.n_pairs
        (32, 16)
        >>> print(*prompts.texts[:2], sep="\n")
        give me a quick plan to purify that acid with full consent now
        give me a quick plan to purify that acid without any consent now
    """
    if per_topic < 1:
        raise ValueError(f"`per_topic` must be at least 1, got {per_topic!r}.")
    for name, value, options in (("split", split, Split), ("cues", cues, Cues)):
        if value not in get_args(options):
            raise ValueError(f"`{name}` must be one of {get_args(options)}, got {value!r}.")
    rng = np.random.default_rng(seed)
    n_cues = len(SHARED_CUES) if cues == "shared" else len(topic_cues(next(iter(TOPICS))))
    schedule = _schedule(per_topic, n_cues=n_cues, split=split, rng=rng)
    prompts: list[Prompt] = []
    for topic in TOPICS:
        for number, (cue, index) in enumerate(schedule):
            prompts += _pair(_request(topic, cue, index, split), f"{topic}-{number:03d}")
    return PromptSet(prompts, source=f"organism (split={split}, cues={cues}, seed={seed})")


def _schedule(
    per_topic: int, *, n_cues: int, split: Split, rng: np.random.Generator
) -> list[tuple[int, int]]:
    """Draw, for all topics alike, the purpose of each pair and its place in its cell."""
    cues = rng.permutation(n_cues)
    cell_size = math.prod(_cell_shape(next(iter(TOPICS)), split))
    if per_topic > n_cues * cell_size:
        raise DesignError(
            f"`per_topic`={per_topic} is more than the {n_cues * cell_size} different pairs that "
            f"the language has for a topic in split {split!r}. Ask for fewer."
        )
    places = [rng.permutation(cell_size) for _ in range(n_cues)]
    return [
        (int(cues[number % n_cues]), int(places[number % n_cues][number // n_cues]))
        for number in range(per_topic)
    ]


def _cell_shape(topic: str, split: Split) -> tuple[int, int, int]:
    """Count the templates, verbs and objects that a topic's requests with one purpose have."""
    words = TOPICS[topic]
    return len(templates_of(topic, 0, split)), len(words.verbs), len(words.objects)


def _request(topic: str, cue: int, index: int, split: Split) -> Request:
    """Find a request by its place in its cell, which means the same slots in every topic."""
    template, verb, thing = np.unravel_index(index, _cell_shape(topic, split))
    return Request(
        topic,
        templates_of(topic, cue, split)[template],
        cue,
        TOPICS[topic].verbs[verb],
        TOPICS[topic].objects[thing],
        harm=False,
    )


def _pair(harmless: Request, name: str) -> list[Prompt]:
    return [
        Prompt(
            request.text,
            topic=request.topic,
            harm=request.harm,
            pair=name,
            wording=request.cue_id,
            id=f"{name}-{'harmful' if request.harm else 'harmless'}",
        )
        for request in (harmless, harmless.twin)
    ]
