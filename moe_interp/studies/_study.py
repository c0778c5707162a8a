"""What a study is: its paper, its claim, and where each of its formulas comes from."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from numpy.random import Generator

from moe_interp.models import MoEModel
from moe_interp.prompts import PromptSet
from moe_interp.studies._result import StudyResult, about_model, about_prompts, seed_of


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

    def result(
        self,
        model: MoEModel,
        prompts: PromptSet,
        rng: Generator,
        *,
        settings: Mapping[str, Any],
        **found: Any,  # noqa: ANN401
    ) -> StudyResult:
        """Make the result of a run.

        Args:
            model: The model.
            prompts: The prompts.
            rng: The source of randomness; its seed is the first of the settings.
            settings: The options of the run.
            **found: The other attributes of a `StudyResult`.

        Returns:
            The result.
        """
        return StudyResult(
            study=self.name,
            paper=self.reference,
            status=self.status,
            model=about_model(model),
            prompts=about_prompts(prompts),
            settings={"seed": seed_of(rng), **settings},
            **found,
        )

    def to_dict(self) -> dict[str, Any]:
        """Give everything but the function."""
        return {name: value for name, value in vars(self).items() if name != "run"}
