"""Sets of harmful prompts alone: HarmBench, StrongREJECT and AdvBench.

They say nothing about harm before harmless prompts stand beside them: see `pair_prompts`.
"""

from collections.abc import Sequence

from moe_interp.prompts._card import DataCard
from moe_interp.prompts._cells import is_empty, name_cell, text_cell
from moe_interp.prompts._files import Row
from moe_interp.prompts._layout import Layout, Placed
from moe_interp.prompts._prompt import Prompt

_NO_PAIRS = "none, all prompts are harmful; match harmless ones with `pair_prompts`"


def _harmbench(rows: Sequence[Row], source: str) -> list[Placed]:
    return [
        Placed(
            Prompt(
                text=_with_context(row),
                topic=name_cell(row, "SemanticCategory"),
                harm=True,
                id=name_cell(row, "BehaviorID"),
            ),
            row.place,
        )
        for row in rows
    ]


def _with_context(row: Row) -> str:
    """HarmBench puts what a contextual behaviour is about before it, and a rule between."""
    behaviour = text_cell(row, "Behavior")
    if is_empty(row.values.get("ContextString")):
        return behaviour
    return f"{text_cell(row, 'ContextString')}\n\n---\n\n{behaviour}"


def _strongreject(rows: Sequence[Row], source: str) -> list[Placed]:
    return [
        Placed(
            Prompt(text_cell(row, "forbidden_prompt"), topic=name_cell(row, "category"), harm=True),
            row.place,
        )
        for row in rows
    ]


def _advbench(rows: Sequence[Row], source: str) -> list[Placed]:
    return [Placed(Prompt(text_cell(row, "goal"), harm=True), row.place) for row in rows]


HARMBENCH = Layout(
    needed=("Behavior", "SemanticCategory"),
    optional=("FunctionalCategory", "Tags", "ContextString", "BehaviorID"),
    read=_harmbench,
    card=DataCard(
        "HarmBench",
        licence="MIT",
        topic="`SemanticCategory`",
        pairing=_NO_PAIRS,
        reference="Mazeika et al., 2024",
    ),
)
STRONGREJECT = Layout(
    needed=("forbidden_prompt", "category"),
    optional=("source",),
    read=_strongreject,
    card=DataCard(
        "StrongREJECT",
        licence="MIT",
        topic="`category`",
        pairing=_NO_PAIRS,
        reference="Souly et al., 2024",
    ),
)
ADVBENCH = Layout(
    needed=("goal", "target"),
    optional=(),
    read=_advbench,
    card=DataCard(
        "AdvBench",
        licence="MIT",
        topic="none in the file",
        pairing=_NO_PAIRS,
        reference="Zou et al., 2023",
    ),
)
