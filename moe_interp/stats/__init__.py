"""Topic or harm? Shares, permutation tests and a verdict from arrays alone."""

from moe_interp.stats._claim import HalfClaim, RoutingClaim, routing_claim
from moe_interp.stats._coactivation import Coactivation, coactivation, router_saturation
from moe_interp.stats._concentration import Concentration, concentration
from moe_interp.stats._conditional import ConditionalMI, conditional_mi
from moe_interp.stats._design_effect import DesignEffect, design_effect
from moe_interp.stats._detector import detect_harm
from moe_interp.stats._detector_result import Detected, Detection
from moe_interp.stats._experts import ExpertTests, expert_tests
from moe_interp.stats._features import bag_of_tokens, random_expert_features
from moe_interp.stats._harm import HarmTest, harm_test
from moe_interp.stats._limits import FactorLimits
from moe_interp.stats._load_features import LoadFeatures, load_features
from moe_interp.stats._naive import NaiveTokenTest, naive_token_test
from moe_interp.stats._negligible import NegligibilityTest, negligible
from moe_interp.stats._outcomes import PairedOutcomes, holm, mcnemar
from moe_interp.stats._paired import PairedTest, paired_permutation_test
from moe_interp.stats._power import Power, power
from moe_interp.stats._profile import RoutingProfile
from moe_interp.stats._random_router import random_router_baseline
from moe_interp.stats._routing_contrast import RoutingContrast, routing_contrast
from moe_interp.stats._sensitivity import ConfoundSensitivity, Controlled, confound_sensitivity
from moe_interp.stats._shares import RoutingShares, routing_shares
from moe_interp.stats._specialisation import (
    DomainSpecialisation,
    StandingCommittee,
    VocabularySpecialisation,
    domain_specialisation,
    standing_committee,
    vocabulary_specialisation,
)
from moe_interp.stats._swap import SwapDistances, swap_distances
from moe_interp.stats._tokens import TokenRouting
from moe_interp.stats._transfer import transfer_auc
from moe_interp.stats._transfer_result import BaselineAUC, SplitAUC, TransferAUC
from moe_interp.stats._verdict import FactorEvidence, Verdict, decide, verdict

__all__ = [
    "BaselineAUC",
    "Coactivation",
    "Concentration",
    "ConditionalMI",
    "ConfoundSensitivity",
    "Controlled",
    "DesignEffect",
    "Detected",
    "Detection",
    "DomainSpecialisation",
    "ExpertTests",
    "FactorEvidence",
    "FactorLimits",
    "HalfClaim",
    "HarmTest",
    "LoadFeatures",
    "NaiveTokenTest",
    "NegligibilityTest",
    "PairedOutcomes",
    "PairedTest",
    "Power",
    "RoutingClaim",
    "RoutingContrast",
    "RoutingProfile",
    "RoutingShares",
    "SplitAUC",
    "StandingCommittee",
    "SwapDistances",
    "TokenRouting",
    "TransferAUC",
    "Verdict",
    "VocabularySpecialisation",
    "bag_of_tokens",
    "coactivation",
    "concentration",
    "conditional_mi",
    "confound_sensitivity",
    "decide",
    "design_effect",
    "detect_harm",
    "domain_specialisation",
    "expert_tests",
    "harm_test",
    "holm",
    "load_features",
    "mcnemar",
    "naive_token_test",
    "negligible",
    "paired_permutation_test",
    "power",
    "random_expert_features",
    "random_router_baseline",
    "router_saturation",
    "routing_claim",
    "routing_contrast",
    "routing_shares",
    "standing_committee",
    "swap_distances",
    "transfer_auc",
    "verdict",
    "vocabulary_specialisation",
]
