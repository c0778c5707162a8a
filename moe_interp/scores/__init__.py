"""SCORE: one number for each expert, from routing, from gradients, from ablation; and selection."""

from moe_interp.scores._ablation import ablation_effect
from moe_interp.scores._ablation_curve import AblationCurve, ablation_curve
from moe_interp.scores._attribution import attribution
from moe_interp.scores._compare import Comparison, compare
from moe_interp.scores._contrastive import (
    ContrastParts,
    contrast_parts,
    contrastive_sensitivity,
)
from moe_interp.scores._direction import direction_attribution, mean_difference
from moe_interp.scores._greedy import GreedyAblation, GreedyStep, greedy_ablation
from moe_interp.scores._integrated import integrated_attribution
from moe_interp.scores._logit_direction import logit_direction
from moe_interp.scores._mesa import MesaSelection, mesa_select
from moe_interp.scores._null import matched_null
from moe_interp.scores._null_result import MatchedNull
from moe_interp.scores._off_target import compare_answers, off_target
from moe_interp.scores._ranks import MatchedRanks, matched_ranks
from moe_interp.scores._routing import (
    mean_router_prob,
    mean_routing_weight,
    risk_difference,
    selection_frequency,
)
from moe_interp.scores._scores import Scores
from moe_interp.scores._select import select_experts
from moe_interp.scores._sensitivity import gradient_sensitivity
from moe_interp.scores._side_effects import OffTarget, SideEffect
from moe_interp.scores._stability import StabilitySelection, stability_selection
from moe_interp.scores._sweep import sweep
from moe_interp.scores._transport import TransportPlan, transport_plan
from moe_interp.scores._writing import largest_output, super_experts, write_norm

__all__ = [
    "AblationCurve",
    "Comparison",
    "ContrastParts",
    "GreedyAblation",
    "GreedyStep",
    "MatchedNull",
    "MatchedRanks",
    "MesaSelection",
    "OffTarget",
    "Scores",
    "SideEffect",
    "StabilitySelection",
    "TransportPlan",
    "ablation_curve",
    "ablation_effect",
    "attribution",
    "compare",
    "compare_answers",
    "contrast_parts",
    "contrastive_sensitivity",
    "direction_attribution",
    "gradient_sensitivity",
    "greedy_ablation",
    "integrated_attribution",
    "largest_output",
    "logit_direction",
    "matched_null",
    "matched_ranks",
    "mean_difference",
    "mean_router_prob",
    "mean_routing_weight",
    "mesa_select",
    "off_target",
    "risk_difference",
    "select_experts",
    "selection_frequency",
    "stability_selection",
    "super_experts",
    "sweep",
    "transport_plan",
    "write_norm",
]
