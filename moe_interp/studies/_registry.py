"""The studies by name: to add one, write its file and a line here."""

from typing import TYPE_CHECKING

from moe_interp.errors import MoEInterpError
from moe_interp.studies import (
    _drift,
    _knn_moe2026,
    _mesa2026,
    _olmoe2024,
    _raset2026,
    _routescan2026,
    _safex2025,
    _siddiky2026,
    _steermoe2025,
)
from moe_interp.studies._study import Study

if TYPE_CHECKING:
    from pandas import DataFrame

#: Every study by name.
STUDIES: dict[str, Study] = {
    module.STUDY.name: module.STUDY
    for module in (
        _siddiky2026,
        _raset2026,
        _drift,
        _safex2025,
        _steermoe2025,
        _olmoe2024,
        _mesa2026,
        _routescan2026,
        _knn_moe2026,
    )
}


def find_study(name: str) -> Study:
    """Look a study up.

    Args:
        name: Its name.

    Returns:
        The study.

    Raises:
        MoEInterpError: If there is none of that name.
    """
    if name not in STUDIES:
        raise MoEInterpError(f"There is no study {name!r}. Studies: {', '.join(STUDIES)}.")
    return STUDIES[name]


def study_table() -> "DataFrame":
    """Give one row for each study: paper, claim, formulas, and what is added."""
    import pandas as pd

    return pd.DataFrame(
        [
            {
                "study": study.name,
                "paper": study.reference,
                "claim": study.claim,
                "formulas": "; ".join(f"{what}: {source}" for what, source in study.status.items()),
                "we add": study.adds,
            }
            for study in STUDIES.values()
        ]
    )
