"""What lies behind the answers: shares per layer, experts, tokens, prompts, method, versions."""

from collections.abc import Mapping
from html import escape
from typing import Any

from moe_interp.viz import _words as words
from moe_interp.viz._html import Raw, absent, definitions, figure, plain, section, table
from moe_interp.viz._plot_experts import QUANTITIES
from moe_interp.viz._tables import finite

TOP_EXPERTS = 12


def decomposition(results: Mapping[str, Any]) -> str:
    """Frame the shares per layer, with one tab for each span.

    Args:
        results: An audit's results.

    Returns:
        HTML.
    """
    if not results.get("decomposition"):
        return section("decomposition", "What routing follows, layer by layer", absent())
    tabs = "".join(
        f'<label><input type="radio" name="span" value="{escape(str(span))}"'
        f"{' checked' if span == results['primary_span'] else ''}><span>{escape(str(span))}</span>"
        "</label>"
        for span in results["spans"]
    )
    body = (
        f'<fieldset class="tabs"><legend>Tokens</legend>{tabs}</fieldset>'
        + figure("decomposition", "Shares of topic and harm per layer, with random-router bands")
        + '<p class="caption">Points: share of the variation of routing between prompts, with 95% '
        "jackknife intervals. Grey: the middle of what routers drawn at random show on the same "
        "hidden states; a point inside its grey box is inherited, not added by the router. "
        "“Harm by topic” is harm that acts differently in each topic. “all” pools the layers.</p>"
    )
    return section("decomposition", "What routing follows, layer by layer", body)


def expert_map(results: Mapping[str, Any]) -> str:
    """Frame the map of all experts and the selector of what it shows.

    Args:
        results: An audit's results.

    Returns:
        HTML.
    """
    rows = results.get("experts") or []
    if not rows:
        return section("experts", "Which experts", absent())
    options = []
    for name, (said, _, _) in QUANTITIES.items():
        column = "p_adjusted" if name.startswith("-log10") else name
        known = any(finite(row.get(column)) is not None for row in rows)
        state = "" if known else " disabled"
        more = "" if known else f" ({words.NOT_MEASURED})"
        options.append(f'<option value="{escape(name)}"{state}>{escape(said + more)}</option>')
    body = (
        '<div class="controls"><label for="quantity">Show '
        f'<select id="quantity">{"".join(options)}</select></label></div>'
        + figure("map", "Map of all experts, layers upwards, experts from left to right", wide=True)
        + '<p id="about" class="about" aria-live="polite"></p>'
        + '<p class="caption">Click an expert to see its tokens below. Blank cells were not '
        "measured. Blue: more with harm, or a rise of the metric; red: less, or a fall.</p>"
    )
    return section("experts", "Which experts", body)


def evidence(names: Mapping[str, str]) -> str:
    """Frame the charts of effects beside their evidence and of counts beside causes.

    Args:
        names: Figures that could be drawn, by what they show.

    Returns:
        HTML, empty if there is none.
    """
    if not names:
        return ""
    body = "".join(f"<h3>{escape(said)}</h3>{figure(name, said)}" for said, name in names.items())
    note = (
        '<p class="caption">Every point is an expert; click one to see its tokens. High up: less '
        "likely to be chance. Experts that are used much and change nothing when they are taken "
        "out are where counting misleads.</p>"
    )
    return section("evidence", "Use, evidence and cause", body + note)


def tokens(record_given: bool, *, words: str = "routing weight", signed: bool = False) -> str:
    """Frame the token view and its selectors.

    Args:
        record_given: Whether there is a record to show tokens of.
        words: What the tokens are coloured by.
        signed: Whether it may be negative.

    Returns:
        HTML.
    """
    if not record_given:
        return section("tokens", "The tokens an expert works on", absent())
    scale = (
        f"Colour: {escape(words)} of the chosen expert. White is zero, blue positive, red negative;"
        ' the darkest is ±<span id="token-scale"></span>. Dotted: no value. '
        if signed
        else f"Colour: the {escape(words)} of the chosen expert, from white (not chosen) to full "
        'blue (<span id="token-scale"></span>, the largest weight in this sample). '
    )
    body = (
        '<div class="controls">'
        '<label for="s-prompt">Prompts <select id="s-prompt"></select></label>'
        '<label for="s-layer">Layer <select id="s-layer"></select></label>'
        '<label for="s-expert">Expert <select id="s-expert"></select></label></div>'
        '<div id="token-view" role="region" aria-live="polite" aria-label="Coloured tokens"></div>'
        f'<p class="caption">{scale}Matched prompts stand together.</p>'
    )
    return section("tokens", "The tokens an expert works on", body)


def top_experts(results: Mapping[str, Any]) -> str:
    """List the experts worth a look: selected ones first, then by adjusted p and effect.

    Args:
        results: An audit's results.

    Returns:
        HTML.
    """
    rows = sorted(results.get("experts") or [], key=_rank)[:TOP_EXPERTS]
    if not rows:
        return ""
    head = (
        "expert",
        "marks",
        "use: harmful − harmless (95% CI)",
        "adjusted p",
        "chosen by tokens",
        "attribution",
        "ablation effect",
        "null quantile",
    )
    cells = []
    for row in rows:
        name = f"L{row['layer']}E{row['expert']}"
        low, high = finite(row.get("low")), finite(row.get("high"))
        cells.append(
            [
                Raw(f'<button type="button" class="pick" data-expert="{name}">{name}</button>'),
                ", ".join(
                    said
                    for key, said in (("selected", "selected"), ("harm_routed", "harm-routed"))
                    if row.get(key)
                ),
                words.fixed(row.get("effect"))
                + (f" ({words.fixed(low)} to {words.fixed(high)})" * (None not in (low, high))),
                words.p_value(row.get("p_adjusted")).removeprefix("=\u00a0"),
                words.share(row.get("selection_frequency")),
                words.number(row.get("attribution")),
                words.number(row.get("ablation_effect")),
                words.number(row.get("null_quantile")),
            ]
        )
    note = (
        '<p class="caption">Attribution is the predicted, ablation effect the exact change of the '
        "metric when the expert alone is taken out. Null quantile: the share of the other experts "
        "of its layer whose ablation lowers the metric less.</p>"
    )
    listed = table(head, cells, caption=f"{len(rows)} experts, the selected ones first")
    return section("top", "Experts worth a look", listed + note)


def prompts(results: Mapping[str, Any]) -> str:
    """Say what the prompts were and what was wrong with them.

    Args:
        results: An audit's results.

    Returns:
        HTML.
    """
    given = results["prompts"]
    facts = {
        "source": given.get("source"),
        "prompts": f"{words.number(given.get('n'))}: {words.number(given.get('n_harmful'))} "
        f"harmful, {words.number(given.get('n_harmless'))} harmless",
        "matched pairs": words.number(given.get("n_pairs")),
        "topics": ", ".join(map(str, given.get("topics") or [])),
        "exchange unit": given.get("scheme"),
        "digest (SHA-256)": str(given.get("digest") or words.NOT_MEASURED)[:16],
    }
    warnings = given.get("warnings") or []
    listed = "".join(f"<li>{escape(str(warning))}</li>" for warning in warnings)
    more = f'<div class="note"><strong>Warnings</strong><ul>{listed}</ul></div>' if listed else ""
    return section("prompts", "Prompts", definitions(facts) + more)


def truth(results: Mapping[str, Any]) -> str:
    """Compare with the planted truth, where there is one.

    Args:
        results: An audit's results.

    Returns:
        HTML, empty for a model without planted truth.
    """
    known = results.get("truth")
    if not known:
        return ""
    said = f"<p>{escape(str(known['sentence']))}</p>" if known.get("sentence") else ""
    facts = {
        str(key).replace("_", " "): plain(value)
        for key, value in known.items()
        if key != "sentence"
    }
    return section("truth", "Against the planted truth", said + definitions(facts))


def method(results: Mapping[str, Any], notes: Mapping[str, str]) -> str:
    """Explain units, nulls and method in plain words.

    Args:
        results: An audit's results; its ``method`` says what was done in this run.
        notes: Words that hold for every audit.

    Returns:
        HTML.
    """
    done = {str(k).replace("_", " "): plain(v) for k, v in (results.get("method") or {}).items()}
    body = "".join(
        f"<dt>{escape(term)}</dt><dd>{escape(text)}</dd>" for term, text in notes.items()
    )
    return section(
        "method",
        "How to read this",
        f'<dl class="notes">{body}</dl><h3>How it was done</h3>{definitions(done)}',
    )


def versions(results: Mapping[str, Any]) -> str:
    """List the model, the versions and the times.

    Args:
        results: An audit's results.

    Returns:
        HTML.
    """
    model = {
        str(key).replace("_", " "): plain(value)
        for key, value in results["model"].items()
        if key != "card"
    }
    seconds = {
        str(stage).replace("_", " "): f"{words.number(value)} s"
        for stage, value in (results.get("seconds") or {}).items()
    }
    parts = (
        ("Model", model),
        ("Versions", results.get("versions") or {}),
        ("Time", seconds),
    )
    body = "".join(f"<div><h3>{name}</h3>{definitions(facts)}</div>" for name, facts in parts)
    return section("versions", "Model, versions, time", f'<div class="columns">{body}</div>')


def _rank(row: Mapping[str, Any]) -> tuple[bool, float, float]:
    p = finite(row.get("p_adjusted"))
    effect = finite(row.get("effect"))
    return (not row.get("selected"), 1.0 if p is None else p, -abs(effect or 0.0))
