"""What could have fooled the verdict: the same question with confounds taken out."""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from moe_interp.viz import _words as words
from moe_interp.viz._html import absent, section, table

TITLE = "What could have fooled it"
#: What each control takes out, for people.
CONTROLS = {
    "none": "nothing",
    "length": "length of the prompts",
    "lexical": "words of the prompts",
    "first_choice": "all choices but each token's first",
    "plain_shares": "square root of shares",
    "position": "position of the tokens",
    "token_identity": "which tokens they are",
}


def controls(results: Mapping[str, Any]) -> str:
    """Show the verdict with confounds taken out, and what would change it.

    Args:
        results: An audit's results.

    Returns:
        HTML.
    """
    found = results.get("sensitivity")
    if not found:
        return section("controls", TITLE, absent())
    if found.get("refused"):
        return section("controls", TITLE, f'<p class="answer">{escape(found["refused"])}</p>')
    body = f'<p class="answer">{escape(answer(found))}</p>' + table(
        ("taken out", "verdict", "topic (95% CI)", "p", "harm (95% CI)", "p", "tokens used"),
        [_row(row) for row in found["rows"]],
        caption=f"The verdict on {found['span']} tokens under controls",
    )
    if any(row["label"] is None and row["topic"] is not None for row in found["rows"]):
        body += (
            '<p class="caption">“–”: random routers were counted by prompt, so that there is '
            "no verdict here; shares and tests are compared instead.</p>"
        )
    said = [(results.get("what_would_change") or {}).get(found["span"]), found.get("dispersion")]
    body += "".join(f"<p>{escape(one)}</p>" for one in said if one)
    return section("controls", TITLE, body)


def answer(found: Mapping[str, Any]) -> str:
    """Say in a sentence whether a control changes the verdict.

    Args:
        found: The entry ``sensitivity`` of an audit's results.

    Returns:
        A sentence that can be quoted.
    """
    changing = [CONTROLS.get(name, name) for name in found.get("changing") or []]
    if not changing:
        return f"No control changes what is found on {found['span']} tokens."
    return (
        f"The verdict on {found['span']} tokens hangs on {words.listed(changing)}: with that taken "
        "out, another one is given."
    )


def _row(row: Mapping[str, Any]) -> list[str]:
    name = CONTROLS.get(row["control"], row["control"])
    if row["topic"] is None:
        return [name, f"not run: {row['words']}", *[words.NOT_MEASURED] * 5]
    label = "–" if row["label"] is None else words.title_of(row["label"])
    return [
        name + (" (differs)" if row["changes"] else ""),
        label,
        _share(row["topic"]),
        _bare(row["p_topic"]),
        _share(row["harm"]),
        _bare(row["p_harm"]),
        words.share(row["covered"]),
    ]


def _share(values: Sequence[float]) -> str:
    middle, low, high = map(words.fixed, values)
    return f"{middle} ({low} to {high})"


def _bare(value: object) -> str:
    return words.p_value(value).removeprefix("=\u00a0")
