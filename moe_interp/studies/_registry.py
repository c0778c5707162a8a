"""The studies by name: their paper, their claim, and where each formula comes from."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from moe_interp.errors import MoEInterpError
from moe_interp.studies._result import StudyResult

if TYPE_CHECKING:
    from pandas import DataFrame


@dataclass(frozen=True)
class Study:
    """One paper's analysis.

    Attributes:
        name: What it is called here.
        paper: Short reference.
        arxiv: Id of the paper on arXiv.
        claim: What the paper says.
        status: Where each formula comes from, by formula: read in full, read in code, abstract,
            secondary notes, or our reconstruction.
        adds: What is done here that the paper does not do.
        run: The study: ``run(model, prompts, *, rng)``.
    """

    name: str
    paper: str
    arxiv: str
    claim: str
    status: Mapping[str, str]
    adds: str
    run: Callable[..., StudyResult]

    @property
    def reference(self) -> str:
        """The paper with its arXiv id."""
        return f"{self.paper}, arXiv {self.arxiv}"

    def to_dict(self) -> dict[str, Any]:
        """Give everything but the function."""
        return {name: value for name, value in vars(self).items() if name != "run"}


#: Every study by name, filled by the modules that hold them.
STUDIES: dict[str, Study] = {}


def register(study: Study) -> Study:
    """Add a study to the list.

    Args:
        study: The study.

    Returns:
        The same.

    Raises:
        ValueError: If there is one of that name.
    """
    if study.name in STUDIES:
        raise ValueError(f"There is a study {study.name!r} already.")
    STUDIES[study.name] = study
    return study


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
