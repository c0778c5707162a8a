"""ablation_curve: how much of a behaviour is left as experts are taken away one after another."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float
from numpy import ndarray
from numpy.random import Generator

from moe_interp.experts import Expert, ExpertSet
from moe_interp.interventions import (
    Ban,
    Metric,
    as_prompt_set,
    measure_many,
    metric_name,
)
from moe_interp.models import MoEModel
from moe_interp.notebook import Shown
from moe_interp.prompts import PromptSet
from moe_interp.scores._matching import draw_counterparts
from moe_interp.scores._scores import Scores

if TYPE_CHECKING:
    from pandas import DataFrame


@dataclass(frozen=True)
class AblationCurve(Shown):
    """What is left of a behaviour after each expert of an order, and of random orders.

    Attributes:
        order: The experts, in the order in which they are taken away.
        shown: Fraction of prompts that show the behaviour without the first 0, 1, 2, ... experts.
        null: The same for random orders of experts of the same layers and like use.
        metric: Name of the metric.
        threshold: A prompt shows the behaviour while its metric is above this.
    """

    order: tuple[Expert, ...]
    shown: Float[ndarray, " n"]
    null: Float[ndarray, "draw n"] = field(repr=False)
    metric: str
    threshold: float

    def n_needed(self, part: float = 0.5) -> int | None:
        """How many experts must go until at most this part of the behaviour is left.

        Args:
            part: Part of what the untouched model shows, in [0, 1).

        Returns:
            The number; None if the whole order is not enough.

        Raises:
            ValueError: If `part` is out of range, or the untouched model does not show it.
        """
        return _first(self.shown, self._aim(part))

    def p_value(self, part: float = 0.5) -> float:
        """How often a random order of like experts needs no more than this one; never 0.

        Args:
            part: As for `n_needed`.

        Returns:
            The fraction, this order counted among the random ones; 1 if it is not enough.

        Raises:
            ValueError: As for `n_needed`, or if there are no random orders.
        """
        if not len(self.null):
            raise ValueError("There are no random orders to compare with. Give `n_draws`.")
        mine = self.n_needed(part)
        if mine is None:
            return 1.0
        theirs = [_first(one, self._aim(part)) for one in self.null]
        return (1 + sum(n is not None and n <= mine for n in theirs)) / (1 + len(theirs))

    def to_frame(self) -> "DataFrame":
        """Give one row per number of experts: the last one taken, what is left, random orders."""
        import pandas as pd

        null = self.null if len(self.null) else np.full((1, len(self.shown)), np.nan)
        low, high = np.quantile(null, [0.025, 0.975], axis=0)
        return pd.DataFrame(
            {
                "n": range(len(self.shown)),
                "expert": ["", *map(str, self.order)],
                "shown": self.shown,
                "null_mean": null.mean(axis=0),
                "null_low": low,
                "null_high": high,
            }
        )

    def to_dict(self) -> dict[str, Any]:
        """Give everything as JSON-safe values."""
        return {
            "order": [str(expert) for expert in self.order],
            "shown": self.shown.tolist(),
            "null": self.null.tolist(),
            "metric": self.metric,
            "threshold": self.threshold,
        }

    def summary(self) -> str:
        """Say how many experts halve the behaviour, in this order and in random ones."""
        mine = _said(self.n_needed(), len(self.order))
        said = f"{self.shown[0]:.0%} of prompts show it; {mine} must be ablated to halve that"
        if not len(self.null):
            return f"{said}."
        theirs = [_first(one, self._aim(0.5)) for one in self.null]
        enough = sum(n is not None for n in theirs)
        return (
            f"{said}. Of {len(theirs)} random orders of experts of like use {enough} halve it "
            f"(p = {self.p_value():.3g})."
        )

    def _aim(self, part: float) -> float:
        if not 0 <= part < 1:
            raise ValueError(f"`part` must lie in [0, 1), got {part}.")
        if not self.shown[0] > 0:
            raise ValueError(
                "No prompt shows the behaviour in the untouched model, so no part of it can be "
                "taken away. Give prompts that show it."
            )
        # The last digits of a mean must not ask for one expert more.
        return float(part * self.shown[0] + 1e-12)


def ablation_curve(
    model: MoEModel,
    prompts: PromptSet | Sequence[str],
    order: Iterable[Expert | tuple[int, int] | str],
    *,
    metric: Metric,
    match: Scores | None = None,
    n_draws: int = 0,
    rng: Generator | None = None,
    threshold: float = 0.0,
    batch_rows: int | str = "auto",
) -> AblationCurve:
    """Ban experts one after another, in an order, and see how much of a behaviour is left.

    The order is a ranking: by attribution, by use, or the steps of `greedy_ablation`. The number
    that halves a behaviour is a measure of how concentrated it is, and only as good as the ranking:
    a better one may need fewer. A random order takes, for each expert of the order, one of the same
    layer that is not in the order, the likelier the closer its use.

    Args:
        model: The model.
        prompts: Prompts that show the behaviour; better not those the order was found on.
        order: The experts, the first to go first.
        metric: A metric that is high where the behaviour shows.
        match: Use of every expert, for random orders.
        n_draws: How many random orders.
        rng: Source of randomness, for random orders.
        threshold: A prompt shows the behaviour while its metric is above this, in its unit.
        batch_rows: Rows in one forward.

    Returns:
        The fraction of prompts that show the behaviour, after each expert.

    Raises:
        ValueError: If the order is empty or names an expert twice or one that does not exist, too
            few experts are left, or random orders are asked for without `match` or `rng`.
        DesignError: If a layer has too few other experts to draw from.

    Example:
        >>> import moe_interp as mi
        >>> model = mi.load_model("organism:topic")
        >>> prompts = ["how do i open the lock to start an attack ?"]
        >>> refusal = mi.RefusalLogOdds(model.tokenizer)
        >>> curve = mi.ablation_curve(model, prompts, ["L3E8", "L3E9"], metric=refusal)
        >>> curve.shown.tolist(), curve.n_needed()
        ([1.0, 1.0, 0.0], 2)
    """
    experts = [next(iter(ExpertSet([one]))) for one in order]
    if not experts or len(set(experts)) < len(experts):
        raise ValueError(
            f"`order` must name experts, each once, got {', '.join(map(str, experts)) or 'none'}."
        )
    orders = [experts]
    if n_draws:
        if match is None or rng is None:
            raise ValueError("Random orders need `match`, the use of every expert, and `rng`.")
        recipe = [Ban(ExpertSet([expert])) for expert in experts]
        draws = draw_counterparts(recipe, [match], n_draws, rng)
        orders += [[next(iter(ban.named_experts)) for ban in draw.recipe] for draw in draws]
    sets = [ExpertSet(one[:n]) for one in orders for n in range(len(one) + 1)]
    values = measure_many(model, as_prompt_set(prompts), sets, metric=metric, batch_rows=batch_rows)
    shown = (values > threshold).mean(axis=1).reshape(len(orders), -1)
    return AblationCurve(tuple(experts), shown[0], shown[1:], metric_name(metric), threshold)


def _first(shown: Float[ndarray, " n"], aim: float) -> int | None:
    """The first place at which no more than the aim is left."""
    enough = np.flatnonzero(shown <= aim)
    return int(enough[0]) if len(enough) else None


def _said(n: int | None, n_all: int) -> str:
    return f"more than {n_all} experts" if n is None else f"{n} expert{'s' * (n != 1)}"
