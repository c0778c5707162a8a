"""Capture: one model, its prompts as tokens, and the options of a recording, run block by block."""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Bool
from numpy import ndarray

from moe_interp.capture._arrays import (
    check_finite,
    dimensions,
    empty_arrays,
    fill_batch,
    formats,
    token_rows,
    versions,
    void_prompts,
)
from moe_interp.capture._batches import plan_batches
from moe_interp.capture._identity import identity_of
from moe_interp.capture._routers import n_draws_of
from moe_interp.capture._run import Routers, recorded_here
from moe_interp.capture._there import recorded_there
from moe_interp.models import MoEModel
from moe_interp.prompts import PromptSet, TokenizedPrompts

Advance = Callable[[], None]
_log = logging.getLogger("moe_interp")


@dataclass(frozen=True)
class Capture:
    """What `record_routing` was asked for.

    Attributes:
        model: The model.
        prompts: The prompts.
        tokens: The prompts as tokens.
        quantities: What to record.
        routers: Random routers of each layer.
        drawn_from: State of their source before they were drawn; None if there are none.
        batch_size: Prompts in a batch, or ``"auto"``.
        padding_side: ``"right"`` or ``"left"``.
        weight_dtype: Format of routing weights.
        on_error: ``"raise"`` or ``"skip"``.
        unfit: The reason for each prompt that cannot be run at all, by position.
    """

    model: MoEModel
    prompts: PromptSet
    tokens: TokenizedPrompts
    quantities: tuple[str, ...]
    routers: Mapping[int, Routers]
    drawn_from: Mapping[str, Any] | None
    batch_size: int | str
    padding_side: str
    weight_dtype: str
    on_error: str
    unfit: Mapping[int, str] = field(default_factory=dict)

    @property
    def n_draws(self) -> int:
        """Random routers in a layer."""
        return n_draws_of(self.routers)

    @property
    def kinds(self) -> dict[str, np.dtype]:
        """What is recorded, and in which format."""
        return formats(
            self.model.architecture,
            self.quantities,
            n_draws=self.n_draws,
            weight_dtype=self.weight_dtype,
        )

    @property
    def sizes(self) -> dict[str, int]:
        """The length of every dimension."""
        return dimensions(self.model.architecture, self.tokens, n_draws=self.n_draws)

    def identity(self) -> dict[str, Any]:
        """All that the recorded numbers depend on."""
        connection = self.model.connection
        options = {
            "quantities": list(self.quantities),
            "weight_dtype": self.weight_dtype,
            "batch_size": self.batch_size,
            "padding_side": self.padding_side,
            "random_routers": {"n": self.n_draws, "drawn_from": _plain(self.drawn_from)},
            "server": None if connection is None else connection.server.host,
            "versions": versions(),
        }
        return identity_of(self.model, self.prompts, self.tokens, options)

    def batches(self, first: int, end: int) -> list[list[int]]:
        """The batches of a block of prompts that follow each other.

        Args:
            first: Position of the first prompt.
            end: Position after the last.

        Returns:
            The prompts of each batch, counted from the block's first.
        """
        fit = np.array([n - first for n in range(first, end) if n not in self.unfit], dtype=int)
        if not len(fit):
            return []
        planned = plan_batches(self.tokens.lengths[first:end][fit], batch_size=self.batch_size)
        return [fit[batch].tolist() for batch in planned]

    def block(
        self, first: int, end: int, advance: Advance
    ) -> tuple[dict[str, ndarray], dict[int, str]]:
        """Run the prompts of a block.

        Args:
            first: Position of the first prompt.
            end: Position after the last.
            advance: Called after every batch.

        Returns:
            The arrays of these prompts, and the reason for each that failed, by its position among
            all prompts.

        Raises:
            ValueError: If the model gives weights that are not finite, where failures are raised.
        """
        tokens = self.tokens.part(first, end)
        failed = {n - first: self.unfit[n] for n in range(first, end) if n in self.unfit}
        architecture = self.model.architecture
        arrays = empty_arrays(
            architecture,
            tokens,
            self.quantities,
            n_draws=self.n_draws,
            weight_dtype=self.weight_dtype,
        )
        given = (self.model, tokens, self.batches(first, end), self.quantities, dict(self.routers))
        if self.model.connection is None:
            skip = {"on_error": self.on_error, "failed": failed}
            recorded = recorded_here(*given, self.padding_side, **skip)
        else:
            recorded = recorded_there(*given, self.padding_side)
        for chosen, found in recorded:
            fill_batch(arrays, found, tokens, chosen)
            advance()
        void_prompts(arrays, tokens, failed)
        prompts = self.prompts[first:end]
        if self.on_error == "skip":
            failed |= self._overflowed(arrays, tokens, failed)
            void_prompts(arrays, tokens, failed)
        else:
            check_finite(arrays["routing_weights"], architecture, tokens, prompts)
        return arrays, {first + n: why for n, why in sorted(failed.items())}

    def _overflowed(
        self, arrays: Mapping[str, ndarray], tokens: TokenizedPrompts, known: Mapping[int, str]
    ) -> dict[int, str]:
        """Prompts that got weights that are not finite, of those that are not known to fail."""
        bad: Bool[ndarray, " token"] = ~np.isfinite(arrays["routing_weights"]).all(axis=(1, 2))
        if not bad.any():
            return {}
        prompts = [n for n in range(len(tokens.lengths)) if n not in known]
        why = f"routing weights that are not finite in {self.model.architecture.dtype}"
        found = {n: why for n in prompts if bad[token_rows(tokens, [n])].any()}
        for n in found:
            _log.warning("prompt %d of the block failed and is left out: %s", n, why)
        return found


def unfit_prompts(tokens: TokenizedPrompts, limit: int | None) -> dict[int, str]:
    """Prompts that are longer than the model reads.

    Args:
        tokens: The prompts as tokens.
        limit: The most tokens that the model reads; None if it is not known.

    Returns:
        The reason for each, by position.
    """
    if limit is None:
        return {}
    return {
        n: f"{tokens.lengths[n]} tokens, and the model reads {limit}"
        for n in np.flatnonzero(tokens.lengths > limit).tolist()
    }


def _plain(state: object) -> object:
    """The state of a source of randomness as JSON-safe values."""
    if isinstance(state, Mapping):
        return {str(name): _plain(value) for name, value in state.items()}
    return state.tolist() if isinstance(state, ndarray) else state
