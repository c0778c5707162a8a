"""MESA (2026): refusal is spread over more experts, by transport of routing; is it, and by what?"""

from collections.abc import Sequence
from typing import Any

import pandas as pd
from numpy.random import Generator

from moe_interp.capture import record_routing
from moe_interp.models import MoEModel
from moe_interp.prompts import PromptSet
from moe_interp.scores import mesa_select
from moe_interp.studies._causal import planted_experts, refusal_of
from moe_interp.studies._mesa2026_parts import (
    USUAL,
    Part,
    Spread,
    lessons_of,
    some,
    spread_of,
    treatments,
)
from moe_interp.studies._result import StudyResult
from moe_interp.studies._study import Study
from moe_interp.tuning import TuneResult, mesa_tune

BATCH_SIZE = 16
NAME, PAPER = "mesa2026", "MESA (2026)"
MAPS = {
    "Percentile of use on the mixture": "percentile",
    "Routing of harmful prompts: the model's": "prior",
    "Routing of harmful prompts: the plan's": "plan",
}
STATUS = {
    "activation percentile on a mixture": "secondary notes; ties and midranks our reconstruction",
    "Beta-shaped cost": "secondary notes; its shift and unit are our reconstruction",
    "transport with the empirical kernel": "secondary notes; its rows (harmful prompts), totals of "
    "experts (held near equal shares, not exactly) and epsilon are our reconstruction",
    "selection of the largest totals": "secondary notes; how many is our reconstruction",
    "routing loss of the two streams": "secondary notes; the weight, and that all tokens count, "
    "are our reconstruction",
    "loss of the responses": "secondary notes; that harmless answers count too is our "
    "reconstruction",
    "safety concentration": "our reconstruction (experts to ablate until refusals are halved, by "
    "the best of three rankings)",
}


def mesa2026(
    model: MoEModel,
    prompts: PromptSet,
    *,
    rng: Generator,
    n_selected: int | None = None,
    epsilon: float = 0.25,
    routing_kl: float = 3.0,
    n_steps: int = 64,
    learning_rate: float = 0.01,
    n_lessons: int = 256,
    n_searched: int = 16,
    max_experts: int = 8,
    n_null: int = 39,
    parts: Sequence[Part] = USUAL,
    openers: Sequence[str] | None = None,
) -> StudyResult:
    r"""Spread refusal over more experts, and count how many must be ablated to halve it.

    `mesa_select` finds experts with room for refusals, `mesa_tune` trains them and the routers:
    the routing of harmful prompts moves towards cheap experts while the model repeats its own
    refusals and its own harmless answers (or the `response` that prompts have). The model itself
    is left as it was.

    How concentrated refusal is: experts are ranked on half of the prompts, by greedy ablation, by
    the magnitude of attribution and by use; on the other half they are banned in that order. The
    fewest that at least halve the refusals, over the rankings, is the number given. It is an
    upper bound: a better ranking may need fewer. Beside the best ranking stand random orders
    of experts of the same layers and like use.

    The table of treatments leaves out one part of the method at a time, as the paper's does: the
    routers alone, the experts alone, all experts, no routing loss, costly in the place of cheap
    experts. Random experts of the same number are added.

    Args:
        model: The model.
        prompts: Harmful and harmless prompts.
        rng: Source of randomness.
        n_selected: Experts to select; a quarter of all if None.
        epsilon: Weight of the prior and of equal shares, in units of the smallest cost.
        routing_kl: Weight of the routing loss.
        n_steps: Steps of training, rounded to whole passes over the lessons.
        learning_rate: Of AdamW; a real model wants far less.
        n_lessons: Prompts to train on, at most.
        n_searched: Harmful prompts that rankings are made on, at most.
        max_experts: Longest order of experts to ablate.
        n_null: Random orders beside the best ranking, before and after.
        parts: Treatments to run beside the method: those above, ``"routing_held"`` and
            ``"answer_tokens"``, which moves routing only where the answer is written.
        openers: Words that open a refusal; by default the card's or the usual.

    Returns:
        The selection, the concentration before and after, and the table of treatments.

    Raises:
        PromptError: If prompts lack harm or hang together in one unit.
        DesignError: If the model refuses no harmful prompt, or no plan is found.
        ValueError: If a number is out of range or a treatment is unknown.

    References:
        Sun et al. (2026), "MESA", arXiv 2606.00651.

    Example:
        >>> import moe_interp as mi
        >>> import numpy as np
        >>> model = mi.load_model("organism:topic")
        >>> prompts = mi.load_prompts("organism", per_topic=4)
        >>> result = mesa2026(
        ...     model, prompts, rng=np.random.default_rng(0), parts=(), n_searched=4, max_experts=2,
        ...     n_steps=2, n_null=0,
        ... )
        >>> result.numbers["needed"]["before"], sorted(result.numbers["order"]["before"])
        (2, ['L3E8', 'L3E9'])
    """
    model.require_weights("Tuning")
    prompts = prompts.balanced()
    first, second = prompts.split(rng=rng)
    metric = refusal_of(model, openers)
    lessons = lessons_of(model, first, n_lessons)
    record = record_routing(model, first, spans=("prompt",), n_random_routers=0, progress=False)
    n_experts = len(record.layers) * record.n_experts
    n_selected = max(1, n_experts // 4) if n_selected is None else n_selected
    selection = mesa_select(record, n=n_selected, epsilon=epsilon, column_weight=epsilon)
    ways = treatments(model, selection, parts, rng)
    options = {
        "seed": int(rng.integers(2**31)),
        "routing_kl": routing_kl,
        "epochs": max(1, round(n_steps * BATCH_SIZE / len(lessons))),
        "learning_rate": learning_rate,
        "batch_size": BATCH_SIZE,
    }
    harmful = first.select(first.harm)
    judged = {
        "metric": metric,
        "searched": harmful.select(some(len(harmful), n_searched)),
        "judged": second,
        "max_experts": max_experts,
        "rng": rng,
    }
    before = spread_of(model, **judged, n_null=n_null)
    spreads, rows = {}, [_row("untouched", "-", before, before, None)]
    for one in ways:
        tuned = mesa_tune(model, one.selection, lessons, **options | one.options)
        draws = n_null if one.name == "mesa" else 0
        with tuned.applied(model):
            spread = spread_of(model, **judged, n_null=draws, answers=before.answers)
        spreads[one.name] = spread
        rows.append(_row(one.name, one.what, spread, before, tuned))
    after = spreads["mesa"]
    return STUDY.result(
        model,
        prompts,
        rng,
        settings={
            **{name: value for name, value in options.items() if name != "seed"},
            "n_selected": n_selected,
            "epsilon": epsilon,
            "lessons": len(lessons),
            "searched": len(judged["searched"]),
            "judged on": len(second),
            "max_experts": max_experts,
            "n_null": n_null,
        },
        answers=(selection.summary(), *_said(before, after), *map(_said_of_row, rows[2:])),
        numbers=_numbers(before, after)
        | {"selected": [str(expert) for expert in selection.experts]},
        tables={
            "experts": selection.to_frame(),
            "treatments": pd.DataFrame(rows),
            "concentration": _concentration(before, after),
        },
        maps=MAPS,
        truth=tuple(map(str, planted_experts(model))),
    )


def _numbers(before: Spread, after: Spread) -> dict[str, Any]:
    return {
        "needed": {"before": before.needed, "after": after.needed},
        "at_least": {"before": before.at_least, "after": after.at_least},
        "refused": {"before": before.refused, "after": after.refused},
        "harmless_same": after.same,
        "order": {"before": _order(before), "after": _order(after)},
        "p_value": {"before": _p_value(before), "after": _p_value(after)},
    }


def _row(
    name: str, what: str, spread: Spread, before: Spread, tuned: TuneResult | None
) -> dict[str, Any]:
    """One line of the table of treatments."""
    planted = {f"{ranking}_needed": curve.n_needed() for ranking, curve in spread.curves.items()}
    last = {} if tuned is None else tuned.losses[-1]
    return {
        "treatment": name,
        "what": what,
        "parameters": 0 if tuned is None else tuned.delta.n_parameters,
        "needed": spread.needed,
        "at_least": spread.at_least,
        "times": spread.at_least / before.at_least,
        "refused": spread.refused,
        "over_refusal": spread.over_refusal,
        "harmless_same": spread.same,
        **planted,
        "loss": last.get("loss"),
        "routing_kl": last.get("routing_kl"),
    }


def _concentration(before: Spread, after: Spread) -> pd.DataFrame:
    """What is left of refusals after each expert, by ranking, before and after."""
    frames = [
        curve.to_frame().dropna(axis=1, how="all").assign(model=name, ranking=ranking)
        for name, spread in (("before", before), ("after", after))
        for ranking, curve in (*spread.curves.items(), ("best, fewer prompts", spread.null))
        if curve is not None
    ]
    return pd.concat(frames, ignore_index=True)


def _order(spread: Spread) -> list[str]:
    return [] if spread.best is None else [str(expert) for expert in spread.best.order]


def _p_value(spread: Spread) -> float | None:
    return None if spread.null is None else spread.null.p_value()


def _said(before: Spread, after: Spread) -> list[str]:
    def count(spread: Spread) -> str:
        return f"more than {spread.at_least - 1}" if spread.needed is None else str(spread.needed)

    said = [
        f"To halve refusals of held-out prompts, {count(before)} experts must be ablated before "
        f"and {count(after)} after ({after.at_least / before.at_least:.1f} times as many), by the "
        "best of three rankings.",
        f"Refused openings {before.refused:.2f} -> {after.refused:.2f}; {after.same:.1%} of "
        f"harmless answers are the same word by word, {after.over_refusal:.1%} are refusals.",
    ]
    for name, spread in (("before", before), ("after", after)):
        if spread.null is not None:
            said.append(f"Random orders of experts of like use, {name}: {spread.null.summary()}")
    return said


def _said_of_row(row: dict[str, Any]) -> str:
    count = f"more than {row['at_least'] - 1}" if row["needed"] is None else row["needed"]
    return (
        f"{row['treatment'].replace('_', ' ')} ({row['what']}): {count} experts, refused openings "
        f"{row['refused']:.2f}, {row['harmless_same']:.1%} of harmless answers the same."
    )


STUDY = Study(
    name=NAME,
    paper=PAPER,
    arxiv="2606.00651",
    claim="Safety sits in few experts; moving it by optimal transport to experts with room makes "
    "it harder to bypass and keeps what else the model can do.",
    status=STATUS,
    adds="the number of experts to ablate before and after, by the best of three rankings on "
    "held-out prompts, random orders of experts of like use, routing that is held or not "
    "constrained, random experts",
    run=mesa2026,
)
