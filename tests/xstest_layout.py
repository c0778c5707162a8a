"""A file in the published layout of XSTest, with harmless content."""

_NAMES = ("homonyms", "figurative_language", "safe_targets", "safe_contexts", "definitions")
_REST = (
    ("real_group_nons_discr", "safe"),
    ("nons_group_real_discr", "safe"),
    ("contrast_discr", "unsafe"),
    ("historical_events", "safe"),
    ("contrast_historical_events", "unsafe"),
    ("privacy_public", "safe"),
    ("privacy_fictional", "safe"),
    ("contrast_privacy", "unsafe"),
)
_TYPES = (
    *(t for name in _NAMES for t in ((name, "safe"), (f"contrast_{name}", "unsafe"))),
    *_REST,
)
KINDS = tuple(kind for kind, _ in _TYPES)
# Real groups and fictional persons are the ones whose words the contrasts take up.
_APART = {"nons_group_real_discr", "privacy_public"}


def named(kind, label, n):
    """A sentence that says what it is."""
    return f"a {kind} sentence {n}"


def full_layout(n_rows=25, sentence=named):
    """The published types in the published order, so many rows of each."""
    rows = ["id,prompt,type,label,focus,note"]
    for kind, label in _TYPES:
        for n in range(n_rows):
            focus = f"other {n}" if kind in _APART else f"word {n}"
            rows.append(f"{len(rows)},{sentence(kind, label, n)},{kind},{label},{focus},")
    return "\n".join(rows) + "\n"
