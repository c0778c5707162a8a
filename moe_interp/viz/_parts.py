"""Any result as a section of a report: what it says, what it looks like, its table."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
import plotly.graph_objects as go

from moe_interp.viz import _words as words
from moe_interp.viz._document import Part
from moe_interp.viz._figure import Figure
from moe_interp.viz._plot_causal import plot_causal
from moe_interp.viz._plot_curves import plot_calibration, plot_dose
from moe_interp.viz._plot_decomposition import plot_decomposition
from moe_interp.viz._plot_effects import plot_compare, plot_volcano
from moe_interp.viz._plot_experts import plot_experts
from moe_interp.viz._tables import finite

# Numbers of a table that are no quantity of an expert worth a map.
_NO_MAP = {"layer", "expert", "low", "high", "p", "rank"}
_MOST_MAPS = 3


def is_study(results: Any) -> bool:  # noqa: ANN401
    """Tell whether these are the results of a study, as its ``results.json`` holds them.

    Args:
        results: Anything.

    Returns:
        Whether they name a study and its answers.
    """
    return isinstance(results, Mapping) and "study" in results and "answers" in results


def part_of(result: Any) -> Part:  # noqa: ANN401
    """Turn any result into a section.

    Args:
        result: A `Part`, figure, table, text, audit, study, or whatever has a summary or a table.

    Returns:
        The section.

    Raises:
        TypeError: If there is no way to show it.
    """
    if isinstance(result, Part):
        return result
    if isinstance(result, go.Figure):
        said = result.said() if isinstance(result, Figure) else "figure"
        return Part(said[:1].upper() + said[1:], figures={said: result})
    if isinstance(result, pd.DataFrame):
        return Part("Table", figures=_maps(result), tables={"table": result})
    if isinstance(result, str):
        return Part("Note", [result])
    if is_study(result):
        return _of_study(result)
    if isinstance(result, Mapping) and result.get("verdict") and result.get("model"):
        return _of_audit(result)
    if isinstance(getattr(result, "results", None), Mapping):
        return part_of(result.results)
    if hasattr(result, "answers") and hasattr(result, "all_tables"):
        return Part(
            f"{result.study} ({result.paper}) on {result.model['id']}",
            result.answers,
            figures=result.figures(),
            tables=result.all_tables(),
        )
    return _of_any(result)


def _of_any(result: Any) -> Part:  # noqa: ANN401
    summary = [str(result.summary())] if hasattr(result, "summary") else []
    tables = {"table": result.to_frame()} if hasattr(result, "to_frame") else {}
    if not summary and not tables:
        raise TypeError(
            f"A report shows results with summary() or to_frame(), figures, tables, texts, audits "
            f"and studies, got {type(result).__name__}. Turn it into one of these."
        )
    return Part(
        _title(result), lines=summary, figures=_figures(result, tables.get("table")), tables=tables
    )


def _title(result: Any) -> str:  # noqa: ANN401
    # ExpertTests becomes "Expert tests".
    name = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", type(result).__name__)
    return name[:1] + name[1:].lower()


def _figures(result: Any, table: pd.DataFrame | None) -> dict[str, go.Figure]:  # noqa: ANN401
    """Draw what the kind of result asks for; it is known by its fields, not by its class."""
    if table is None:
        return {}
    if hasattr(result, "reliability") or {"predicted", "harmful", "n_prompts"} <= set(table):
        return {"Probabilities beside what happened": plot_calibration(result)}
    if hasattr(result, "order") and hasattr(result, "shown"):
        return {"What is left as experts are taken out": plot_dose(result)}
    if hasattr(result, "correlation") and len(getattr(result, "scores", ())) > 1:
        return {"Two scores of every expert": plot_compare(result)}
    if {"span", "layer", "topic", "harm"} <= set(table):
        return {"Shares of routing variation by layer": plot_decomposition(table)}
    return _maps(table)


def _maps(table: pd.DataFrame) -> dict[str, go.Figure]:
    if not {"layer", "expert"} <= set(table) or table.duplicated(["layer", "expert"]).any():
        return {}
    drawn: dict[str, go.Figure] = {}
    for name in table.select_dtypes("number").columns:
        if str(name) not in _NO_MAP and table[name].notna().any() and len(drawn) < _MOST_MAPS:
            drawn[f"Map of {str(name).replace('_', ' ')}"] = plot_experts(table, quantity=str(name))
    if {"effect", "q"} <= set(table) and table[["effect", "q"]].notna().all(axis=1).any():
        drawn["Effect beside its evidence"] = plot_volcano(table)
    return drawn


def _of_study(results: Mapping[str, Any]) -> Part:
    tables = {str(name): pd.DataFrame(rows) for name, rows in results["tables"].items()}
    drawn: dict[str, go.Figure] = {}
    rows = tables.get("experts")
    maps = results.get("maps")
    if rows is not None and maps:
        truth = results.get("truth") or ()
        for title, column in maps.items():
            if rows[column].notna().any():
                drawn[str(title)] = plot_experts(rows, quantity=column, truth=truth)
    elif rows is not None:
        drawn |= _maps(rows)
    arms: Sequence[Mapping[str, Any]] = results.get("arms") or ()
    if any(arm.get("null") and finite(arm.get("observed")) is not None for arm in arms):
        about = {"metric": arms[0].get("metric"), "unit": arms[0].get("unit"), "sets": list(arms)}
        drawn["Changes beside random experts matched on layer and use"] = plot_causal(about)
    return Part(
        f"{results['study']} ({results.get('paper')}) on {results['model']['id']}",
        [str(answer) for answer in results["answers"]],
        figures=drawn,
        tables=tables,
    )


def _of_audit(results: Mapping[str, Any]) -> Part:
    span = str(results["primary_span"])
    said = [
        f"{words.title_of(results['verdict'])}. {words.meaning_of(results['verdict'], span)}",
        words.shares_sentence(results, span),
    ]
    check = results.get("causal") or {}
    drawn: dict[str, go.Figure] = {}
    if results.get("decomposition"):
        drawn["What routing follows, layer by layer"] = plot_decomposition(results, spans=[span])
    if finite(check.get("observed")) is not None:
        said.append(words.causal_brief(check))
        if check.get("null"):
            drawn["The selected experts beside matched random ones"] = plot_causal(check)
    rows = pd.DataFrame(results.get("experts") or [])
    if "effect" in rows and rows["effect"].notna().any():
        truth = (results.get("truth") or {}).get("safety_experts") or ()
        drawn["Use by harmful minus harmless prompts"] = plot_experts(results, truth=truth)
    drawn |= evidence_of(results)
    return Part(f"Audit of {results['model'].get('id')}", said, figures=drawn)


def evidence_of(results: Mapping[str, Any]) -> dict[str, go.Figure]:
    """Draw an audit's effects beside their evidence, and its counts beside its causes.

    Args:
        results: An audit's results.

    Returns:
        The figures that its numbers allow, by what they show.
    """
    rows = pd.DataFrame(results.get("experts") or [])
    drawn: dict[str, go.Figure] = {}
    if {"effect", "q"} <= set(rows) and rows[["effect", "q"]].notna().all(axis=1).any():
        drawn["Effect beside its evidence"] = plot_volcano(results)
    both = ["selection_frequency", "ablation_effect"]
    if set(both) <= set(rows) and rows[both].notna().all(axis=1).sum() > 1:
        chosen = [
            (row["layer"], row["expert"]) for row in results["experts"] if row.get("selected")
        ]
        drawn["Count beside cause"] = plot_compare(results, named=chosen)
    return drawn
