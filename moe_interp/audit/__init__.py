"""The main job: is routing topic- or harm-driven, and which experts carry the refusal?"""

from moe_interp.audit._examine import RoutingExamination, examine_routing
from moe_interp.audit._result import AuditResult, check_output, read_audit
from moe_interp.audit._run import run_audit

__all__ = [
    "AuditResult",
    "RoutingExamination",
    "check_output",
    "examine_routing",
    "read_audit",
    "run_audit",
]
