"""One self-contained page that shows an audit: the verdict first, then everything behind it."""

from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from moe_interp.errors import ResultError
from moe_interp.viz import _answers as answers
from moe_interp.viz import _sections as sections
from moe_interp.viz._controls import controls
from moe_interp.viz._document import Part, write_document
from moe_interp.viz._figure import plain_figure_data, rounded
from moe_interp.viz._html import NO_SCRIPT
from moe_interp.viz._page import asset, page, page_palette
from moe_interp.viz._parts import evidence_of, is_study, part_of
from moe_interp.viz._plot_causal import plot_causal
from moe_interp.viz._plot_decomposition import plot_decomposition
from moe_interp.viz._plot_experts import QUANTITIES, plot_experts
from moe_interp.viz._sample import pack_tokens
from moe_interp.viz._tables import Recorded, finite
from moe_interp.viz._theme import (
    DIVERGING,
    DIVERGING_DARK,
    ON_DARK,
    SEQUENTIAL,
    SEQUENTIAL_DARK,
)
from moe_interp.viz._view import write_page

SCHEMA_VERSIONS = (1,)
# What the page says of an expert that is picked.
_TOLD = (
    "effect",
    "p_adjusted",
    "selection_frequency",
    "attribution",
    "ablation_effect",
    "selected",
)
_NEEDED = ("model", "prompts", "spans", "primary_span", "verdict")

_GENERAL = (
    "An expert L7E3 is expert 3 of decoder layer 7; both count from 0. Layers without experts are "
    "not shown.",
    "Blue is positive, red negative, on one scale around zero. Blank cells were not measured. A "
    "filled dot marks an adjusted p-value below 0.05, a ring an expert that was selected, a cross "
    "one that is known to be planted.",
    "The unit of inference is the prompt, never the token. Intervals hold 95% unless they say "
    "otherwise. q-values are Benjamini and Hochberg's; adjusted p-values hold for all experts at "
    "once.",
    "Matched random experts are of the same layers and are used as often as the chosen ones. What "
    "lies among them would have come of any experts so much used.",
    "That an expert is used more for some prompts does not make it matter for them, and the "
    "reverse.",
)

# What holds for every audit; what was done in one run is in its results.
NOTES = {
    "Routing share": "Each prompt is described by how often its tokens chose each expert of a "
    "layer. The variation of these profiles between prompts (Hellinger distance) is divided into "
    "what topic explains, what harm explains, and what harm explains differently in each topic. "
    "What chance alone would give is subtracted, so a share near 0% means nothing was found, and "
    "may be slightly negative.",
    "Random routers": "Even a router of random numbers separates prompts, because the hidden "
    "states it reads already differ. The grey bands show that amount. Only what lies beyond them "
    "is due to the router itself.",
    "Tokens": "Every number belongs to a named set of tokens: user tokens are the user's own "
    "text, prompt tokens include the chat template, last is the last token before the answer.",
    "What this does not say": "That an expert is used more for harmful prompts does not make it "
    "matter for refusing them, and the reverse. The two questions are answered separately.",
}


def write_report(
    results: Any,  # noqa: ANN401
    record: Recorded | None,
    path: str | Path,
    *,
    title: str | None = None,
    force: bool = False,
    compress: bool = True,
) -> Path:
    """Write results as one HTML page that opens offline and makes no request.

    An audit has its verdict first. Anything else, and a list of anything, gets one section for
    each result: what it says in words, its figures, its table. With a record there is a view of
    its tokens, and a click on an expert in a figure shows the tokens it works on. The page
    computes no statistic; what is missing is said to be not measured.

    Args:
        results: The content of an audit's or a study's ``results.json``, a result with
            ``summary`` or ``to_frame``, a figure, a table, a `Part`, a text, or a list of these.
        record: The routing record, for the tokens; None leaves them out.
        path: The HTML file; missing folders are made.
        title: What the page is about; by default what its results are of.
        force: Replace a file that stands there.
        compress: Pack scripts and data; without, the page is 2.5 times as large.

    Returns:
        The path that was written.

    Raises:
        ResultError: If the results lack what a report needs, or have an unknown schema.
        ResultExistsError: If there is a file already and `force` is not set.
        TypeError: If there is no way to show a result.
    """
    path = Path(path)
    if isinstance(results, Mapping) and not is_study(results):
        return _write_audit(results, record, path, title=title, force=force, compress=compress)
    listed = list(results) if isinstance(results, list | tuple) else [results]
    if not listed:
        raise ResultError("There are no results to report. Give at least one.")
    parts = [part_of(one) for one in listed]
    return write_document(
        path,
        kicker="Report" if len(parts) > 1 else "Result",
        title=title or parts[0].title + (f" and {len(parts) - 1} more" * (len(parts) > 1)),
        facts=[f"{len(parts)} results" if len(parts) > 1 else "1 result", _version()],
        note=_disclaimers(listed),
        parts=[*parts, Part("How to read this", _GENERAL)],
        record=record,
        force=force,
        compress=compress,
    )


def _write_audit(
    results: Mapping[str, Any],
    record: Recorded | None,
    path: Path,
    *,
    title: str | None,
    force: bool,
    compress: bool,
) -> Path:
    _check(results)
    figures = evidence_of(results)
    document = page(
        title=title or f"Routing audit of {results['model'].get('id')}",
        body=_body(results, record, list(figures)),
        style=page_palette() + asset("report.css"),
        script=asset("parts.js") + asset("report.js"),
        data=_data(results, record)
        | {"figures": {f"f{i}": plain_figure_data(one) for i, one in enumerate(figures.values())}},
        compress=compress,
    )
    write_page(document, path, force=force)
    return path


def _version() -> str:
    return f"moe_interp {version('moe-interp')}"


def _disclaimers(results: Sequence[Any]) -> str | None:
    """An organism is no evidence about real models: said once, at the top."""
    said = []
    for one in results:
        model = one.get("model") if isinstance(one, Mapping) else getattr(one, "model", None)
        card = (model.get("card") if isinstance(model, Mapping) else None) or {}
        if card.get("disclaimer"):
            said.append(str(card["disclaimer"]))
    return " ".join(dict.fromkeys(said)) or None


def _check(results: Mapping[str, Any]) -> None:
    given = results.get("schema_version")
    if given not in SCHEMA_VERSIONS:
        known = ", ".join(map(str, SCHEMA_VERSIONS))
        raise ResultError(
            f"The results have schema_version {given!r}; this report knows {known}. "
            "Run the audit again with this version of moe_interp."
        )
    missing = [key for key in _NEEDED if results.get(key) is None]
    if missing:
        raise ResultError(
            f"The results lack {', '.join(missing)}. Pass the whole content of an audit's "
            "results.json."
        )


def _body(results: Mapping[str, Any], record: Recorded | None, figures: list[str]) -> str:
    parts = [
        answers.verdict(results),
        answers.causal(results),
        sections.decomposition(results),
        controls(results),
        sections.expert_map(results),
        sections.evidence({said: f"f{i}" for i, said in enumerate(figures)}),
        sections.tokens(record is not None),
        sections.top_experts(results),
        sections.truth(results),
        sections.prompts(results),
        sections.method(results, NOTES),
        sections.versions(results),
    ]
    return (
        '<a class="skip" href="#verdict">Skip to the verdict</a>'
        f'<div class="page">{answers.header(results)}<main>{"".join(parts)}</main>'
        f"{NO_SCRIPT}</div>"
    )


def _data(results: Mapping[str, Any], record: Recorded | None) -> dict[str, Any]:
    shown = [row["span"] for row in results.get("decomposition") or []]
    causal = results.get("causal")
    can_show_null = bool(
        causal and causal.get("null") and finite(causal.get("observed")) is not None
    )
    return {
        "causal": plain_figure_data(plot_causal(causal)) if can_show_null else None,
        "decomposition": {
            span: plain_figure_data(plot_decomposition(results, spans=[span]))
            for span in results["spans"]
            if span in shown
        },
        "map": _map(results),
        # In words below the map, where four digits are enough.
        "experts": {
            f"L{row['layer']}E{row['expert']}": rounded(row, digits=4)
            for row in results.get("experts") or []
        },
        "tokens": pack_tokens(record.dataset) if record is not None else None,
        "n_experts": results["model"].get("n_experts"),
        "scales": {
            "diverging": [DIVERGING, DIVERGING_DARK],
            "sequential": [SEQUENTIAL, SEQUENTIAL_DARK],
        },
        "on_dark": ON_DARK,
    }


def _map(results: Mapping[str, Any]) -> dict[str, Any] | None:
    rows = results.get("experts") or []
    truth = (results.get("truth") or {}).get("safety_experts") or []
    figures = {}
    for quantity in QUANTITIES:
        column = "p_adjusted" if quantity.startswith("-log10") else quantity
        if any(finite(row.get(column)) is not None for row in rows):
            figures[quantity] = plain_figure_data(
                plot_experts(results, quantity=quantity, truth=truth)
            )
    if not figures:
        return None
    first = next(iter(figures.values()))
    traces = {}
    for quantity, figure in figures.items():
        heat = figure["data"][0]
        kept = ("z", "zmin", "zmax", "hovertemplate", "colorbar")
        scale = "diverging" if QUANTITIES[quantity][2] else "sequential"
        traces[quantity] = {key: heat[key] for key in kept} | {"scale": scale}
    return {"figure": first, "traces": traces}
