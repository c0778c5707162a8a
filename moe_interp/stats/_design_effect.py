r"""Do prompts differ more, or less, than their number of tokens makes them? The design effect.

A test that counts tokens takes a prompt's tokens for independent draws. If topic, sentence frame
or context make them alike, prompts differ more than that (over-dispersion) and such a test finds
effects that are not there; if every prompt holds the same kinds of words, prompts differ less
(under-dispersion) and it misses some that are. For an expert with share :math:`p` in a cell,
:math:`k` slots a token and :math:`n_i` slots in prompt :math:`i`, independent tokens give

.. math:: E \sum_i n_i (s_i - \hat p)^2 = (m - 1)\, p (1 - k p)

over the :math:`m` prompts of the cell, exactly. The design effect is the sum over cells of the
left side, as observed, over that of the right.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from einops import rearrange, reduce
from jaxtyping import Float, Int
from numpy import ndarray

from moe_interp.errors import DesignError
from moe_interp.notebook import Shown
from moe_interp.stats._profile import RoutingProfile
from moe_interp.stats._results import plain

if TYPE_CHECKING:
    import pandas as pd

WITHIN = ("topic_and_harm", "topic", "all")
UNITS = ("prompt", "wording")
QUANTILES = (0.1, 0.5, 0.9)


@dataclass(frozen=True, eq=False)
class DesignEffect(Shown):
    """Variance of the shares of prompts over what independent tokens would give.

    Attributes:
        layers: Absolute decoder layers, the rows of `effect`.
        span: The token set.
        effect: Variance ratio of each expert: 1 as if tokens were independent, above 1 prompts
            differ more (over-dispersion), below 1 less; NaN for an expert that no token chose,
            or every token.
        within: What prompts of one cell have in common.
        unit: What was compared inside the cells: ``"prompt"`` or ``"wording"``.
        n_units: Number of units in cells of at least two.
        n_slots: Slots that those units have together.
    """

    layers: tuple[int, ...]
    span: str
    effect: Float[ndarray, "layer expert"]
    within: str
    unit: str
    n_units: int
    n_slots: int

    @property
    def quantiles(self) -> dict[float, float]:
        """The 10 %, 50 % and 90 % quantiles over the experts of all layers."""
        known = self.effect[np.isfinite(self.effect)]
        return {level: float(np.quantile(known, level)) for level in QUANTILES}

    @property
    def over(self) -> float:
        """Share of experts whose variance is above that of independent tokens."""
        return float((self.effect[np.isfinite(self.effect)] > 1).mean())

    def to_frame(self) -> "pd.DataFrame":
        """Return one row an expert."""
        import pandas as pd

        n_layers, n_experts = self.effect.shape
        return pd.DataFrame(
            {
                "span": self.span,
                "layer": np.repeat(self.layers, n_experts),
                "expert": np.tile(np.arange(n_experts), n_layers),
                "design_effect": rearrange(self.effect, "layer expert -> (layer expert)"),
            }
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the effects and their quantiles as JSON-safe values."""
        return plain(vars(self) | {"quantiles": self.quantiles, "over": self.over})

    def summary(self) -> str:
        """Return the quantiles and what they mean in two sentences."""
        low, middle, high = self.quantiles.values()
        inside = {
            "topic_and_harm": "of one topic and harm level",
            "topic": "of one topic",
            "all": "of the whole set",
        }[self.within]
        if f"{middle:.2f}" == "1.00":
            meaning = "as much as their tokens would make them"
        elif middle > 1:
            meaning = "more than their tokens would make them: over-dispersed"
        else:
            meaning = "less than their tokens would make them: under-dispersed"
        return (
            f"On {self.span!r} tokens, {self.unit}s {inside} differ {meaning} (design effect "
            f"{middle:.2f} in the median over experts, 10 to 90 %: {low:.2f} to {high:.2f}; above "
            f"1 for {self.over:.0%} of experts; {self.n_units} {self.unit}s). A test that counts "
            f"tokens would judge by {self.n_slots} slots what varies like "
            f"{self.n_slots / middle:.0f} independent ones."
        )


def design_effect(
    profile: RoutingProfile, *, within: str = "topic_and_harm", unit: str = "prompt"
) -> DesignEffect:
    """Compare how much prompts differ with how much independent tokens would make them differ.

    A description, not a test: it tells how wrong a test that counts tokens would be, in either
    direction. Prompts are compared within cells of one topic and harm level, so that effects of
    these do not count as dispersion. A token cannot fill two slots with one expert, which the
    expectation takes into account by the profile's `top_k`.

    Args:
        profile: Profile of one span, with `n_slots`.
        within: Cells inside which prompts are compared: ``"topic_and_harm"``, ``"topic"``, or
            ``"all"`` for no cells.
        unit: ``"prompt"``, or ``"wording"`` to add up the prompts of a cell that share a wording
            first: what is then above 1 is lost on a test that takes prompts for independent, too.

    Returns:
        The design effect of each expert, with quantiles.

    Raises:
        ValueError: If the profile has no `n_slots`, or an option is unknown.
        DesignError: If no cell has two units, or wordings are asked for and missing.

    References:
        Rao and Scott (1992), "A simple method for the analysis of clustered binary data".

    Example:
        >>> rng = np.random.default_rng(0)
        >>> counts = rng.multinomial(20, [0.5, 0.3, 0.2], size=(400, 1))
        >>> profile = RoutingProfile(
        ...     shares=counts / 20, layers=(0,), span="user", topic=["t"] * 400,
        ...     harm=np.arange(400) % 2 == 0, n_slots=np.full(400, 20))
        >>> bool(abs(design_effect(profile).effect - 1).max() < 0.2)
        True
    """
    for name, value, options in (("within", within, WITHIN), ("unit", unit, UNITS)):
        if value not in options:
            raise ValueError(f"`{name}` must be one of {options}, got {value!r}.")
    if profile.n_slots is None:
        raise ValueError(
            "The profile does not say how many slots each share was counted from: give `n_slots` "
            "to RoutingProfile, or take the profile of a record."
        )
    shares, n_slots, cell = _units(profile, _cells(profile, within), unit)
    size = np.bincount(cell)
    keep = size[cell] > 1
    if not keep.any():
        raise DesignError(
            f"No two {unit}s share a cell ({within!r}): how much they differ cannot be told. Give "
            f"more prompts, or a wider `within`."
        )
    shares, n_slots = shares[keep], n_slots[keep].astype(np.float64)
    cell = np.unique(cell[keep], return_inverse=True)[1].reshape(-1)
    weighted = rearrange(n_slots, "unit -> unit 1 1") * shares
    total = np.bincount(cell, n_slots)
    mean = np.zeros((len(total), *shares.shape[1:]))
    np.add.at(mean, cell, weighted)
    mean /= rearrange(total, "cell -> cell 1 1")
    squares = rearrange(n_slots, "unit -> unit 1 1") * (shares - mean[cell]) ** 2
    observed = reduce(squares, "unit layer expert -> layer expert", "sum")
    # The mean's own error makes p (1 - k p) come out too small by k / N on average.
    factor = (np.bincount(cell) - 1) * total / (total - profile.top_k)
    spread = mean * (1 - profile.top_k * mean)
    expected = np.einsum("c,cle->le", factor, np.maximum(spread, 0.0))
    # Where every slot of every token is taken, rounding must not pass for variance.
    varies = expected > 1e-9 * factor.sum()
    return DesignEffect(
        layers=profile.layers,
        span=profile.span,
        effect=np.divide(observed, expected, out=np.full_like(expected, np.nan), where=varies),
        within=within,
        unit=unit,
        n_units=len(shares),
        n_slots=int(n_slots.sum()),
    )


def _cells(profile: RoutingProfile, within: str) -> Int[ndarray, " prompt"]:
    names = {
        "topic_and_harm": list(zip(profile.topic, profile.harm.tolist(), strict=True)),
        "topic": list(profile.topic),
        "all": [None] * profile.n_prompts,
    }[within]
    return _codes(names)


def _units(
    profile: RoutingProfile, cell: Int[ndarray, " prompt"], unit: str
) -> tuple[Float[ndarray, "unit layer expert"], Int[ndarray, " unit"], Int[ndarray, " unit"]]:
    """Shares, slots and cell of every unit; the parts of a wording in a cell are added up."""
    if unit == "prompt":
        return profile.shares.astype(np.float64), profile.n_slots, cell
    missing = [wording is None for wording in profile.wording]
    if any(missing):
        raise DesignError(
            f"{sum(missing)} of {profile.n_prompts} prompts have no wording: unit='wording' adds "
            f"up prompts that share one. Give each a `wording`, or take unit='prompt'."
        )
    code = _codes(list(zip(cell.tolist(), profile.wording, strict=True)))
    n_slots = np.bincount(code, profile.n_slots).astype(np.int64)
    counts = np.zeros((len(n_slots), *profile.shares.shape[1:]))
    np.add.at(counts, code, rearrange(profile.n_slots, "prompt -> prompt 1 1") * profile.shares)
    first = np.unique(code, return_index=True)[1]
    return counts / rearrange(n_slots, "unit -> unit 1 1"), n_slots, cell[first]


def _codes(names: list[Any]) -> Int[ndarray, " row"]:
    seen: dict[Any, int] = {}
    return np.array([seen.setdefault(name, len(seen)) for name in names], dtype=np.int64)
