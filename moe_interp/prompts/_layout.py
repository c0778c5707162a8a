"""What a layout of prompt files is: columns to know it by, a card, and how its rows are read."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from moe_interp.prompts._card import DataCard
from moe_interp.prompts._files import Row
from moe_interp.prompts._prompt import Prompt


@dataclass(frozen=True)
class Placed:
    """A prompt and where it was read.

    Attributes:
        prompt: The prompt.
        place: Its row, for messages.
    """

    prompt: Prompt
    place: str


@dataclass(frozen=True)
class Layout:
    """How to recognise the rows of a set and read them.

    Attributes:
        needed: Columns that only this layout has all of.
        optional: Columns it may have besides, whether they are used or not.
        read: Turns all rows into prompts; the text names the source, for warnings.
        card: What is known of the set; None for our own layout.
    """

    needed: tuple[str, ...]
    optional: tuple[str, ...]
    read: Callable[[Sequence[Row], str], list[Placed]]
    card: DataCard | None = None
