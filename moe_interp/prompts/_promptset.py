"""Prompts with the design they were written for: topic, harm, pair and wording."""

import hashlib
import json
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import numpy as np
from jaxtyping import Bool
from numpy import ndarray

from moe_interp.errors import PromptError
from moe_interp.notebook import Shown
from moe_interp.prompts._card import DataCard
from moe_interp.prompts._prompt import Prompt, check_design, listed, with_ids
from moe_interp.prompts._split import exchange_units, split_units
from moe_interp.prompts._write import write_csv, write_jsonl

if TYPE_CHECKING:
    from pandas import DataFrame


class PromptSet(Sequence[Prompt], Shown):
    """An immutable, ordered set of prompts whose design is known to be sound.

    Every prompt has an id (those without one get ``p0000``, ``p0001``, …), and a pair has at most
    one harmful and one harmless member, of one topic.

    Args:
        prompts: The prompts, in the order in which results list them.
        source: Where they come from, for summaries and reports.
        card: What is known of the public set they are from.

    Raises:
        PromptError: If there is no prompt, an id is taken twice, or a pair is not a pair.

    Example:
        >>> prompts = PromptSet([
        ...     Prompt("Bake me a cake.", topic="food", harm=False, pair="a"),
        ...     Prompt("Poison me a cake.", topic="food", harm=True, pair="a"),
        ... ])
        >>> prompts.n_pairs, prompts.harm.tolist(), prompts.ids
        (1, [False, True], ('p0000', 'p0001'))
    """

    def __init__(
        self,
        prompts: Iterable[Prompt],
        *,
        source: str = "prompts",
        card: DataCard | None = None,
    ) -> None:
        self._prompts = with_ids(tuple(prompts))
        self._source = source
        self._card = card
        if not self._prompts:
            raise PromptError(f"The prompt set from {source!r} is empty; give at least one prompt.")
        check_design(self._prompts, [f"prompt {prompt.id!r}" for prompt in self._prompts])

    @property
    def source(self) -> str:
        """Where the prompts come from."""
        return self._source

    @property
    def card(self) -> DataCard | None:
        """Licence, topics and pairs of the public set the prompts are from, if it is known."""
        return self._card

    @property
    def texts(self) -> tuple[str, ...]:
        """The text of each prompt."""
        return tuple(prompt.text for prompt in self._prompts)

    @property
    def topics(self) -> tuple[str | None, ...]:
        """The topic of each prompt."""
        return tuple(prompt.topic for prompt in self._prompts)

    @property
    def harm(self) -> Bool[ndarray, " prompt"]:
        """Whether each prompt is harmful.

        Raises:
            PromptError: If that is unknown for some prompt.
        """
        unknown = [prompt.id for prompt in self._prompts if prompt.harm is None]
        if unknown:
            raise PromptError(
                f"{len(unknown)} of {len(self)} prompts do not say whether they are harmful: "
                f"{listed(unknown)}. Give each its `harm`, or leave them out with `select`."
            )
        return np.array([prompt.harm for prompt in self._prompts], dtype=bool)

    @property
    def has_harm(self) -> bool:
        """Whether every prompt says if it is harmful."""
        return all(prompt.harm is not None for prompt in self._prompts)

    @property
    def pairs(self) -> tuple[str | None, ...]:
        """The pair of each prompt."""
        return tuple(prompt.pair for prompt in self._prompts)

    @property
    def wordings(self) -> tuple[str | None, ...]:
        """The shared wording of each prompt."""
        return tuple(prompt.wording for prompt in self._prompts)

    @property
    def responses(self) -> tuple[str | None, ...]:
        """The response to each prompt."""
        return tuple(prompt.response for prompt in self._prompts)

    @property
    def ids(self) -> tuple[str, ...]:
        """The id of each prompt."""
        return tuple(str(prompt.id) for prompt in self._prompts)

    @property
    def n_pairs(self) -> int:
        """How many pairs have both members."""
        return len(self.pair_positions)

    @property
    def pair_positions(self) -> tuple[tuple[int, int], ...]:
        """Positions of the harmless and the harmful member of each pair that has both."""
        members: dict[str, dict[bool, int]] = {}
        for n, prompt in enumerate(self._prompts):
            if prompt.pair is not None:
                members.setdefault(prompt.pair, {})[bool(prompt.harm)] = n
        return tuple((found[False], found[True]) for found in members.values() if len(found) == 2)

    @property
    def unpaired(self) -> tuple[str, ...]:
        """The ids of the prompts without a partner in this set."""
        paired = {n for pair in self.pair_positions for n in pair}
        return tuple(name for n, name in enumerate(self.ids) if n not in paired)

    @property
    def digest(self) -> str:
        """SHA-256 of the prompts and their design, in order; the source does not enter."""
        # Without a response, a prompt has the digest it had before prompts could have one.
        known = (
            {name: value for name, value in asdict(p).items() if name != "response" or value}
            for p in self._prompts
        )
        lines = (json.dumps(one, sort_keys=True) for one in known)
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()

    def select(self, chosen: "ndarray | Iterable[int] | Iterable[bool]") -> "PromptSet":
        """Keep some of the prompts.

        Args:
            chosen: One boolean for each prompt, or the positions of those to keep, in order.

        Returns:
            The set of them; their ids stay.

        Raises:
            PromptError: If none is kept.
            ValueError: If a mask has another length than the set.
            IndexError: If a position is out of range.
        """
        index = np.asarray(chosen if isinstance(chosen, ndarray) else list(chosen))
        if index.dtype == bool:
            if index.shape != (len(self),):
                raise ValueError(
                    f"A mask for `select` needs one value for each of the {len(self)} prompts, "
                    f"got shape {index.shape}."
                )
            index = np.flatnonzero(index)
        return self._like(self._prompts[int(i)] for i in index)

    def split(
        self, *, rng: np.random.Generator, fraction: float = 0.5, by: str = "auto"
    ) -> "tuple[PromptSet, PromptSet]":
        """Split at random into two sets that share no exchange unit.

        A unit is a wording where wordings repeat, else a pair, else a prompt. Pairs are kept whole
        in any case, unless `by` is ``"prompt"``. Each topic is divided in the same proportion.

        Args:
            rng: Source of randomness.
            fraction: Part of the units that go to the first set, in (0, 1).
            by: ``"auto"``, ``"wording"``, ``"pair"`` or ``"prompt"``.

        Returns:
            The two sets; prompts keep their order.

        Raises:
            PromptError: If all prompts hang together in one unit.
            ValueError: If `fraction` or `by` has another value.
        """
        units = exchange_units(self.wordings, self.pairs, by=by)
        first = split_units(units, self.topics, fraction=fraction, rng=rng)
        return self.select(first), self.select(~first)

    def balanced(self) -> "PromptSet":
        """Leave out, with a warning, every topic that has only one harm level.

        Such a topic cannot tell harm from topic.

        Returns:
            The prompts of the other topics.

        Raises:
            PromptError: If no topic has both levels, or a prompt's harm is unknown.
        """
        harm = self.harm
        levels: dict[str | None, set[bool]] = {}
        for topic, harmful in zip(self.topics, harm.tolist(), strict=True):
            levels.setdefault(topic, set()).add(harmful)
        single = [topic for topic, found in levels.items() if len(found) < 2]
        if not single:
            return self
        if len(single) == len(levels):
            raise PromptError(
                f"No topic of {self._source!r} has both harmful and harmless prompts, so harm "
                "cannot be told from topic. Add the missing level to at least one topic."
            )
        keep = np.array([topic not in single for topic in self.topics])
        warnings.warn(
            f"{int((~keep).sum())} of {len(self)} prompts were left out: their topics have only "
            f"one harm level: {listed(single)}.",
            stacklevel=2,
        )
        return self.select(keep)

    def to_jsonl(self, path: str | Path, *, force: bool = False) -> None:
        """Write the prompts as JSON, one object a line, as `load_prompts` reads them.

        Args:
            path: The file to write.
            force: Whether to write over a file that exists.

        Raises:
            ResultExistsError: If the file exists and `force` is not given.
        """
        write_jsonl(Path(path), map(asdict, self._prompts), force=force)

    def to_csv(self, path: str | Path, *, force: bool = False) -> None:
        """Write the prompts as a table, as `load_prompts` reads it.

        Args:
            path: The file to write.
            force: Whether to write over a file that exists.

        Raises:
            ResultExistsError: If the file exists and `force` is not given.
        """
        write_csv(Path(path), map(asdict, self._prompts), force=force)

    def to_frame(self) -> "DataFrame":
        """The prompts as a table, one row each."""
        import pandas as pd

        return pd.DataFrame([asdict(prompt) for prompt in self._prompts])

    def to_dict(self) -> dict[str, Any]:
        """The set as JSON-safe values."""
        return {
            "source": self._source,
            "digest": self.digest,
            "card": None if self._card is None else self._card.to_dict(),
            "prompts": [asdict(prompt) for prompt in self._prompts],
        }

    def summary(self) -> str:
        """What the set holds, in one line, and whose it is, in another if that is known."""
        levels = Counter(prompt.harm for prompt in self._prompts)
        topics = {topic for topic in self.topics if topic is not None}
        wordings = {wording for wording in self.wordings if wording is not None}
        parts = [f"{levels[True]} harmful", f"{levels[False]} harmless"]
        if levels[None]:
            parts.append(f"{levels[None]} of unknown harm")
        parts += [f"{len(topics)} topics", f"{self.n_pairs} pairs"]
        if wordings:
            parts.append(f"{len(wordings)} wordings")
        n_responses = sum(response is not None for response in self.responses)
        if n_responses:
            parts.append(f"{n_responses} responses")
        if self.n_pairs and self.unpaired:
            parts.append(f"{len(self.unpaired)} unpaired")
        counts = f"{len(self)} prompts from {self._source}: {', '.join(parts)}"
        return counts if self._card is None else f"{counts}\n{self._card.summary()}"

    def _like(self, prompts: Iterable[Prompt]) -> "PromptSet":
        return PromptSet(prompts, source=self._source, card=self._card)

    def __len__(self) -> int:
        return len(self._prompts)

    def __iter__(self) -> Iterator[Prompt]:
        return iter(self._prompts)

    @overload
    def __getitem__(self, index: int) -> Prompt: ...
    @overload
    def __getitem__(self, index: slice) -> "PromptSet": ...
    def __getitem__(self, index: int | slice) -> "Prompt | PromptSet":
        if isinstance(index, slice):
            return self._like(self._prompts[index])
        return self._prompts[index]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, PromptSet) and self._prompts == other._prompts

    def __hash__(self) -> int:
        return hash(self._prompts)

    def __repr__(self) -> str:
        return f"<PromptSet: {self.summary().splitlines()[0]}>"
