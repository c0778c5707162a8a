"""The report's answers: what was audited, the verdict, and whether the experts matter."""

from collections.abc import Mapping
from html import escape
from typing import Any

from moe_interp.viz import _words as words
from moe_interp.viz._html import figure, table
from moe_interp.viz._plot_causal import causal_sets, metric_words, set_name
from moe_interp.viz._tables import finite
from moe_interp.viz._theme import FACTORS

_ORGANISM = (
    "A model organism: tiny, and trained so that the answer is known, to test the method. It is "
    "no evidence about real models."
)


def header(results: Mapping[str, Any]) -> str:
    """Say what was audited, and that an organism is no evidence about real models.

    Args:
        results: An audit's results.

    Returns:
        HTML.
    """
    model, prompts = results["model"], results["prompts"]
    layers = model.get("moe_layers") or []
    facts = [
        f"{words.number(len(layers))} MoE layers",
        f"{words.number(model.get('n_experts'))} experts, top-{words.number(model.get('top_k'))}",
        f"{words.number(prompts.get('n'))} prompts on {len(prompts.get('topics') or [])} topics",
        f"seed {words.number(results.get('seed'))}",
    ]
    card = model.get("card") or {}
    note = ""
    if card:
        said = card.get("disclaimer") or _ORGANISM
        note = (
            '<aside class="note organism"><strong>Not a real model.</strong> '
            f"{escape(str(said))}</aside>"
        )
    return (
        '<header><p class="kicker">Routing audit</p>'
        f'<p class="subject">{escape(str(model.get("id")))}</p>'
        f'<p class="facts">{" · ".join(map(escape, facts))}</p>{note}</header>'
    )


def verdict(results: Mapping[str, Any]) -> str:
    """Give the verdict in large words, its numbers in sentences, and every span beside it.

    Args:
        results: An audit's results.

    Returns:
        HTML.
    """
    label, span = results["verdict"], results["primary_span"]
    disagreement = words.spans_disagree(results)
    note = str(results.get("verdict_note") or "")
    if any(str(label) in note for label in (results.get("verdicts") or {}).values()):
        # It says in labels what the sentence on disagreement says in words.
        note = ""
    loud = ""
    if disagreement:
        loud = (
            '<aside class="note loud" role="note"><strong>The spans disagree.</strong> '
            f"{escape(disagreement)} {escape(note)}</aside>"
        )
    elif note:
        loud = f'<aside class="note">{escape(note)}</aside>'
    check = results.get("causal") or {}
    quoted = [words.shares_sentence(results, str(span))]
    if finite(check.get("observed")) is not None:
        quoted.append(words.causal_brief(check))
    quotes = "".join(f"<p>{escape(sentence)}</p>" for sentence in quoted)
    top = _scale(results)
    cards = "".join(_span_card(results, name, top) for name in results["spans"])
    return (
        f'<section id="verdict" class="verdict {escape(str(label), quote=True)}" '
        'aria-labelledby="verdict-title">'
        f'<p class="kicker">Verdict on {escape(str(span))} tokens</p>'
        f'<h1 id="verdict-title">{escape(words.title_of(label))}</h1>'
        f'<p class="meaning">{escape(words.meaning_of(label, str(span)))}</p>'
        f"<blockquote>{quotes}</blockquote>"
        f'{loud}<div class="cards">{cards}</div>'
        f'<p class="legend">{_legend()}</p></section>'
    )


def causal(results: Mapping[str, Any]) -> str:
    """Say whether the selected experts matter, against matched random experts.

    Args:
        results: An audit's results.

    Returns:
        HTML.
    """
    check = results.get("causal")
    title = '<section id="causal"><h2>Do the selected experts matter?</h2>'
    if not check or finite(check.get("observed")) is None:
        why = escape(str((check or {}).get("sentence") or ""))
        return f'{title}<p class="answer">Not measured.</p><p>{why}</p></section>'
    found = check.get("causal")
    answer = {
        True: "Yes, beyond random experts that are used as much.",
        False: "No, not beyond random experts that are used as much.",
    }.get(found, "Not decided.")
    if found and check.get("specific") is False:
        answer += " But harmless answers change, too."
    said = " ".join(words.causal_sentences(check))
    rows = [
        [
            set_name(entry),
            words.listed(entry.get("experts") or []),
            words.number(entry.get("baseline")),
            words.number(entry.get("observed")),
            words.number(entry.get("null_mean")),
            words.p_value(entry.get("p")).removeprefix("=\u00a0"),
            {True: "yes", False: "no"}.get(entry.get("causal"), words.NOT_MEASURED),
        ]
        for entry in causal_sets(check)
    ]
    metric = metric_words(check)
    head = (
        "set",
        "experts",
        f"{metric}, untouched",
        "without the set",
        "without matched random sets",
        "p",
        "causal",
    )
    return (
        f'{title}<p class="answer">{answer}</p><blockquote><p>{escape(said)}</p></blockquote>'
        + figure("causal", "The metric without each set of experts, against matched random sets")
        + table(head, rows, caption="Every set that was taken out")
        + '<p class="caption">Frequency contrast, the usual way of finding such experts, takes '
        "those whose use differs most between harmful and harmless prompts. It is shown for "
        "comparison: use is not importance.</p></section>"
    )


def _scale(results: Mapping[str, Any]) -> float:
    highest = [
        finite(words.pooled_row(results, span).get(f"{factor}{end}")) or 0.0
        for span in results["spans"]
        for factor in ("topic", "harm")
        for end in ("", "_high", "_random_high")
    ]
    return max([*highest, 0.05])


def _span_card(results: Mapping[str, Any], span: str, top: float) -> str:
    label = (results.get("verdicts") or {}).get(span)
    row = words.pooled_row(results, span)
    p_values = (results.get("p_values") or {}).get(span) or {}
    primary = span == results["primary_span"]
    bars = "".join(_bar(row, factor, top) for factor in ("topic", "harm"))
    tested = " · ".join(
        f"{name} p {words.p_value(p_values.get(key))}"
        for key, name in (("topic", "topic"), ("harm", "harm"), ("harm_nested", "harm in topics"))
    )
    reason = (results.get("reasons") or {}).get(span)
    full = f"<details><summary>Reason</summary><p>{escape(str(reason))}</p></details>"
    full = full if reason else ""
    return (
        f'<article class="card{" primary" if primary else ""}">'
        f"<h2>{escape(str(span))} tokens{' <small>primary</small>' if primary else ''}</h2>"
        f'<p class="label {escape(str(label))}">{escape(words.title_of(label))}</p>{bars}'
        f'<p class="tested">{escape(tested)}</p>{full}</article>'
    )


def _bar(row: Mapping[str, Any], factor: str, top: float) -> str:
    value = finite(row.get(factor))
    low, high = finite(row.get(f"{factor}_low")), finite(row.get(f"{factor}_high"))
    inner = ""
    random = finite(row.get(f"{factor}_random_low")), finite(row.get(f"{factor}_random_high"))
    if None not in random:
        inner += _stripe("band", random[0], random[1], top)
    if value is not None:
        inner += _stripe(f"fill {factor}", 0.0, value, top)
    if low is not None and high is not None:
        inner += _stripe("whisker", low, high, top)
    label = FACTORS[factor]["label"]
    return (
        f'<div class="bar"><span>{label}</span><div class="track">{inner}</div>'
        f"<b>{words.share(value)}</b></div>"
    )


def _stripe(kind: str, low: float, high: float, top: float) -> str:
    left = 100 * max(low, 0.0) / top
    width = max(100 * (max(high, 0.0) - max(low, 0.0)) / top, 0.0)
    return f'<i class="{kind}" style="left:{left:.2f}%;width:{width:.2f}%"></i>'


def _legend() -> str:
    return (
        '<i class="key topic"></i> topic share <i class="key harm"></i> harm share '
        '<i class="key band"></i> what random routers show on the same hidden states; '
        "thin line: 95% interval"
    )
