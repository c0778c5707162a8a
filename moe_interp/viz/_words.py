"""Say an audit's numbers in sentences that can be quoted; nothing is computed here."""

from collections.abc import Mapping, Sequence
from typing import Any

from moe_interp.viz._plot_causal import metric_words
from moe_interp.viz._tables import finite

NOT_MEASURED = "not measured"

# Verdict -> (the large words, what they mean in one sentence about `{span}`).
VERDICTS = {
    "topic_driven": (
        "Topic-driven",
        "On {span} tokens, routing follows what a prompt is about, not whether it is harmful.",
    ),
    "harm_driven": (
        "Harm-driven",
        "On {span} tokens, routing follows whether a prompt is harmful, not what it is about.",
    ),
    "both": (
        "Topic- and harm-driven",
        "On {span} tokens, routing follows both what a prompt is about and whether it is harmful.",
    ),
    "neither": (
        "Neither",
        "On {span} tokens, the router adds nothing that random routers on the same hidden states "
        "would not show.",
    ),
    "undetermined": (
        "Undetermined",
        "On {span} tokens, these prompts cannot tell what routing follows.",
    ),
}
MODES = {"ban": "Banning", "zero": "Zeroing"}


def number(value: Any, digits: int = 3) -> str:  # noqa: ANN401  Any cell of the results.
    """Write a number with a true minus sign, or say that it was not measured.

    Args:
        value: The number; None, NaN and infinities count as not measured.
        digits: Significant digits.

    Returns:
        The number for people.

    Example:
        >>> number(-0.01234), number(None), number(1234.5)
        ('−0.0123', 'not measured', '1,234')
    """
    value = finite(value)
    if value is None:
        return NOT_MEASURED
    if isinstance(value, int):
        return f"{value:,}".replace("-", "−")
    size = abs(value)
    if size != 0 and (size < 1e-4 or size >= 1e6):
        text = f"{value:.{digits - 1}e}"
    elif size >= 100:
        text = f"{value:,.0f}"
    else:
        text = f"{value:.{digits}g}" if size < 1 else f"{value:.{max(digits - 1, 0)}f}"
    return text.replace("-", "−")


def fixed(value: Any, decimals: int = 3) -> str:  # noqa: ANN401
    """Write a number with a fixed count of decimals, for columns that are compared.

    Args:
        value: The number, or None.
        decimals: How many.

    Returns:
        The number for people.

    Example:
        >>> fixed(-0.0004), fixed(-0.0126)
        ('0.000', '−0.013')
    """
    value = finite(value)
    if value is None:
        return NOT_MEASURED
    text = f"{value:.{decimals}f}"
    # A tiny negative number rounds to zero, which has no sign.
    return (text.removeprefix("-") if float(text) == 0 else text).replace("-", "−")


def share(value: Any) -> str:  # noqa: ANN401
    """Write a share as a percentage with one decimal.

    Args:
        value: A share between 0 and 1, or None.

    Returns:
        The share for people.

    Example:
        >>> share(0.3801), share(-0.0004)
        ('38.0%', '0.0%')
    """
    value = finite(value)
    if value is None:
        return NOT_MEASURED
    text = f"{100 * value:.1f}%"
    return text.replace("-0.0%", "0.0%").replace("-", "−")


def p_value(value: Any) -> str:  # noqa: ANN401
    r"""Write a p-value as ``= 0.012``.

    Args:
        value: The p-value, or None.

    Returns:
        The sign and the number, or that it was not measured.

    Example:
        >>> p_value(0.0001), p_value(None)
        ('=\xa00.0001', 'not measured')
    """
    value = finite(value)
    if value is None:
        return NOT_MEASURED
    # No-break spaces: a p-value torn over two lines is hard to read.
    return f"=\u00a0{value:.3g}" if value >= 1e-4 else f"=\u00a0{value:.1e}".replace("e-0", "e-")


def interval(low: Any, high: Any) -> str:  # noqa: ANN401
    """Write an interval of shares.

    Args:
        low: Its lower end, or None.
        high: Its upper end, or None.

    Returns:
        For example ``36.1% to 39.9%``; empty when an end was not measured.
    """
    if finite(low) is None or finite(high) is None:
        return ""
    return f"{share(low)} to {share(high)}"


def title_of(verdict: object) -> str:
    """Give the large words of a verdict.

    Args:
        verdict: Its label in the results.

    Returns:
        The words; an unknown label is shown as it is.
    """
    return VERDICTS[str(verdict)][0] if str(verdict) in VERDICTS else str(verdict)


def meaning_of(verdict: object, span: str) -> str:
    """Say in one sentence what a verdict means for a span.

    Args:
        verdict: Its label in the results.
        span: The token set it is about.

    Returns:
        The sentence.
    """
    known = VERDICTS.get(str(verdict))
    return known[1].format(span=span) if known else f"On {span} tokens: {verdict}."


def pooled_row(results: Mapping[str, Any], span: str) -> dict[str, Any]:
    """Find the shares of a span with all layers pooled.

    Args:
        results: An audit's results.
        span: The token set.

    Returns:
        The row, empty if the span was not measured.
    """
    for row in results.get("decomposition") or []:
        if row.get("span") == span and row.get("layer") == "all":
            return dict(row)
    return {}


def shares_sentence(results: Mapping[str, Any], span: str) -> str:
    """Say what topic and harm explain on a span, with intervals and random routers.

    Args:
        results: An audit's results.
        span: The token set.

    Returns:
        Two sentences that can be quoted.
    """
    row = pooled_row(results, span)
    p_values = (results.get("p_values") or {}).get(span) or {}
    parts, random = [], []
    for factor in ("topic", "harm"):
        ends = interval(row.get(f"{factor}_low"), row.get(f"{factor}_high"))
        brackets = [f"95% CI {ends}"] if ends else []
        brackets.append(_p_phrase(p_values.get(factor)))
        parts.append(
            f"{'harm' if factor == 'harm' else 'topic'} explains {share(row.get(factor))} "
            f"({', '.join(brackets)})"
        )
        random.append(f"{share(row.get(f'{factor}_random_mean'))} for {factor}")
    return (
        f"On {span} tokens, with all layers pooled, {parts[0]} and {parts[1]} of the variation of "
        f"routing between prompts. Random routers on the same hidden states give "
        f"{random[0]} and {random[1]}."
    )


def spans_disagree(results: Mapping[str, Any]) -> str:
    """Say that the spans have different verdicts, if they have.

    Args:
        results: An audit's results.

    Returns:
        The sentence, or an empty text when all spans agree.
    """
    verdicts = dict(results.get("verdicts") or {})
    if len(set(verdicts.values())) < 2:
        return ""
    groups: dict[str, list[str]] = {}
    for span, label in verdicts.items():
        groups.setdefault(title_of(label).lower(), []).append(str(span))
    said = "; ".join(f"{label} on {' and '.join(spans)} tokens" for label, spans in groups.items())
    return f"Routing is {said}. Any claim from this report must name its tokens."


def causal_brief(causal: Mapping[str, Any]) -> str:
    """Say the causal check in one sentence, to stand beside the verdict.

    Args:
        causal: The ``causal`` part of an audit's results.

    Returns:
        The sentence.
    """
    experts = causal.get("experts") or []
    return (
        f"Without {counted(len(experts), 'selected expert')} ({listed(experts, 4)}) the "
        f"{metric_words(causal)} on harmful prompts is {number(causal.get('observed'))} instead "
        f"of {number(causal.get('baseline'))}; without random experts matched on use it is "
        f"{number(causal.get('null_mean'))} ({_p_phrase(causal.get('p'))})."
    )


def causal_sentences(causal: Mapping[str, Any]) -> list[str]:
    """Say what taking the selected experts out did, beside matched random experts.

    Args:
        causal: The ``causal`` part of an audit's results.

    Returns:
        Sentences that can be quoted.
    """
    metric = metric_words(causal)
    experts = causal.get("experts") or []
    mode = str(causal.get("mode") or "")
    sentences = [
        f"{MODES.get(mode, 'Taking out')} {counted(len(experts), 'selected expert')} "
        f"({listed(experts)}) moves the {metric} on held-out harmful prompts from "
        f"{number(causal.get('baseline'))} to {number(causal.get('observed'))}.",
        _null_sentence(causal),
    ]
    benign = causal.get("benign") or {}
    if finite(benign.get("observed")) is not None:
        sentences.append(
            f"On harmless prompts the same change moves it from {number(benign.get('baseline'))} "
            f"to {number(benign.get('observed'))}."
        )
    changed = (causal.get("texts") or {}).get("harmless_changed")
    if finite(changed) is not None:
        sentences.append(f"It changes {share(changed)} of the answers to harmless prompts.")
    return sentences


def _p_phrase(value: object) -> str:
    said = p_value(value)
    return f"p\u00a0{said}"


def _null_sentence(causal: Mapping[str, Any]) -> str:
    if finite(causal.get("null_mean")) is None:
        return "Matched random experts were not measured."
    quantiles = causal.get("null_quantiles") or {}
    low, high = finite(quantiles.get("0.025")), finite(quantiles.get("0.975"))
    middle = (
        f", 95% of them between {number(low)} and {number(high)}" if None not in (low, high) else ""
    )
    draws = causal.get("n_draws")
    return (
        f"{number(draws) if draws is not None else 'The'} random sets matched on layer, size and "
        f"use leave it at {number(causal.get('null_mean'))} on average{middle} "
        f"({_p_phrase(causal.get('p'))})."
    )


def counted(n: int, noun: str) -> str:
    """Count a noun.

    Args:
        n: How many.
        noun: Its singular.

    Returns:
        For example ``the 2 selected experts``.
    """
    return f"the {n} {noun}s" if n != 1 else f"the one {noun}"


def listed(labels: Sequence[object], most: int = 8) -> str:
    """List labels, cut after the first few.

    Args:
        labels: What to list.
        most: How many to name.

    Returns:
        The list in words.
    """
    named = ", ".join(str(label) for label in labels[:most])
    rest = len(labels) - most
    return f"{named} and {rest} more" if rest > 0 else named or "none"
