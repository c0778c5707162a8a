"""mesa_select: experts that have room for a behaviour, by transport of routing at a cost.

References:
    Sun et al. (2026), "MESA", arXiv 2606.00651. The cost and the kernel follow secondary notes;
    the paper's constants, its marginals and what its rows are were not at hand: see `mesa_select`.
"""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float
from numpy import ndarray
from scipy.stats import rankdata

from moe_interp.capture import RoutingRecord
from moe_interp.errors import DesignError
from moe_interp.experts import ExpertSet
from moe_interp.notebook import Shown
from moe_interp.scores._routing import mean_router_prob, selection_frequency
from moe_interp.scores._scores import Scores
from moe_interp.scores._select import select_experts
from moe_interp.scores._transport import transport_plan

if TYPE_CHECKING:
    from pandas import DataFrame


@dataclass(frozen=True, eq=False)
class MesaSelection(Shown):
    """Experts that routing at a cost would move harmful prompts to.

    Attributes:
        experts: The selected experts: the largest totals of the plan.
        percentile: Rank of each expert's use on the mixture, in (0, 100).
        cost: Cost of each expert, the smallest being 1.
        prior: Mean router probability on harmful prompts.
        plan: Total of each expert under the plan; each layer's add up to 1.
        epsilon: Weight of the prior in the plan, in units of the smallest cost.
    """

    experts: ExpertSet
    percentile: Scores = field(repr=False)
    cost: Scores = field(repr=False)
    prior: Scores = field(repr=False)
    plan: Scores = field(repr=False)
    epsilon: float

    @property
    def tilt(self) -> Scores:
        """Cost in units of `epsilon`: what is taken off a router's log-probability, in nats."""
        return Scores("tilt", "nats", self.cost.array / self.epsilon)

    def to_frame(self) -> "DataFrame":
        """Give one row per expert: percentile, cost, prior, plan, and whether it was selected."""
        frame = self.percentile.to_frame()
        for scores in (self.cost, self.prior, self.plan):
            frame[scores.name] = scores.mean.ravel()
        chosen = {(expert.layer, expert.expert) for expert in self.experts}
        places = zip(frame["layer"], frame["expert"], strict=True)
        frame["selected"] = [place in chosen for place in places]
        return frame

    def to_dict(self) -> dict[str, Any]:
        """Give everything as JSON-safe values."""
        return {
            "experts": [str(expert) for expert in self.experts],
            "percentile": self.percentile.to_dict(),
            "cost": self.cost.to_dict(),
            "prior": self.prior.to_dict(),
            "plan": self.plan.to_dict(),
            "epsilon": self.epsilon,
        }

    def summary(self) -> str:
        """Say which experts were selected, and how much of the routing the plan gives them."""
        chosen = [(expert.layer, expert.expert) for expert in self.experts]
        had, has = (sum(s.of(*place) for place in chosen) for s in (self.prior, self.plan))
        n_layers = len(self.plan.layers)
        return (
            f"{len(chosen)} experts selected: {self.experts}. The plan gives them "
            f"{has / n_layers:.0%} of the routing of harmful prompts, the model "
            f"{had / n_layers:.0%}."
        )


def mesa_select(
    record: RoutingRecord,
    *,
    n: int,
    epsilon: float = 0.5,
    shift: float = 10.0,
    column_weight: float = 0.5,
    span: str = "prompt",
) -> MesaSelection:
    r"""Select experts with room for a behaviour: neither the most used nor the idle.

    Every expert's use, averaged over harmful and harmless prompts alike, is ranked among all
    experts of the model; with :math:`f` the percentile, its cost is
    :math:`C = 1 / [(f + a)(100 - f)^2]`, the inverse of a Beta(2, 3) shape. In each layer, the
    plan :math:`\pi` from harmful prompts to experts of least
    :math:`\langle \pi, C \rangle + \epsilon\,\mathrm{KL}(\pi \| P)` is found, with :math:`P`
    each prompt's mean router probabilities; the `n` experts of the largest totals are selected.

    The paper asks for plans with given totals of rows and columns. But where the totals of experts
    are given exactly, they decide the selection alone, and a cost that depends on the expert alone
    does not change the plan at all. So here they are only held near equal shares, by a penalty
    :math:`\rho\,\mathrm{KL}` with `column_weight` :math:`\rho`. That, the ranks, the unit of the
    cost and all defaults are our reconstruction.

    Args:
        record: Routing of harmful and harmless prompts, with ``"router_logits"``.
        n: How many experts to select.
        epsilon: Weight of the prior, in units of the smallest cost.
        shift: The constant :math:`a`, above 0, in percentiles.
        column_weight: Weight of equal shares, from 0 on, in units of the smallest cost.
        span: The tokens that count.

    Returns:
        The experts, with percentiles, costs and plan.

    Raises:
        ValueError: If a number is out of range.
        DesignError: If not both harmful and harmless prompts were recorded, the record has no
            logits, or the plan is not found.
        PromptError: If the harm of a prompt is unknown.
        SpanError: If the record has no such span.

    Example:
        >>> import moe_interp as mi
        >>> model = mi.load_model("organism:topic")
        >>> record = mi.record_routing(model, mi.load_prompts("organism", per_topic=2))
        >>> found = mi.mesa_select(record, n=16)
        >>> found.percentile.of(3, 8) > 90, "L3E8" in found.experts
        (True, False)
    """
    if not shift > 0 or not 0 <= column_weight < np.inf:
        raise ValueError(
            "`shift` must be above 0 and `column_weight` a finite number from 0 on, got "
            f"{shift} and {column_weight}. (Exact totals of experts would decide the selection "
            "alone.)"
        )
    harm = record.prompts.harm
    if harm.all() or not harm.any():
        level = "harmful" if harm.all() else "harmless"
        raise DesignError(
            f"All {len(harm)} prompts are {level}; the mixture needs prompts of both kinds."
        )
    use = selection_frequency(record, span=span).array.values
    mixed = (use[harm].mean(axis=0) + use[~harm].mean(axis=0)) / 2
    percentile = percentiles(mixed)
    cost = beta_cost(percentile, shift)
    prior = mean_router_prob(record, span=span).array.values[harm]
    prior = prior / prior.sum(axis=-1, keepdims=True)
    plan = np.stack(
        [
            _totals(prior[:, row], cost[row], epsilon, column_weight)
            for row in range(len(record.layers))
        ]
    )

    def scores(name: str, unit: str, values: Float[ndarray, "layer expert"]) -> Scores:
        return Scores.of_array(name, unit, values, layers=record.layers)

    totals = scores("plan", "fraction of routing", plan)
    return MesaSelection(
        experts=select_experts(totals, n=n),
        percentile=scores("percentile", "percent of experts", percentile),
        cost=scores("cost", "smallest cost", cost),
        prior=scores("prior", "fraction of routing", prior.mean(axis=0)),
        plan=totals,
        epsilon=epsilon,
    )


def percentiles(use: Float[ndarray, "layer expert"]) -> Float[ndarray, "layer expert"]:
    """Rank of each expert among all of the model, in (0, 100); ties share their mean rank."""
    ranks = rankdata(use.ravel()).reshape(use.shape)
    return 100 * (ranks - 0.5) / use.size


def beta_cost(
    percentile: Float[ndarray, "layer expert"], shift: float
) -> Float[ndarray, "layer expert"]:
    """Inverse of (f + shift) (100 - f)^2, in units of the smallest."""
    cost = 1 / ((percentile + shift) * (100 - percentile) ** 2)
    return cost / cost.min()


def _totals(
    prior: Float[ndarray, "prompt expert"],
    cost: Float[ndarray, " expert"],
    epsilon: float,
    column_weight: float,
) -> Float[ndarray, " expert"]:
    """What the plan of one layer gives to each expert."""
    n_prompts, n_experts = prior.shape
    found = transport_plan(
        np.broadcast_to(cost, prior.shape),
        prior,
        rows=np.full(n_prompts, 1 / n_prompts),
        columns=np.full(n_experts, 1 / n_experts),
        epsilon=epsilon,
        column_weight=column_weight,
    )
    return found.plan.sum(axis=0)
