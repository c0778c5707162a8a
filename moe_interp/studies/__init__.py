"""Studies: the analyses of papers, each with the control that the paper lacked."""

from moe_interp.studies._causal import Arm
from moe_interp.studies._drift import drift
from moe_interp.studies._knn_moe2026 import knn_moe2026
from moe_interp.studies._mesa2026 import mesa2026
from moe_interp.studies._olmoe2024 import olmoe2024
from moe_interp.studies._raset2026 import raset2026
from moe_interp.studies._registry import STUDIES, find_study, study_table
from moe_interp.studies._result import StudyResult, check_folder
from moe_interp.studies._routescan2026 import routescan2026
from moe_interp.studies._safex2025 import safex2025
from moe_interp.studies._siddiky2026 import siddiky2026
from moe_interp.studies._steermoe2025 import steermoe2025
from moe_interp.studies._study import Study

__all__ = [
    "STUDIES",
    "Arm",
    "Study",
    "StudyResult",
    "check_folder",
    "drift",
    "find_study",
    "knn_moe2026",
    "mesa2026",
    "olmoe2024",
    "raset2026",
    "routescan2026",
    "safex2025",
    "siddiky2026",
    "steermoe2025",
    "study_table",
]
