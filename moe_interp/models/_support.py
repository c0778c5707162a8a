"""What is offered for each model type with routed experts, as measured on tiny random models.

The table is `support.json`, written by the project's tests from the models themselves; nothing in
it is written by hand. `docs/support.md` shows the same for people.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from difflib import get_close_matches
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd

OFFERED = "offered"
# Named in error messages for all the others.
_WELL_KNOWN = ("deepseek_v3", "gpt_oss", "llama4_text", "mixtral", "olmoe", "qwen3_moe")


@dataclass(frozen=True)
class FamilySupport:
    """What is offered for the models of one type, and what was measured on a tiny one.

    Where several configurations of a type were tested and differ, texts are joined by "or".

    Attributes:
        model_type: As transformers names it.
        offered: Whether `load_model` opens it.
        reason: Why it does not, in the words of the error; "" if it does. The fields below then
            are empty, but for the class.
        model_class: The class that was tried.
        text_type: Type of the text part, if the model has others; only that part is read.
        settings: The configurations tested, by name.
        block: Class of the block that holds router and experts.
        router: Class of the router.
        experts: Class of the experts.
        score_function: What turns logits into scores.
        choice: How experts are chosen.
        weights: What multiplies an expert's output: s, the score, f, a factor of the configuration,
            or an own rule.
        n_experts: What the router chooses among.
        dispatch: How tokens get to their experts.
        shared: What the shared expert is.
        after_sum: What the block does after the experts' sum, as a formula.
        output_from: The same in words; `MoELayer.output_from` does it.
        read: For each quantity "offered", or why it cannot be read.
        write: For each quantity "offered", or why it cannot be assigned.
        implementations: How transformers can run the experts with everything read exactly.
        skips_call: With which of them reading slots makes the experts' own call needless.
        errors: By number format the largest error of the contributions' sum, relative to the
            largest entry of the experts' output, rounded up; or why there is none.
        notes: What else to know.
    """

    model_type: str
    offered: bool
    reason: str
    model_class: str
    text_type: str = ""
    settings: tuple[str, ...] = ()
    block: str = ""
    router: str = ""
    experts: str = ""
    score_function: str = ""
    choice: str = ""
    weights: str = ""
    n_experts: str = ""
    dispatch: str = ""
    shared: str = ""
    after_sum: str = ""
    output_from: str = ""
    read: dict[str, str] = field(default_factory=dict)
    write: dict[str, str] = field(default_factory=dict)
    implementations: tuple[str, ...] = ()
    skips_call: tuple[str, ...] = ()
    errors: dict[str, float | str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def missing(self) -> tuple[str, ...]:
        """The quantities that cannot be read in any configuration."""
        return tuple(name for name, cell in self.read.items() if not cell.startswith(OFFERED))


class SupportTable(Mapping[str, FamilySupport]):
    """The families by model type, in alphabetical order.

    Attributes:
        versions: Releases with which the table was made.
    """

    def __init__(self, versions: dict[str, str], families: tuple[FamilySupport, ...]) -> None:
        self.versions = versions
        self._families = {family.model_type: family for family in families}

    def __getitem__(self, model_type: str) -> FamilySupport:
        return self._families[model_type]

    def __iter__(self) -> Iterator[str]:
        return iter(self._families)

    def __len__(self) -> int:
        return len(self._families)

    def __repr__(self) -> str:
        return f"SupportTable({len(self.offered)} families offered, {len(self.refused)} refused)"

    @property
    def offered(self) -> tuple[str, ...]:
        """The model types that can be opened."""
        return tuple(name for name, family in self._families.items() if family.offered)

    @property
    def refused(self) -> tuple[str, ...]:
        """The model types that cannot."""
        return tuple(name for name, family in self._families.items() if not family.offered)

    def find(self, name: str) -> FamilySupport:
        """Look a family up by its model type, or by the type of its text part.

        Args:
            name: A model type as transformers names it.

        Returns:
            The family.

        Raises:
            ValueError: If there is none of that name.
        """
        wanted = name.strip().lower()
        for family in self._families.values():
            if wanted.replace("-", "_") == family.model_type.replace("-", "_"):
                return family
        for family in self._families.values():
            if wanted.replace("-", "_") == family.text_type:
                return family
        close = get_close_matches(wanted, self._families, n=3, cutoff=0.6)
        hint = f"Did you mean {', '.join(map(repr, close))}? " if close else ""
        raise ValueError(
            f"No family with routed experts is called {name!r}. {hint}"
            "`moe-interp models` lists all of them."
        )

    def to_frame(self) -> "pd.DataFrame":
        """Return one row a family."""
        import pandas as pd

        names = [entry.name for entry in fields(FamilySupport)]
        rows = [{name: getattr(one, name) for name in names} for one in self._families.values()]
        return pd.DataFrame(rows, columns=names).set_index("model_type")


@cache
def supported_families() -> SupportTable:
    """List every model type with routed experts, with what is offered and why the rest is not.

    Returns:
        The table, which holds refused families too.

    Example:
        >>> table = supported_families()
        >>> table["llama4_text"].read["expert_outputs"]
        "its weight multiplies the expert's input, not its output. Read `expert_contributions`, \
what each chosen expert wrote."
        >>> "mixtral" in table.offered
        True
    """
    text = (files("moe_interp.models") / "support.json").read_text(encoding="utf-8")
    return parse_support(json.loads(text))


def parse_support(stored: Mapping[str, object]) -> SupportTable:
    """Make the table from what `support.json` holds.

    Args:
        stored: The parsed file.

    Returns:
        The table.
    """
    lists = ("settings", "implementations", "skips_call", "notes")
    families = [
        FamilySupport(
            **{key: tuple(value) if key in lists else value for key, value in row.items()}
        )
        for row in stored["families"]
    ]
    return SupportTable(dict(stored["versions"]), tuple(families))


def known_families() -> str:
    """A few tested families for an error message, and where all of them are listed."""
    n_offered = len(supported_families().offered)
    return f"{', '.join(_WELL_KNOWN)}, … (`moe-interp models` lists all {n_offered})"
