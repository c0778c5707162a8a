"""What a study returns: numbers, tables and figures, written without losing an older result."""

import json
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import plotly.graph_objects as go
from numpy.random import Generator

from moe_interp.errors import ResultExistsError
from moe_interp.models import MoEModel
from moe_interp.notebook import Shown
from moe_interp.prompts import PromptSet
from moe_interp.stats._results import plain
from moe_interp.studies._causal import Arm, arm_table
from moe_interp.viz import Part, plot_causal, plot_experts, write_document

SCHEMA_VERSION = 1
_RESULTS, _REPORT = "results.json", "report.html"


@dataclass(frozen=True)
class StudyResult(Shown):
    """The outcome of one study on one model.

    Attributes:
        study: Name of the study.
        paper: Its paper, with year and arXiv id.
        status: Where each formula comes from, by formula.
        model: What the model is.
        prompts: What the prompts are.
        settings: The options of the run.
        answers: What was found, in sentences.
        numbers: What was found, in numbers.
        tables: Tables by name; ``experts`` has one row for each expert.
        arms: Changes of experts beside their matched nulls.
        maps: Columns of the table ``experts`` to draw as maps, by what they show.
        truth: The experts that are known to be planted, as labels; empty for a real model.
    """

    study: str
    paper: str
    status: Mapping[str, str]
    model: Mapping[str, Any]
    prompts: Mapping[str, Any]
    settings: Mapping[str, Any]
    answers: tuple[str, ...]
    numbers: Mapping[str, Any]
    tables: Mapping[str, pd.DataFrame] = field(repr=False)
    arms: tuple[Arm, ...] = field(default=(), repr=False)
    maps: Mapping[str, str] = field(default_factory=dict, repr=False)
    truth: tuple[str, ...] = ()

    def arm(self, name: str) -> Arm:
        """Look up one change.

        Args:
            name: Its name.

        Returns:
            The change beside its matched null.

        Raises:
            KeyError: If there was no such change.
        """
        found = {arm.name: arm for arm in self.arms}
        if name not in found:
            raise KeyError(f"There is no arm {name!r}. Arms: {', '.join(found) or 'none'}.")
        return found[name]

    def to_frame(self) -> pd.DataFrame:
        """Give one row per expert."""
        return self.tables["experts"].copy()

    def all_tables(self) -> dict[str, pd.DataFrame]:
        """Give every table by name, that of the changes among them."""
        arms = {"arms": arm_table(self.arms)} if self.arms else {}
        return {**self.tables, **arms}

    def to_dict(self) -> dict[str, Any]:
        """Give everything as JSON-safe values; NaN becomes None."""
        return plain(
            {
                "schema_version": SCHEMA_VERSION,
                "study": self.study,
                "paper": self.paper,
                "status": self.status,
                "model": self.model,
                "prompts": self.prompts,
                "settings": self.settings,
                "answers": self.answers,
                "numbers": self.numbers,
                "arms": [arm.to_dict() for arm in self.arms],
                "maps": self.maps,
                "truth": self.truth,
                "tables": {
                    name: table.astype(object).to_dict("records")
                    for name, table in self.tables.items()
                },
            }
        )

    def summary(self) -> str:
        """Say what was found, and which formulas are reconstructions, in a few lines."""
        head = f"{self.study} ({self.paper}) on {self.model['id']}, {self.prompts['n']} prompts"
        said = [f"- {answer}" for answer in self.answers]
        return "\n".join([head, *said, _of_formulas(self.status)])

    def figures(self) -> dict[str, go.Figure]:
        """Draw the maps of experts, and each change beside its matched null."""
        rows = self.tables["experts"]
        drawn = {
            title: plot_experts(rows, quantity=column, truth=self.truth)
            for title, column in self.maps.items()
            if rows[column].notna().any()
        }
        shown = [arm.to_dict() for arm in self.arms]
        if shown:
            about = {"metric": shown[0]["metric"], "unit": shown[0]["unit"], "sets": shown}
            drawn["Changes beside random experts matched on layer and use"] = plot_causal(about)
        return drawn

    def write(self, folder: str | Path, *, force: bool = False) -> None:
        """Write ``results.json``, ``report.html`` and one CSV for each table.

        Everything is written beside the folder first and moved in when complete. Other files
        there are not touched.

        Args:
            folder: Where to write; made if it does not exist.
            force: Replace a result that already stands there.

        Raises:
            ResultExistsError: If the folder holds a result and `force` is not set.
        """
        folder = Path(folder)
        check_folder(folder, force=force)
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".unfinished-", dir=folder) as unfinished:
            draft = Path(unfinished)
            text = json.dumps(self.to_dict(), indent=2, allow_nan=False, ensure_ascii=False)
            (draft / _RESULTS).write_text(text + "\n", encoding="utf-8")
            for name, table in self.all_tables().items():
                table.to_csv(draft / f"{name}.csv", index=False)
            self._write_report(draft / _REPORT)
            for path in sorted(draft.iterdir()):
                shutil.move(path, folder / path.name)

    def _write_report(self, path: Path) -> None:
        card = self.model.get("card") or {}
        sources = pd.DataFrame(list(self.status.items()), columns=["formula", "source"])
        settings = pd.DataFrame(
            [(name, str(value)) for name, value in self.settings.items()],
            columns=["setting", "value"],
        )
        write_document(
            path,
            kicker=f"Study {self.study}: {self.paper}",
            title=str(self.model["id"]),
            facts=[f"{self.prompts['n']} prompts", f"{self.model['n_experts']} experts a layer"],
            note=card.get("disclaimer"),
            parts=[
                Part("What was found", self.answers),
                Part("Figures", figures=self.figures()),
                Part("Tables", tables=self.all_tables()),
                Part(
                    "Method",
                    [_of_formulas(self.status)],
                    tables={"Where the formulas come from": sources, "Settings": settings},
                ),
            ],
        )


def check_folder(folder: str | Path, *, force: bool = False) -> None:
    """Refuse a place that already holds a result, before any time is spent.

    Args:
        folder: Where a result is to be written.
        force: Whether an older result may be replaced.

    Raises:
        ResultExistsError: If the folder holds a result and `force` is not set, or if it is a file.
    """
    ResultExistsError.unless_free(folder, (_RESULTS, _REPORT), what="a study", force=force)


def about_model(model: MoEModel) -> dict[str, Any]:
    """Say what the model is, for a result."""
    return {"id": model.id, **model.architecture.to_dict(), "card": model.card}


def about_prompts(prompts: PromptSet) -> dict[str, Any]:
    """Say what the prompts are, for a result."""
    return {
        "source": prompts.source,
        "n": len(prompts),
        "n_pairs": prompts.n_pairs,
        "digest": prompts.digest,
    }


def seed_of(rng: Generator) -> object:
    """The seed that a source of randomness was made from, for a result; None if not known."""
    return getattr(rng.bit_generator.seed_seq, "entropy", None)


def _of_formulas(status: Mapping[str, str]) -> str:
    own = [name for name, source in status.items() if "reconstruction" in source]
    return f"Our reconstruction, the paper's own formula not being at hand: {', '.join(own)}." * (
        bool(own)
    )
