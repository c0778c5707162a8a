"""INTERVENE: change routing and experts in a run, and measure what changes."""

from moe_interp.interventions._add_vector import AddVector
from moe_interp.interventions._ban import Ban
from moe_interp.interventions._checks import as_expert_set, check_experts
from moe_interp.interventions._edited import edited
from moe_interp.interventions._effect import Effect, measure_effect
from moe_interp.interventions._force import Force
from moe_interp.interventions._intervention import (
    Batch,
    Edit,
    ExpertIntervention,
    Intervention,
    PlacedIntervention,
    as_recipe,
)
from moe_interp.interventions._many import (
    MODES,
    Mode,
    intervention_maker,
    measure_many,
    mode_name,
)
from moe_interp.interventions._mean import Mean, MeanOutputs, mean_outputs
from moe_interp.interventions._measure import (
    Metric,
    checked_values,
    judged_there,
    measure,
    metric_name,
    metric_unit,
)
from moe_interp.interventions._memory import RoutingMemory
from moe_interp.interventions._patch_output import PatchBlock, PatchOutput
from moe_interp.interventions._patching import PatchResult, patch
from moe_interp.interventions._renormalise import Renormalise
from moe_interp.interventions._resample import Resample
from moe_interp.interventions._responses import response_losses
from moe_interp.interventions._retrieve import RetrieveRouting
from moe_interp.interventions._rows import as_prompt_set, end_tokens, forward_arguments
from moe_interp.interventions._run import RunResult, run
from moe_interp.interventions._scale import Scale
from moe_interp.interventions._source import CapturedRun, outputs_of, routing_of
from moe_interp.interventions._steer import Steer
from moe_interp.interventions._texts import text_losses
from moe_interp.interventions._transplant import Transplant
from moe_interp.interventions._zero import Zero

__all__ = [
    "MODES",
    "AddVector",
    "Ban",
    "Batch",
    "CapturedRun",
    "Edit",
    "Effect",
    "ExpertIntervention",
    "Force",
    "Intervention",
    "Mean",
    "MeanOutputs",
    "Metric",
    "Mode",
    "PatchBlock",
    "PatchOutput",
    "PatchResult",
    "PlacedIntervention",
    "Renormalise",
    "Resample",
    "RetrieveRouting",
    "RoutingMemory",
    "RunResult",
    "Scale",
    "Steer",
    "Transplant",
    "Zero",
    "as_expert_set",
    "as_prompt_set",
    "as_recipe",
    "check_experts",
    "checked_values",
    "edited",
    "end_tokens",
    "forward_arguments",
    "intervention_maker",
    "judged_there",
    "mean_outputs",
    "measure",
    "measure_effect",
    "measure_many",
    "metric_name",
    "metric_unit",
    "mode_name",
    "outputs_of",
    "patch",
    "response_losses",
    "routing_of",
    "run",
    "text_losses",
]
