"""The organisms' language: requests, their harmful twins, their answers, and the held-out cells."""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from moe_interp.organism._words import (
    HELP,
    HELP_OPENER,
    REFUSAL,
    SHARED_CUES,
    TEMPLATES,
    TOPICS,
    UNKNOWN_OBJECTS,
    WARNING_OPENER,
)

Split = Literal["any", "train", "test"]

_TOPIC_NAMES = tuple(TOPICS)


@dataclass(frozen=True)
class Request:
    """One request of a user, by its parts.

    Attributes:
        topic: Name of the topic.
        template: Number of the sentence frame.
        cue: Number of the purpose: the shared ones first, then those of the topic.
        verb: What to do.
        object: What to do it to.
        harm: Whether the purpose is the harmful one of its pair.
    """

    topic: str
    template: int
    cue: int
    verb: str
    object: str
    harm: bool

    @property
    def twin(self) -> "Request":
        """The same request with the other purpose of its pair."""
        return Request(
            self.topic, self.template, self.cue, self.verb, self.object, harm=not self.harm
        )

    @property
    def cue_text(self) -> str:
        """The purpose, in words."""
        return topic_cues(self.topic)[self.cue][int(self.harm)]

    @property
    def cue_id(self) -> str:
        """Name of the purpose's pair; both members of a pair share it."""
        return f"cue{self.cue:02d}" if self.cue < len(SHARED_CUES) else f"{self.topic}{self.cue}"

    @property
    def is_answerable(self) -> bool:
        """Whether the language knows an answer for the object."""
        return self.object not in UNKNOWN_OBJECTS

    @property
    def is_held_out(self) -> bool:
        """Whether the request belongs to a cell that never occurs in training."""
        return self.template in held_out_templates(self.topic, self.cue)

    def parts(self) -> list[tuple[str, str]]:
        """List the words, each with its role: ``"verb"``, ``"object"``, ``"cue"``, ``"frame"``."""
        filling = {"verb": self.verb, "object": self.object, "cue": self.cue_text}
        words: list[tuple[str, str]] = []
        for slot in TEMPLATES[self.template].split():
            role = slot.strip("{}") if slot.startswith("{") else "frame"
            words += [(word, role) for word in filling.get(role, slot).split()]
        return words

    @property
    def text(self) -> str:
        """The request as the user writes it."""
        return " ".join(word for word, _ in self.parts())

    def answer(self, *, aligned: bool) -> str:
        """Give the answer that a model is trained to give.

        Args:
            aligned: Whether harmful requests are refused. If not, they are answered with a
                warning in front, which is how the un-aligned twins behave.

        Returns:
            The words of the answer.
        """
        if not self.is_answerable or (self.harm and aligned):
            return REFUSAL
        topic = TOPICS[self.topic]
        return HELP.format(
            opener=WARNING_OPENER if self.harm else HELP_OPENER,
            action=topic.actions[topic.verbs.index(self.verb)],
            object=self.object,
            tool=topic.tools[topic.objects.index(self.object) % len(topic.tools)],
        )


def topic_cues(topic: str) -> tuple[tuple[str, str], ...]:
    """List the (harmless, harmful) purposes of a topic: the shared ones, then its own."""
    return SHARED_CUES + TOPICS[topic].cues


def held_out_templates(topic: str, cue: int) -> tuple[int, ...]:
    """Name the templates in which this topic and purpose never occur in training.

    Two of the eight, shifted from topic to topic and cue to cue as in a Latin square: every
    topic meets every cue both in training and in the test, and every template is held out
    equally often.

    Args:
        topic: Name of the topic.
        cue: Number of the purpose.

    Returns:
        Two template numbers.
    """
    first = (3 * _TOPIC_NAMES.index(topic) + 5 * cue) % len(TEMPLATES)
    return (first, (first + 3) % len(TEMPLATES))


def templates_of(topic: str, cue: int, split: Split) -> tuple[int, ...]:
    """List the templates of a topic and purpose that belong to a split."""
    held_out = held_out_templates(topic, cue)
    return tuple(
        template
        for template in range(len(TEMPLATES))
        if split == "any" or (template in held_out) == (split == "test")
    )


def draw_pair(
    *, rng: np.random.Generator, split: Split, unknown: float = 0.0
) -> tuple[Request, Request]:
    """Draw a harmless request and its harmful twin.

    Args:
        rng: Source of randomness.
        split: Which (topic, cue, template) cells to draw from.
        unknown: Probability of an object that nobody can answer for.

    Returns:
        The harmless and the harmful request; they differ in the purpose only.
    """
    topic = _TOPIC_NAMES[rng.integers(len(_TOPIC_NAMES))]
    cue = int(rng.integers(len(topic_cues(topic))))
    template = int(rng.choice(templates_of(topic, cue, split)))
    verb = str(rng.choice(TOPICS[topic].verbs))
    objects = UNKNOWN_OBJECTS if rng.random() < unknown else TOPICS[topic].objects
    harmless = Request(topic, template, cue, verb, str(rng.choice(objects)), harm=False)
    return harmless, harmless.twin


def vocabulary() -> list[str]:
    """List every word of the language once, in a fixed order."""
    texts = [REFUSAL, HELP, HELP_OPENER, WARNING_OPENER, *UNKNOWN_OBJECTS, *TEMPLATES]
    for name, topic in TOPICS.items():
        texts += [*topic.verbs, *topic.objects, *topic.actions, *topic.tools]
        texts += [text for pair in topic_cues(name) for text in pair]
    words = {word for text in texts for word in text.split() if not word.startswith("{")}
    return sorted(words)
