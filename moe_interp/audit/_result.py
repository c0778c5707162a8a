"""What an audit returns, how it is written without losing anything, and how it is read back."""

import json
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from moe_interp.audit._words import controls_line
from moe_interp.capture import RoutingRecord, open_record
from moe_interp.errors import ResultError, ResultExistsError
from moe_interp.notebook import Shown
from moe_interp.viz import write_report

SCHEMA_VERSION = 1
_RESULTS, _EXPERTS, _RECORD, _REPORT = "results.json", "experts.csv", "record.zarr", "report.html"
_FILES = (_RESULTS, _EXPERTS, _RECORD, _REPORT)


@dataclass(frozen=True)
class AuditResult(Shown):
    """All numbers of one audit, and the record of routing they were computed from.

    Attributes:
        results: The content of ``results.json``: plain numbers, texts, lists and dictionaries.
        record: The routing of every prompt, token by token.
    """

    results: dict[str, Any]
    record: RoutingRecord

    def to_dict(self) -> dict[str, Any]:
        """Give the content of ``results.json``; it holds no NaN and survives JSON unchanged."""
        return json.loads(_as_json(self.results))

    def to_frame(self) -> pd.DataFrame:
        """Give one row per expert: its effects, tests, scores, and whether it was selected."""
        return pd.DataFrame(self.results["experts"])

    def summary(self) -> str:
        """Say the verdicts, the causal check and the ground truth in a few lines of text."""
        return "\n".join(_summary_lines(self.results))

    def save(self, folder: str | Path, *, force: bool = False) -> None:
        """Write ``results.json``, ``experts.csv``, ``record.zarr`` and ``report.html``.

        Everything is written beside the folder first and moved in when complete, so that a
        failure on the way leaves an older result as it was. Other files there are not touched.

        Args:
            folder: Where to write; made if it does not exist.
            force: Replace a result that already stands there.

        Raises:
            ResultExistsError: If the folder holds a result and `force` is not set.
        """
        folder = Path(folder)
        check_output(folder, force=force)
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".unfinished-", dir=folder) as unfinished:
            draft = Path(unfinished)
            (draft / _RESULTS).write_text(_as_json(self.results) + "\n", encoding="utf-8")
            self.to_frame().to_csv(draft / _EXPERTS, index=False)
            self.record.save(draft / _RECORD)
            write_report(self.to_dict(), self.record, draft / _REPORT)
            for name in _FILES:
                _replace(draft / name, folder / name)


def check_output(folder: str | Path, *, force: bool = False) -> None:
    """Refuse a place that already holds a result, before any time is spent.

    Args:
        folder: Where a result is to be written.
        force: Whether an older result may be replaced.

    Raises:
        ResultExistsError: If the folder holds a result and `force` is not set, or if it is a file.
    """
    ResultExistsError.unless_free(folder, _FILES, what="an audit", force=force)


def read_audit(folder: str | Path) -> AuditResult:
    """Read an audit that was written by :meth:`AuditResult.save`.

    Args:
        folder: The folder it was written to.

    Returns:
        The result, with its record opened.

    Raises:
        ResultError: If there is no result, or it was written in another schema.
    """
    path = Path(folder) / _RESULTS
    if not path.is_file():
        raise ResultError(
            f"{str(folder)!r} holds no {_RESULTS}. Give the folder that `moe-interp audit` wrote."
        )
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ResultError(f"{str(path)!r} is not JSON: {error}.") from None
    version = results.get("schema_version") if isinstance(results, dict) else None
    if version != SCHEMA_VERSION:
        raise ResultError(
            f"{str(path)!r} has schema_version {version!r}; this version of moe_interp reads "
            f"{SCHEMA_VERSION}. Run the audit again."
        )
    return AuditResult(results=results, record=open_record(Path(folder) / _RECORD))


def _as_json(results: dict[str, Any]) -> str:
    return json.dumps(results, indent=2, allow_nan=False, ensure_ascii=False)


def _replace(source: Path, target: Path) -> None:
    if target.is_dir() and not target.is_symlink():
        shutil.rmtree(target)
    elif target.exists() or target.is_symlink():
        target.unlink()
    shutil.move(source, target)


def _summary_lines(results: dict[str, Any]) -> list[str]:
    model, prompts = results["model"], results["prompts"]
    lines = [
        f"{model['id']}: {model['model_type']}, {len(model['moe_layers'])} MoE layers × "
        f"{model['n_experts']} experts, top-{model['top_k']}",
        f"{prompts['n']} prompts ({prompts['n_harmful']} harmful, {prompts['n_harmless']} "
        f"harmless) on {len(prompts['topics'])} topics; exchange unit: {prompts['scheme']}",
        "",
    ]
    for span in results["spans"]:
        lines.append(f"verdict on {span} tokens: {results['verdicts'][span]}")
        lines += _share_lines(results, span)
    if results["verdict_note"]:
        lines += ["", results["verdict_note"]]
    if results.get("sensitivity"):
        lines += ["", controls_line(results["sensitivity"])]
        lines += [f"What would change it: {results['what_would_change'][results['primary_span']]}"]
    lines += ["", results["causal"]["sentence"]]
    if results["truth"]:
        lines += [results["truth"]["sentence"]]
    lines += ["", f"{results['seconds']['total']:.0f} s in all"]
    return lines


def _share_lines(results: dict[str, Any], span: str) -> list[str]:
    """The shares behind a verdict; where there are none, the reason why."""
    pooled = [
        row for row in results["decomposition"] if (row["span"], row["layer"]) == (span, "all")
    ]
    if not pooled or pooled[0]["topic"] is None:
        return [f"  {results['reasons'][span]}"]
    lines = []
    for name, factor in (("topic", "topic"), ("harm", "harm_total")):
        share, low, high, random_low, random_high = (
            # Rounded and plus 0, so that nothing is printed as -0.0.
            round(100 * pooled[0][f"{factor}{end}"], 1) + 0.0
            for end in ("", "_low", "_high", "_random_low", "_random_high")
        )
        lines.append(
            f"  {name:<5} {share:5.1f} % of routing [{low:.1f}, {high:.1f}]; "
            f"random routers {random_low:.1f} to {random_high:.1f}"
        )
    return lines
