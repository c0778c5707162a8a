"""The routing profile: what share of each prompt's routed slots went to each expert."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped
from numpy import ndarray

from moe_interp.stats._embedding import length_fair_embedding

# Half-precision shares of a few thousand slots still add up to 1 within this.
_SUM_TOLERANCE = 1e-3


@dataclass(frozen=True, eq=False)
class RoutingProfile:
    """Routing of every prompt over one named set of tokens, with the labels the tests need.

    The prompt is the row and not the token: tokens of one prompt are not independent, and a
    test that counts them as samples is wrong nearly always when prompts differ.

    Attributes:
        shares: Share of the prompt's top-k slots that went to the expert; each layer's sum to 1.
        layers: Absolute decoder layer of each row of `shares`.
        span: Name of the token set the shares were counted over, such as ``"user"``.
        topic: Topic of each prompt; None where unknown.
        harm: Whether the prompt is harmful.
        pair: Id shared by a harmful and a harmless prompt made to match; None where unpaired.
        wording: Id of the phrase that carries the intent; prompts with one id share the words.
        id: Name of each prompt for messages; its position if None.
        n_slots: How many slots each share was counted from, if known; prompts of different
            length are made comparable by it.
        top_k: Slots that one token fills, each with another expert; used with `n_slots`.

    Raises:
        ValueError: If an array does not fit the others, a share is NaN or negative, or the
            shares of a prompt in a layer do not sum to 1.

    Example:
        >>> profile = RoutingProfile(
        ...     shares=np.full((2, 1, 4), 0.25), layers=(0,), span="user",
        ...     topic=["food", "food"], harm=[True, False], pair=["a", "a"],
        ... )
        >>> profile.n_prompts, profile.n_experts
        (2, 4)
    """

    shares: Float[ndarray, "prompt layer expert"]
    layers: tuple[int, ...]
    span: str
    topic: Sequence[Any] | Shaped[ndarray, " prompt"]
    harm: Sequence[Any] | Shaped[ndarray, " prompt"]
    pair: Sequence[Any] | Shaped[ndarray, " prompt"] | None = None
    wording: Sequence[Any] | Shaped[ndarray, " prompt"] | None = None
    id: Sequence[Any] | Shaped[ndarray, " prompt"] | None = None
    n_slots: Int[ndarray, " prompt"] | None = None
    top_k: int = 1

    def __post_init__(self) -> None:
        shares = np.asarray(self.shares)
        if shares.ndim != 3 or 0 in shares.shape:
            raise ValueError(
                f"`shares` must be a non-empty array (prompt, layer, expert), got {shares.shape}."
            )
        n_prompts = shares.shape[0]
        if len(self.layers) != shares.shape[1]:
            raise ValueError(
                f"`layers` names {len(self.layers)} layers but `shares` has {shares.shape[1]}: "
                f"(prompt, layer, expert) = {shares.shape}."
            )
        if len(set(self.layers)) != len(self.layers):
            raise ValueError(f"`layers` must not repeat, got {self.layers!r}.")
        fields = {
            "shares": shares,
            "layers": tuple(int(layer) for layer in self.layers),
            "topic": _labels("topic", self.topic, n_prompts),
            "harm": _harm(self.harm, n_prompts),
            "pair": _labels("pair", self.pair, n_prompts),
            "wording": _labels("wording", self.wording, n_prompts),
            "id": _labels("id", self.id, n_prompts),
        }
        if self.n_slots is not None and len(self.n_slots) != n_prompts:
            raise ValueError(f"`n_slots` has {len(self.n_slots)} values for {n_prompts} prompts.")
        for name, value in fields.items():
            object.__setattr__(self, name, value)
        self._check_shares()
        self._check_slots()

    def _check_slots(self) -> None:
        if self.top_k < 1:
            raise ValueError(f"`top_k` must be at least 1, got {self.top_k!r}.")
        if self.n_slots is None:
            return
        bad = (self.n_slots < 1) | (self.n_slots % self.top_k != 0)
        if bad.any():
            raise ValueError(
                f"`n_slots` must be positive multiples of `top_k` = {self.top_k}, got "
                f"{int(self.n_slots[bad][0])} for prompt {np.flatnonzero(bad)[0]}."
            )

    def _check_shares(self) -> None:
        bad = ~np.isfinite(self.shares)
        if bad.any():
            prompt, row, expert = (int(i) for i in np.argwhere(bad)[0])
            raise ValueError(
                f"`shares` holds {int(bad.sum())} NaN or infinite values, the first at "
                f"{self._where(prompt, row)}, expert {expert}."
            )
        if (self.shares < 0).any():
            prompt, row, _ = (int(i) for i in np.argwhere(self.shares < 0)[0])
            raise ValueError(
                f"`shares` must not be negative, got {self.shares.min():.3g} at "
                f"{self._where(prompt, row)}."
            )
        total = self.shares.sum(axis=2, dtype=np.float64)
        if (total == 0).any():
            prompt, row = (int(i) for i in np.argwhere(total == 0)[0])
            raise ValueError(
                f"{int((total == 0).any(axis=1).sum())} prompts have no routed slot in span "
                f"{self.span!r}, the first at {self._where(prompt, row)}: leave them out or take "
                f"a span that they have."
            )
        off = np.abs(total - 1) > _SUM_TOLERANCE
        if off.any():
            prompt, row = (int(i) for i in np.argwhere(off)[0])
            raise ValueError(
                f"The shares of a layer must sum to 1 over experts, got {total[prompt, row]:.4g} "
                f"at {self._where(prompt, row)}: divide the counts by the number of slots."
            )

    def _where(self, prompt: int, row: int) -> str:
        return f"prompt {self.name(prompt)}, layer {self.layers[row]}"

    def name(self, prompt: int) -> str:
        """Return how messages call a prompt: its id, or its position if it has none.

        Args:
            prompt: Row of the prompt.

        Returns:
            The printed name.
        """
        own = self.id[prompt]
        return repr(own) if own is not None else str(prompt)

    @property
    def n_prompts(self) -> int:
        """Number of prompts."""
        return self.shares.shape[0]

    @property
    def n_layers(self) -> int:
        """Number of MoE layers."""
        return self.shares.shape[1]

    @property
    def n_experts(self) -> int:
        """Number of routed experts in a layer."""
        return self.shares.shape[2]

    def select(
        self, prompts: Bool[ndarray, " prompt"] | Int[ndarray, " chosen"]
    ) -> "RoutingProfile":
        """Keep some of the prompts.

        Args:
            prompts: Mask over the prompts, or their rows in the order wanted.

        Returns:
            The profile of those prompts alone.
        """
        return RoutingProfile(
            shares=self.shares[prompts],
            layers=self.layers,
            span=self.span,
            topic=self.topic[prompts],
            harm=self.harm[prompts],
            pair=self.pair[prompts],
            wording=self.wording[prompts],
            id=self.id[prompts],
            n_slots=None if self.n_slots is None else self.n_slots[prompts],
            top_k=self.top_k,
        )

    @property
    def embedding(self) -> Float[ndarray, "prompt layer expert"]:
        r"""Points whose squared distance is the Hellinger distance of the profiles, squared.

        :math:`y = \sqrt{p} / \sqrt 2`, so that a layer's squared distance lies in [0, 1]. Where
        prompts differ in length, :math:`\sqrt p` is its mean over as many of the prompt's tokens
        as the shortest prompt has; `length_fair_embedding` says why.
        """
        return length_fair_embedding(self.shares, self.n_slots, self.top_k)

    def points(
        self,
        rows: Int[ndarray, " chosen"],
        shares: Float[ndarray, "chosen row expert"] | None = None,
    ) -> Float[ndarray, "chosen row expert"]:
        """Return what the statistics compare: the Hellinger points of some of the prompts.

        Args:
            rows: Rows of the prompts.
            shares: Shares of those prompts over the same tokens as the profile's, such as those
                of random routers; the profile's own if None.

        Returns:
            The points.
        """
        own = self.shares[rows] if shares is None else shares
        n_slots = None if self.n_slots is None else self.n_slots[rows]
        return length_fair_embedding(own, n_slots, self.top_k, whole=shares is None)


def _labels(
    name: str, values: Sequence[Any] | Shaped[ndarray, " prompt"] | None, n_prompts: int
) -> Shaped[ndarray, " prompt"]:
    labels = np.full(n_prompts, None, dtype=object)
    if values is None:
        return labels
    if len(values) != n_prompts:
        raise ValueError(f"`{name}` has {len(values)} values for {n_prompts} prompts.")
    for row, value in enumerate(values):
        # Tables write a missing text as None, as an empty text or as NaN.
        missing = value is None or value == "" or value != value
        labels[row] = None if missing else str(value)
    return labels


def _harm(
    values: Sequence[Any] | Shaped[ndarray, " prompt"], n_prompts: int
) -> Bool[ndarray, " prompt"]:
    harm = np.asarray(values)
    if harm.shape != (n_prompts,):
        raise ValueError(f"`harm` has {len(harm)} values for {n_prompts} prompts.")
    if harm.dtype != bool:
        if not all(value in (0, 1) for value in harm.tolist()):
            raise ValueError("`harm` must hold True or False for every prompt.")
        harm = harm.astype(bool)
    return harm
