"""Topic or harm? Shares, permutation tests and a verdict from arrays alone."""

from moe_interp.stats._experts import ExpertTests, expert_tests
from moe_interp.stats._harm import HarmTest, harm_test
from moe_interp.stats._negligible import NegligibilityTest, negligible
from moe_interp.stats._paired import PairedTest, paired_permutation_test
from moe_interp.stats._profile import RoutingProfile
from moe_interp.stats._random_router import random_router_baseline
from moe_interp.stats._shares import RoutingShares, routing_shares
from moe_interp.stats._verdict import FactorEvidence, Verdict, decide, verdict

__all__ = [
    "ExpertTests",
    "FactorEvidence",
    "HarmTest",
    "NegligibilityTest",
    "PairedTest",
    "RoutingProfile",
    "RoutingShares",
    "Verdict",
    "decide",
    "expert_tests",
    "harm_test",
    "negligible",
    "paired_permutation_test",
    "random_router_baseline",
    "routing_shares",
    "verdict",
]
