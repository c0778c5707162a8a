"""What the audit says in words: its method, its note on spans, and the truth on a card."""

from collections.abc import Mapping
from typing import Any

from moe_interp.experts import ExpertSet

_METHOD = {
    "unit": "The prompt (or its pair, or its wording, where these repeat) is the unit of every "
    "test; tokens are never counted as samples, and padding is never counted at all.",
    "share": "Share of the variance of Hellinger-embedded per-prompt routing profiles that a "
    "factor explains, less what relabelling alone would give; intervals by the delete-one-unit "
    "jackknife (95 %).",
    "random_router": "Gaussian router matrices on the same router inputs with the same top-k; "
    "what they show is inherited from the hidden states.",
    "after_divergence": "The tokens that both members of a pair end with, where all pairs have "
    "such: the same tokens, and as many, in either member, so that a difference between these can "
    "only come from what was read before.",
    "expert_test": "Difference between harmful and harmless prompts in an expert's share of the "
    "routing, within topics; p_adjusted by the maximum statistic over all experts, q by "
    "Benjamini-Hochberg.",
    "selection": "On one half of the prompts: {by} picks candidates, greedy ablation adds the one "
    "that lowers the refusal most given those taken already, and what proves needless is put "
    "back.",
    "causal": "On the other half: the selected experts are ablated beside random sets of experts "
    "matched on layer, number and selection frequency; the harmless prompts are the control: an "
    "ablation is specific if it changes at most 5 % of the answers to them.",
}
_PICKED_BY = {
    "attribution": "gradient attribution",
    "ablation": "ablation of each expert alone",
}


def method(causal: Mapping[str, Any]) -> dict[str, str]:
    """Say how each number came about.

    Args:
        causal: The entry ``causal`` of ``results.json``.

    Returns:
        A text for each kind of number.
    """
    by = _PICKED_BY[causal.get("selection", {}).get("candidates", "attribution")]
    return {name: text.format(by=by) for name, text in _METHOD.items()}


def spans_note(verdicts: Mapping[str, str]) -> str:
    """Say that the answer depends on the tokens, where it does.

    Args:
        verdicts: Label of each span.

    Returns:
        One sentence, or an empty text if all spans agree.
    """
    if len(set(verdicts.values())) < 2:
        return ""
    each = ", ".join(f"{label} on {span} tokens" for span, label in verdicts.items())
    return f"The answer depends on which tokens are asked: {each}. No claim holds without its span."


def controls_line(sensitivity: Mapping[str, Any]) -> str:
    """Say what could have fooled the verdict: which controls were run, and which change it.

    Args:
        sensitivity: The verdict with confounds taken out, as results have it.

    Returns:
        One sentence.
    """
    span = sensitivity["span"]
    if sensitivity["refused"]:
        return f"No control was run on {span} tokens: {sensitivity['refused']}"
    others = [row for row in sensitivity["rows"] if row["control"] != "none"]
    ran = [_plain(row["control"]) for row in others if row["topic"] is not None]
    changing = [_plain(name) for name in sensitivity["changing"]]
    said = (
        f"What could have fooled it: the verdict on {span} tokens changes under "
        f"{', '.join(changing)} (controls: {', '.join(ran)})."
        if changing
        else f"What could have fooled it: no control changes the verdict on {span} tokens "
        f"({', '.join(ran)})."
    )
    undone = [_plain(row["control"]) for row in others if row["topic"] is None]
    return said + (f" Not run: {', '.join(undone)}." if undone else "")


def _plain(control: str) -> str:
    return control.replace("_", " ")


def card_truth(card: Mapping[str, Any] | None, selected: ExpertSet) -> dict[str, Any] | None:
    """Compare the selected experts with the safety experts on an organism's card.

    Args:
        card: The card, or None for a model without ground truth.
        selected: The experts that the audit selected.

    Returns:
        Planted and selected experts, precision, recall and a sentence; None without a card.
    """
    if card is None:
        return None
    planted = ExpertSet(card["truth"]["safety_experts"])
    common = len(planted & selected)
    precision = common / len(selected) if selected and planted else None
    recall = common / len(planted) if planted else None
    if planted:
        sentence = (
            f"Ground truth on the card: the refusal lives in {planted}. Selected: "
            f"{selected or 'none'} (precision {_figure(precision)}, recall {_figure(recall)})."
        )
    else:
        sentence = "Ground truth on the card: no experts were planted to carry the refusal."
    return {
        "safety_experts": [str(expert) for expert in planted],
        "selected": [str(expert) for expert in selected],
        "precision": precision,
        "recall": recall,
        "sentence": sentence,
    }


def _figure(value: float | None) -> str:
    return "not defined" if value is None else f"{value:.2f}"
