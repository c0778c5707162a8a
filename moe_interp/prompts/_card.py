"""What is known of a public prompt set beside its prompts: whose it is, what its design means."""

from dataclasses import asdict, dataclass

from moe_interp.notebook import Shown


@dataclass(frozen=True)
class DataCard(Shown):
    """Where a layout comes from, under which licence, and how its columns became a design.

    Attributes:
        name: What the set is called.
        licence: The terms its authors publish it under; a copy may add its own.
        topic: What a prompt's `topic` is taken from.
        pairing: Which prompts are pairs, and why.
        reference: The paper that introduced it.

    Example:
        >>> card = DataCard("Mine", licence="CC0", topic="column `topic`", pairing="column `pair`")
        >>> print(card.summary())
        Mine, licence CC0; topic: column `topic`; pairs: column `pair`
    """

    name: str
    licence: str
    topic: str
    pairing: str
    reference: str = ""

    def summary(self) -> str:
        """One line that says whose the prompts are and how they are paired."""
        name = f"{self.name} ({self.reference})" if self.reference else self.name
        return f"{name}, licence {self.licence}; topic: {self.topic}; pairs: {self.pairing}"

    def to_dict(self) -> dict[str, str]:
        """The card as JSON-safe values."""
        return asdict(self)
