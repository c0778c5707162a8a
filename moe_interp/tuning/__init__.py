"""TUNE: train the chosen experts and nothing else, and see how far routing moved."""

from moe_interp.tuning._delta import ExpertDelta, load_delta, merge_delta
from moe_interp.tuning._drift import RoutingDrift, routing_drift
from moe_interp.tuning._fit_routing import FittedRouting, fit_routing
from moe_interp.tuning._freeze import freeze_except
from moe_interp.tuning._mesa import mesa_tune
from moe_interp.tuning._observe import ModelChange, Observation, model_change, observe
from moe_interp.tuning._reroute import Reroute
from moe_interp.tuning._result import TuneResult
from moe_interp.tuning._settings import TuneSettings
from moe_interp.tuning._slices import Slice, expert_slices, router_parameters
from moe_interp.tuning._train import tune_experts

__all__ = [
    "ExpertDelta",
    "FittedRouting",
    "ModelChange",
    "Observation",
    "Reroute",
    "RoutingDrift",
    "Slice",
    "TuneResult",
    "TuneSettings",
    "expert_slices",
    "fit_routing",
    "freeze_except",
    "load_delta",
    "merge_delta",
    "mesa_tune",
    "model_change",
    "observe",
    "router_parameters",
    "routing_drift",
    "tune_experts",
]
