"""What pairs have in common: lengths, and the tokens before and after they part."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy import ndarray

from moe_interp.errors import PromptError
from moe_interp.notebook import Shown
from moe_interp.prompts._align import align_tokens
from moe_interp.prompts._encode import tokenize
from moe_interp.prompts._lengths import prompt_lengths
from moe_interp.prompts._prompt import listed
from moe_interp.prompts._promptset import PromptSet

if TYPE_CHECKING:
    from pandas import DataFrame


@dataclass(frozen=True)
class PairedPrompts:
    """One pair and how alike its members are.

    Attributes:
        pair: The pair's name.
        topic: The topic of both members.
        harmless: Id of the harmless member.
        harmful: Id of the harmful member.
        length_harmless: Length of the harmless member.
        length_harmful: Length of the harmful member.
        n_prefix: Tokens that both begin with; None without a tokenizer.
        n_suffix: Tokens that both end with; None without a tokenizer.
        n_identical: Tokens that both have from where they part; None without a tokenizer.
    """

    pair: str
    topic: str | None
    harmless: str
    harmful: str
    length_harmless: float
    length_harmful: float
    n_prefix: int | None = None
    n_suffix: int | None = None
    n_identical: int | None = None


@dataclass(frozen=True)
class PairReport(Shown):
    """All pairs of a set, and what stayed unpaired.

    Attributes:
        pairs: One entry a pair, in the order of the prompts.
        unpaired: Ids of the prompts without a partner.
        unit: What lengths are counted in.
    """

    pairs: tuple[PairedPrompts, ...]
    unpaired: tuple[str, ...]
    unit: str

    def to_frame(self) -> "DataFrame":
        """The pairs as a table, one row each."""
        import pandas as pd

        return pd.DataFrame([vars(pair) for pair in self.pairs])

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON-safe values."""
        return {
            "unit": self.unit,
            "pairs": [dict(vars(pair)) for pair in self.pairs],
            "unpaired": list(self.unpaired),
        }

    def summary(self) -> str:
        """A few lines that say how alike the members of pairs are."""
        more = np.array([pair.length_harmful - pair.length_harmless for pair in self.pairs])
        lines = [
            f"{len(self.pairs)} pairs, {len(self.unpaired)} prompts unpaired",
            f"  length, harmful less harmless: {more.mean():+.2f} {self.unit} on average, "
            f"{np.abs(more).max():g} at most",
        ]
        if self.pairs[0].n_suffix is not None:
            counts = {
                name: np.median([getattr(pair, name) for pair in self.pairs])
                for name in ("n_prefix", "n_suffix", "n_identical")
            }
            lines.append(
                f"  tokens in common (median): {counts['n_prefix']:g} before they part, "
                f"{counts['n_suffix']:g} after the last that differs, "
                f"{counts['n_identical']:g} in all from where they part"
            )
        if self.unpaired:
            lines.append(f"  unpaired: {listed(self.unpaired)}")
        return "\n".join(lines)


def pair_report(
    prompts: PromptSet,
    *,
    length: str | Sequence[float | int] | ndarray = "words",
    tokenizer: Any | None = None,  # noqa: ANN401
) -> PairReport:
    """Say how alike the members of each pair are, in length and in tokens.

    Args:
        prompts: The prompts.
        length: ``"words"``, ``"characters"``, or one number for each prompt.
        tokenizer: A Hugging Face tokenizer, to count tokens in common; its chat template is
            applied if it has one.

    Returns:
        The report.

    Raises:
        PromptError: If no prompt has a partner.
        ValueError: If `length` has another value.

    Example:
        >>> from moe_interp.prompts import Prompt
        >>> prompts = PromptSet([
        ...     Prompt("Bake me a cake.", topic="food", harm=False, pair="a"),
        ...     Prompt("Poison a cake.", topic="food", harm=True, pair="a"),
        ... ])
        >>> print(pair_report(prompts).summary())
        1 pairs, 0 prompts unpaired
          length, harmful less harmless: -1.00 words on average, 1 at most
    """
    if not prompts.n_pairs:
        raise PromptError(
            f"No prompt of {prompts.source!r} has a partner. Give prompts with `pair`, or pair "
            "them with `pair_prompts`."
        )
    lengths = prompt_lengths(prompts, length)
    tokens = None if tokenizer is None else tokenize(tokenizer, prompts, spans=()).token_ids
    pairs = []
    for harmless, harmful in prompts.pair_positions:
        shared = {}
        if tokens is not None:
            found = align_tokens(tokens[harmless], tokens[harmful])
            shared = {
                "n_prefix": found.n_prefix,
                "n_suffix": found.n_suffix,
                "n_identical": len(found.matches),
            }
        pairs.append(
            PairedPrompts(
                pair=str(prompts[harmful].pair),
                topic=prompts[harmful].topic,
                harmless=prompts.ids[harmless],
                harmful=prompts.ids[harmful],
                length_harmless=float(lengths[harmless]),
                length_harmful=float(lengths[harmful]),
                **shared,
            )
        )
    unit = length if isinstance(length, str) else "units"
    return PairReport(tuple(pairs), prompts.unpaired, unit)
