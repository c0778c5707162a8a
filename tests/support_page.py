"""The page `docs/support.md`: the table of families as markdown."""

from collections.abc import Iterable, Sequence

from support_kernels import KERNELS

from moe_interp.models import FamilySupport, SupportTable
from moe_interp.models._support import OFFERED

# Quantity -> its column's head, and what it is.
QUANTITIES = {
    "input": ("in", "what enters the MoE block, `[batch pos d_model]`"),
    "router_input": ("r.in", "what the router sees, `[batch pos d_model]`"),
    "router_logits": ("logits", "the router's linear output, `[batch pos expert]`"),
    "router_probs": ("probs", "the score function over all experts, `[batch pos expert]`"),
    "expert_index": ("index", "the experts chosen, in the model's order, `[batch pos top_k]`"),
    "routing_weights": ("weights", "what multiplies each expert, `[batch pos top_k]`"),
    "expert_outputs": ("outputs", "each expert's output, `[batch pos top_k d_model]`"),
    "expert_contributions": ("contrib", "the same times its weight, `[batch pos top_k d_model]`"),
    "routed_output": ("routed", "their sum, what leaves the experts, `[batch pos d_model]`"),
    "shared_output": ("shared", "what the shared expert adds, `[batch pos d_model]`"),
    "output": ("out", "what leaves the MoE block, `[batch pos d_model]`"),
}
# Format -> bound of the contributions' sum, and of the block's output rebuilt from it.
TOLERANCES = {
    "float64 (`eager`)": ("1e-12", "1e-12"),
    "float32": ("1e-6", "1e-6"),
    "float16": ("1e-3", "2e-3"),
    "bfloat16": ("1e-2", "2e-2"),
}
SHORT = {"eager": "e", "batched_mm": "b", "grouped_mm": "g", "its own loop": "own"}
SUPERSCRIPTS = str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹")


def render(table: SupportTable) -> str:
    """The whole page."""
    offered = [table[name] for name in table.offered]
    sections = (
        _head(table),
        _quantities(offered),
        _matrix(offered),
        _routing(offered),
        _numbers(offered),
        _peculiar(offered),
        _refused([table[name] for name in table.refused]),
        _kernels(),
        _classes(offered),
    )
    return "\n\n".join(sections) + "\n"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _head(table: SupportTable) -> str:
    found = table.versions
    return f"""# Supported families

{len(table.offered)} of the {len(table)} model types with routed experts in transformers \
{found["transformers"].rpartition(".")[0]} are read and edited exactly; \
{len(table.refused)} are refused by name. This page is written by \
`python tests/write_support.py` from tiny random models of every type, and `pytest -m conformance` \
fails if a model and this page disagree. Do not edit it.

Measured with transformers {found["transformers"]}, nnsight {found["nnsight"]}, torch \
{found["torch"]}, on a CPU. Other releases of transformers and nnsight are refused at load.

## How to read it

- [What each family offers](#what-each-family-offers): quantity by quantity, read and write.
- [How each family routes](#how-each-family-routes): scores, choice, weights, shared expert, and \
what the block does with the experts' sum.
- [How exact it is](#how-exact-it-is): which experts implementations run, and errors.
- [What is peculiar](#what-is-peculiar), [what is refused](#what-is-refused), \
[kernels and quantisation](#kernels-and-quantisation), [classes](#classes).

For one family, with every reason in words: `moe-interp models --family llama4_text`. As data:
`moe_interp.models.supported_families()`, with `.to_frame()`. A model that is not listed is opened
if its structure is one of these and the self-check at load agrees; if not, \
[unsupported-architecture](errors/unsupported-architecture.md) says what to do."""


def _quantities(families: list[FamilySupport]) -> str:
    rows = [
        (
            f"`{name}`",
            head,
            what,
            "yes" if _usual(families, name) == OFFERED else _usual(families, name),
        )
        for name, (head, what) in QUANTITIES.items()
    ]
    return (
        "The quantities of a layer, `model.moe[layer]`, and their heads in the next table:\n\n"
        + _table(("quantity", "head", "what it is", "can be assigned"), rows)
    )


def _usual(families: list[FamilySupport], name: str) -> str:
    """What all families that can be read say of assigning a quantity."""
    (cell,) = {one.write[name] for one in families if one.read[name] == OFFERED}
    return cell


def _matrix(families: list[FamilySupport]) -> str:
    reasons: dict[str, int] = {}

    def symbol(family: FamilySupport, name: str) -> str:
        read, write = family.read[name], family.write[name]
        sign = "–" if not read.startswith(OFFERED) else "●" if write == OFFERED else "○"
        told = read if read != OFFERED else write
        if told in (OFFERED, _usual(families, name)):
            return sign
        number = reasons.setdefault(told, len(reasons) + 1)
        return f"{sign}{str(number).translate(SUPERSCRIPTS)}"

    rows = [
        (f"`{one.model_type}`", *(symbol(one, name) for name in QUANTITIES)) for one in families
    ]
    notes = [
        f"{str(number).translate(SUPERSCRIPTS)} {reason.rstrip('.')}."
        for reason, number in reasons.items()
    ]
    # Two blanks at the end of a line keep it a line of its own.
    return (
        "## What each family offers\n\n"
        "● read and assigned, ○ read only for the reason above, – refused; a number gives the "
        "reason, below the table. `ban`, `zero`, `choose`, `set_routing` and `output_from` work on "
        "every family of the table.\n\n"
        + _table(("family", *(head for head, _ in QUANTITIES.values())), rows)
        + "\n\n"
        + "  \n".join(notes)
    )


def _routing(families: list[FamilySupport]) -> str:
    rows = [
        (
            f"`{one.model_type}`",
            one.score_function,
            one.choice,
            one.weights,
            one.dispatch,
            one.shared,
            one.after_sum,
        )
        for one in families
    ]
    return (
        "## How each family routes\n\n"
        "**Score** turns logits into scores. **Choice**: the top-k of them; a bias that only the "
        "choice sees, and groups of experts that limit it, make it another than the top-k of the "
        "logits. **Weight**: s the score of a chosen expert, s/Σs divided by the sum over the "
        "chosen, f a factor of the configuration; a weight need not sum to 1. **Output** is what "
        "the block makes of the experts' sum Σ and of the shared expert's output S, and what "
        "`layer.output_from(contributions)` gives: f a factor, P a projection, N a norm, b a bias. "
        "Where configurations of one type differ, all that were tested are named.\n\n"
        "**Dispatch**: *indexed* experts are called with tokens, index and weights; *input_scaled* "
        "ones all run, on tokens multiplied by the score; *sorted* ones see tokens in the order of "
        "experts; *one_hot* ones are named by a one-hot row, one a token.\n\n"
        + _table(("family", "score", "choice", "weight", "dispatch", "shared", "output"), rows)
    )


def _numbers(families: list[FamilySupport]) -> str:
    rows = [
        (
            f"`{one.model_type}`",
            " ".join(SHORT[name] for name in one.implementations),
            " ".join(SHORT[name] for name in one.skips_call) or "no",
            *(_error(one.errors[kind]) for kind in ("float32", "bfloat16", "float64")),
        )
        for one in families
    ]
    bounds = [(name, *bound) for name, bound in TOLERANCES.items()]
    return (
        "## How exact it is\n\n"
        "Everything that is read, but for experts' outputs and contributions, is bit for bit what "
        "the modules of the plain Hugging Face model receive and return, at prefill and at every "
        "step of a generation. Experts' outputs are had by calling the experts again, one slot a "
        "row. The sum of contributions and the block's output rebuilt from it by `output_from` "
        "are held to these bounds, relative to the largest entry:\n\n"
        + _table(("format", "sum", "block"), bounds)
        + "\n\nMeasured, rounded up; 0 is bit for bit. **Runs**: e `eager`, b `batched_mm`, "
        "g `grouped_mm`; *own* is a family's own loop over experts. **Skips**: with which of them "
        "`layer.read` leaves out the experts' own call, because the slots add up to the same bits; "
        "the self-check decides that for the model at hand. float64 is measured under `eager`; "
        "errors near 1e-8 there are of families that compute in float32 inside.\n\n"
        + _table(("family", "runs", "skips", "float32", "bfloat16", "float64"), rows)
    )


def _error(value: float | str) -> str:
    return value if isinstance(value, str) else f"{value:.0e}" if value else "0"


def _peculiar(families: list[FamilySupport]) -> str:
    by_note: dict[str, list[str]] = {}
    for family in families:
        for note in family.notes:
            by_note.setdefault(note, []).append(f"`{family.model_type}`")
    lines = [f"- {', '.join(names)}: {note}." for note, names in by_note.items()]
    return "## What is peculiar\n\n" + "\n".join(lines)


def _refused(families: list[FamilySupport]) -> str:
    rows = [(f"`{one.model_type}`", f"`{one.model_class}`", one.reason) for one in families]
    return (
        "## What is refused\n\n"
        "`load_model` raises `UnsupportedArchitectureError` with these words; none of the "
        "quantities is offered.\n\n" + _table(("family", "class", "reason"), rows)
    )


def _kernels() -> str:
    rows = [(one.what, one.verdict, one.comment, one.evidence) for one in KERNELS]
    return (
        "## Kernels and quantisation\n\n"
        "What stands behind the call `experts(hidden, index, weights)` does not matter, and the "
        "self-check has the last word. What breaks that call, or takes the place of the router's "
        "and the block's own operations, is refused by name.\n\n"
        + _table(("what runs the experts", "", "why, or what to do", "how it is known"), rows)
    )


def _classes(families: list[FamilySupport]) -> str:
    rows = [
        tuple(
            f"`{part}`"
            for part in (one.model_type, one.model_class, one.block, one.router, one.experts)
        )
        for one in families
    ]
    rows = [tuple(part.replace(" or ", "`, `") for part in row) for row in rows]
    return "## Classes\n\n" + _table(("family", "model", "block", "router", "experts"), rows)
