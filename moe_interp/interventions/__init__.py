"""INTERVENE: take experts away in a run, and measure what changes."""

from moe_interp.interventions._ban import Ban
from moe_interp.interventions._effect import Effect, measure_effect
from moe_interp.interventions._intervention import (
    Batch,
    Edit,
    ExpertIntervention,
    Intervention,
    as_expert_set,
    check_experts,
)
from moe_interp.interventions._many import (
    MODES,
    Mode,
    intervention_maker,
    measure_many,
    mode_name,
)
from moe_interp.interventions._measure import Metric, checked_values, metric_name, metric_unit
from moe_interp.interventions._rows import as_prompt_set, forward_arguments
from moe_interp.interventions._run import RunResult, run
from moe_interp.interventions._zero import Zero

__all__ = [
    "MODES",
    "Ban",
    "Batch",
    "Edit",
    "Effect",
    "ExpertIntervention",
    "Intervention",
    "Metric",
    "Mode",
    "RunResult",
    "Zero",
    "as_expert_set",
    "as_prompt_set",
    "check_experts",
    "checked_values",
    "forward_arguments",
    "intervention_maker",
    "measure_effect",
    "measure_many",
    "metric_name",
    "metric_unit",
    "mode_name",
    "run",
]
