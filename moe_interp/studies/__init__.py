"""Studies: the analyses of papers, each with the control that the paper lacked."""

from moe_interp.studies._causal import Arm
from moe_interp.studies._registry import STUDIES, Study, find_study, study_table
from moe_interp.studies._result import StudyResult, check_folder
from moe_interp.studies._siddiky2026 import siddiky2026

__all__ = [
    "STUDIES",
    "Arm",
    "Study",
    "StudyResult",
    "check_folder",
    "find_study",
    "siddiky2026",
    "study_table",
]
