"""How experts are named, combined, printed and read back."""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from moe_interp.notebook import Shown

if TYPE_CHECKING:
    from pandas import DataFrame

_LABEL = re.compile(r"L(\d+)E(\d+)", re.IGNORECASE)


@dataclass(frozen=True, order=True)
class Expert:
    """One routed expert: its absolute decoder layer and its id within that layer, both from 0.

    Example:
        >>> print(Expert(7, 3))
        L7E3
        >>> Expert.parse("L7E3")
        Expert(layer=7, expert=3)
    """

    layer: int
    expert: int

    def __post_init__(self) -> None:
        for name in ("layer", "expert"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 0:
                raise ValueError(f"`{name}` must be an integer of at least 0, got {value!r}.")

    def __str__(self) -> str:
        return f"L{self.layer}E{self.expert}"

    @classmethod
    def parse(cls, label: str) -> "Expert":
        """Read a label such as ``"L7E3"``.

        Args:
            label: The printed form of an expert; case and outer spaces do not matter.

        Returns:
            The expert.

        Raises:
            ValueError: If the label has another form.
        """
        match = _LABEL.fullmatch(label.strip())
        if match is None:
            raise ValueError(
                f"An expert is written like 'L7E3' (layer 7, expert 3), got {label!r}."
            )
        return cls(int(match[1]), int(match[2]))


class ExpertSet(Shown):
    """An immutable set of experts, iterated in order of layer and expert.

    Example:
        >>> chosen = ExpertSet.parse("L9E12, L7E3")
        >>> print(chosen)
        L7E3,L9E12
        >>> chosen | [(7, 4)]
        ExpertSet('L7E3,L7E4,L9E12')
        >>> chosen.by_layer()
        {7: (3,), 9: (12,)}
    """

    __slots__ = ("_experts",)

    def __init__(self, experts: "Iterable[Expert | tuple[int, int] | str]" = ()) -> None:
        self._experts = tuple(sorted({as_expert(expert) for expert in experts}))

    @classmethod
    def parse(cls, text: str) -> "ExpertSet":
        """Read a comma-separated list such as ``"L7E3,L9E12"``; the empty text is the empty set.

        Args:
            text: Labels of experts, separated by commas.

        Returns:
            The set of them.

        Raises:
            ValueError: If a label is not of the form ``L7E3``.
        """
        return cls(Expert.parse(label) for label in text.split(",") if label.strip())

    def by_layer(self) -> dict[int, tuple[int, ...]]:
        """Group the expert ids by their layer."""
        grouped: dict[int, tuple[int, ...]] = {}
        for expert in self._experts:
            grouped[expert.layer] = (*grouped.get(expert.layer, ()), expert.expert)
        return grouped

    @property
    def layers(self) -> tuple[int, ...]:
        """The layers that hold at least one of the experts, in order."""
        return tuple(self.by_layer())

    def to_frame(self) -> "DataFrame":
        """Give one row per layer: the layer, and the ids of its experts."""
        import pandas as pd

        grouped = {layer: ", ".join(map(str, ids)) for layer, ids in self.by_layer().items()}
        return pd.DataFrame({"layer": list(grouped), "experts": list(grouped.values())})

    def summary(self) -> str:
        """Say how many experts of how many layers are in the set."""
        experts = "1 expert" if len(self) == 1 else f"{len(self)} experts"
        layers = "1 layer" if len(self.layers) == 1 else f"{len(self.layers)} layers"
        return f"{experts} in {layers}"

    def __iter__(self) -> Iterator[Expert]:
        return iter(self._experts)

    def __len__(self) -> int:
        return len(self._experts)

    def __contains__(self, expert: object) -> bool:
        return as_expert(expert) in self._experts  # type: ignore[arg-type]

    def __or__(self, other: "Iterable[Expert | tuple[int, int] | str]") -> "ExpertSet":
        return ExpertSet((*self._experts, *ExpertSet(other)))

    def __and__(self, other: "Iterable[Expert | tuple[int, int] | str]") -> "ExpertSet":
        return ExpertSet(set(self._experts) & set(ExpertSet(other)))

    def __sub__(self, other: "Iterable[Expert | tuple[int, int] | str]") -> "ExpertSet":
        return ExpertSet(set(self._experts) - set(ExpertSet(other)))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ExpertSet) and self._experts == other._experts

    def __hash__(self) -> int:
        return hash(self._experts)

    def __str__(self) -> str:
        return ",".join(map(str, self._experts))

    def __repr__(self) -> str:
        return f"ExpertSet({str(self)!r})"


def as_expert(value: "Expert | tuple[int, int] | str") -> Expert:
    """Turn an ``Expert``, a ``(layer, expert)`` pair or a label into an ``Expert``.

    Args:
        value: The expert in any of its three forms.

    Returns:
        The expert.

    Raises:
        TypeError: If the value has none of these forms.
        ValueError: If a label cannot be read or a number is negative.
    """
    if isinstance(value, Expert):
        return value
    if isinstance(value, str):
        return Expert.parse(value)
    if isinstance(value, tuple | list) and len(value) == 2:
        return Expert(int(value[0]), int(value[1]))
    raise TypeError(f"An expert is an Expert, a (layer, expert) pair or a label, got {value!r}.")
