"""SCORE: one number for each expert, from routing, from gradients, from ablation; and selection."""

from moe_interp.scores._ablation import ablation_effect
from moe_interp.scores._attribution import attribution
from moe_interp.scores._greedy import GreedyAblation, GreedyStep, greedy_ablation
from moe_interp.scores._null import MatchedNull, matched_null
from moe_interp.scores._routing import risk_difference, selection_frequency
from moe_interp.scores._scores import Scores
from moe_interp.scores._select import select_experts

__all__ = [
    "GreedyAblation",
    "GreedyStep",
    "MatchedNull",
    "Scores",
    "ablation_effect",
    "attribution",
    "greedy_ablation",
    "matched_null",
    "risk_difference",
    "select_experts",
    "selection_frequency",
]
