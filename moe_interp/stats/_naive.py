"""The counter-example: a chi-square test that counts tokens as if they were independent."""

import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float, Int
from numpy import ndarray
from scipy.stats import chi2

from moe_interp.errors import DesignError
from moe_interp.notebook import Shown
from moe_interp.stats._profile import RoutingProfile
from moe_interp.stats._results import format_p, plain

if TYPE_CHECKING:
    import pandas as pd

_WARNING = (
    "naive_token_test counts tokens as samples, and tokens of one prompt or one wording are not "
    "independent: its p-values are wrong in either direction. Use harm_test; this is for "
    "comparison only."
)


@dataclass(frozen=True, eq=False)
class NaiveTokenTest(Shown):
    """Chi-square tests over tokens, per layer and for all layers added up (last).

    Attributes:
        layers: Absolute decoder layers; the arrays have one more entry, for all layers.
        span: The token set.
        statistic: Pearson's chi-square.
        freedom: Its degrees of freedom.
        p_value: Its p-value, as if slots were independent.
        within_topics: Whether a table was made of each topic.
    """

    layers: tuple[int, ...]
    span: str
    statistic: Float[ndarray, " row"]
    freedom: Int[ndarray, " row"]
    p_value: Float[ndarray, " row"]
    within_topics: bool

    def to_frame(self) -> "pd.DataFrame":
        """Return one row a layer and one for ``"all"``."""
        import pandas as pd

        return pd.DataFrame(
            {
                "span": self.span,
                "layer": np.array([*self.layers, "all"], dtype=object),
                "statistic": self.statistic,
                "freedom": self.freedom,
                "p_value": self.p_value,
            }
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the table's rows as JSON-safe values."""
        return plain(
            {"rows": self.to_frame().to_dict("records"), "within_topics": self.within_topics}
        )

    def summary(self) -> str:
        """Return the outcome and why not to trust it."""
        return (
            f"Chi-square over tokens in {self.span!r}: {format_p(float(self.p_value[-1]))}, as if "
            f"tokens were independent, which they are not. Do not report it."
        )


def naive_token_test(profile: RoutingProfile, *, within_topics: bool = False) -> NaiveTokenTest:
    """Test harm by chi-square over tokens: for demonstration only, and wrong.

    The table of every layer counts slots by harm and expert. It takes tokens of one prompt, and
    prompts of one wording, as independent, and emits a warning each time that says so. Rate of
    p <= 0.05 where harm does nothing, in 1,000 simulations each (`benchmarks/calibration.py`),
    plain and within topics:

    * topics confounded with harm 1.00 and 0.99; shared wording 1.00 and 1.00; matched pairs 0.77
      and 1.00; harmful prompts a third as long 0.39 to 1.00;
    * real routing of an organism with labels drawn by lot: for whole wordings 0.94 and 0.39, at
      a rate that rises with topic 1.00 and 0.38, within topics 0.24 and 0.38;
    * the same with labels swapped in pairs or in whole wordings 0.00: tokens of prompts made
      from a template are more alike than chance, and the test sees too little.

    Args:
        profile: Profile of one span, with `n_slots`.
        within_topics: Whether to make a table of each topic and add up, instead of one table.

    Returns:
        Statistic, degrees of freedom and p-value of each layer and of all.

    Raises:
        ValueError: If `n_slots` is not known.
        DesignError: If all prompts are of one harm level.
    """
    warnings.warn(_WARNING, stacklevel=2)
    if profile.n_slots is None:
        raise ValueError("naive_token_test counts slots: the profile needs `n_slots`.")
    if profile.harm.all() or not profile.harm.any():
        raise DesignError("A chi-square test of harm needs harmful and harmless prompts.")
    counts = profile.shares * profile.n_slots[:, None, None]
    groups = [np.ones(profile.n_prompts, dtype=bool)]
    if within_topics:
        groups = [profile.topic == name for name in dict.fromkeys(profile.topic)]
    statistic = np.zeros(profile.n_layers + 1)
    freedom = np.zeros(profile.n_layers + 1, dtype=int)
    for own in groups:
        table = np.stack(
            [counts[own & (profile.harm == level)].sum(axis=0) for level in (False, True)]
        )
        found, degrees = _chi_square(table)
        statistic[:-1] += found
        freedom[:-1] += degrees
    statistic[-1], freedom[-1] = statistic[:-1].sum(), freedom[:-1].sum()
    # Without degrees of freedom nothing was compared.
    p_value = np.where(freedom > 0, chi2.sf(statistic, np.maximum(freedom, 1)), 1.0)
    return NaiveTokenTest(profile.layers, profile.span, statistic, freedom, p_value, within_topics)


def _chi_square(
    table: Float[ndarray, "level layer expert"],
) -> tuple[Float[ndarray, " layer"], Int[ndarray, " layer"]]:
    rows, columns = table.sum(axis=2, keepdims=True), table.sum(axis=0, keepdims=True)
    expected = rows * columns / np.maximum(columns.sum(axis=2, keepdims=True), 1)
    terms = np.divide(
        (table - expected) ** 2, expected, out=np.zeros_like(table), where=expected > 0
    )
    used = (columns[0] > 0).sum(axis=1) - 1
    both = (rows[:, :, 0] > 0).all(axis=0)
    return terms.sum(axis=(0, 2)) * both, used * both
