"""Scores: one number for each expert of each layer, and for each prompt where that is known."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr
from jaxtyping import Float
from numpy import ndarray

from moe_interp.experts import Expert
from moe_interp.notebook import Shown

if TYPE_CHECKING:
    from pandas import DataFrame


@dataclass(frozen=True, eq=False)
class Scores(Shown):
    """A score of every expert; NaN where it was not measured.

    Attributes:
        name: What was measured.
        unit: Its unit.
        array: The scores, with the dimensions ``([prompt,] layer, expert)``; the coordinate
            ``layer`` holds absolute decoder layers.

    Example:
        >>> scores = Scores.of_array("use", "fraction", np.array([[0.1, 0.9]]), layers=(7,))
        >>> scores.top(1)
        [(Expert(layer=7, expert=1), 0.9)]
    """

    name: str
    unit: str
    array: xr.DataArray

    @classmethod
    def of_array(
        cls,
        name: str,
        unit: str,
        values: Float[ndarray, "*prompt layer expert"],
        *,
        layers: Sequence[int],
    ) -> "Scores":
        """Label plain numbers.

        Args:
            name: What was measured.
            unit: Its unit.
            values: The scores of each layer's experts, of each prompt if there is a first axis.
            layers: The absolute decoder layers, in the order of the axis.

        Returns:
            The scores.

        Raises:
            ValueError: If the axes are not ([prompt,] layer, expert) with these layers.
        """
        if values.ndim not in (2, 3) or values.shape[-2] != len(layers):
            raise ValueError(
                f"`values` must have the axes ([prompt,] layer, expert) with {len(layers)} layers, "
                f"got the shape {values.shape}."
            )
        dims = ("prompt", "layer", "expert")[-values.ndim :]
        coords = {"layer": list(layers), "expert": np.arange(values.shape[-1])}
        return cls(name, unit, xr.DataArray(values, dims=dims, coords=coords, name=name))

    @property
    def layers(self) -> tuple[int, ...]:
        """Absolute decoder layers."""
        return tuple(self.array.layer.values.tolist())

    @property
    def n_experts(self) -> int:
        """Experts in each layer."""
        return self.array.sizes["expert"]

    @cached_property
    def mean(self) -> Float[ndarray, "layer expert"]:
        """The scores, averaged over prompts where there are several."""
        array = (
            self.array.mean("prompt", skipna=False) if "prompt" in self.array.dims else self.array
        )
        return array.values

    def of(self, layer: int, expert: int) -> float:
        """Look up one expert; the mean over prompts.

        Args:
            layer: Absolute decoder layer.
            expert: Id within the layer.

        Returns:
            Its score; NaN if it was not measured.

        Raises:
            KeyError: If there is no such expert.
        """
        if layer not in self.layers or not 0 <= expert < self.n_experts:
            raise KeyError(
                f"{Expert(layer, expert)} has no {self.name}. Layers: "
                f"{', '.join(map(str, self.layers))}; experts 0–{self.n_experts - 1}."
            )
        return float(self.mean[self.layers.index(layer), expert])

    def of_layer(self, layer: int) -> Float[ndarray, " expert"]:
        """Look up all experts of a layer; the mean over prompts.

        Args:
            layer: Absolute decoder layer.

        Returns:
            The score of each expert.

        Raises:
            KeyError: If the layer is not among those measured.
        """
        self.of(layer, 0)
        return self.mean[self.layers.index(layer)]

    def top(self, n: int) -> list[tuple[Expert, float]]:
        """Name the experts with the largest scores; experts not measured are left out.

        Args:
            n: How many.

        Returns:
            Experts and scores, largest first; ties in order of layer and expert.
        """
        flat = self.mean.ravel()
        measured = np.flatnonzero(np.isfinite(flat))
        order = measured[np.argsort(-flat[measured], kind="stable")][:n]
        rows, ids = np.divmod(order, self.n_experts)
        return [
            (Expert(self.layers[row], int(expert)), float(flat[place]))
            for row, expert, place in zip(rows, ids, order, strict=True)
        ]

    def __neg__(self) -> "Scores":
        return Scores(f"negative {self.name}", self.unit, -self.array)

    def __abs__(self) -> "Scores":
        """Magnitudes, prompt by prompt, so that opposite signs do not cancel in the mean."""
        return Scores(f"magnitude of {self.name}", self.unit, abs(self.array))

    def to_frame(self) -> "DataFrame":
        """Give one row per expert: layer, expert, and the score averaged over prompts."""
        import pandas as pd

        layers = np.repeat(self.layers, self.n_experts)
        experts = np.tile(np.arange(self.n_experts), len(self.layers))
        return pd.DataFrame({"layer": layers, "expert": experts, self.name: self.mean.ravel()})

    def to_dict(self) -> dict[str, Any]:
        """Give name, unit, layers and mean scores as JSON-safe values; None if not measured."""
        mean = [
            [value if np.isfinite(value) else None for value in row] for row in self.mean.tolist()
        ]
        return {"name": self.name, "unit": self.unit, "layers": list(self.layers), "mean": mean}

    def summary(self, n: int = 8) -> str:
        """Name the experts with the largest scores in a line each.

        Args:
            n: How many.

        Returns:
            The lines.
        """
        lines = [f"{expert!s:>8}  {score:.4g}" for expert, score in self.top(n)]
        return "\n".join([f"{self.name} ({self.unit}), largest first:", *lines])
