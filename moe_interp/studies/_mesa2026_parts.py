"""Parts of the MESA study: lessons, the treatments to compare, and how concentrated refusal is."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, get_args

import numpy as np
from jaxtyping import Int
from numpy import ndarray
from numpy.random import Generator

from moe_interp.capture import record_routing
from moe_interp.errors import DesignError
from moe_interp.experts import Expert, ExpertSet
from moe_interp.interventions import run
from moe_interp.metrics import RefusalLogOdds, RefusalRate
from moe_interp.models import MoEModel
from moe_interp.prompts import PromptSet
from moe_interp.scores import (
    AblationCurve,
    MesaSelection,
    Scores,
    ablation_curve,
    attribution,
    greedy_ablation,
    select_experts,
    selection_frequency,
)
from moe_interp.studies._causal import ANSWER_TOKENS

#: What the method is compared with.
Part = Literal[
    "routers_only",
    "experts_only",
    "all_experts",
    "no_transport",
    "routing_held",
    "costly_experts",
    "random_experts",
    "answer_tokens",
]
#: Those that run if nothing else is asked for: the paper's own, and random experts.
USUAL: tuple[Part, ...] = (
    "routers_only",
    "experts_only",
    "all_experts",
    "no_transport",
    "costly_experts",
    "random_experts",
)
# Experts that the greedy search tries, by the magnitude of their attribution.
_N_TRIED = 64
_N_FOR_NULL = 32


@dataclass(frozen=True)
class Treatment:
    """One way to tune.

    Attributes:
        name: What it is called.
        what: What is done, in words.
        selection: Experts and costs.
        options: What `mesa_tune` is called with beyond the common options.
    """

    name: str
    what: str
    selection: MesaSelection
    options: Mapping[str, Any] = field(default_factory=dict)


def treatments(
    model: MoEModel, selection: MesaSelection, parts: Sequence[Part], rng: Generator
) -> list[Treatment]:
    """The method, and what it is compared with.

    Args:
        model: The model.
        selection: What was selected.
        parts: Names of comparisons.
        rng: Source of the random experts.

    Returns:
        The treatments, the method first.

    Raises:
        ValueError: If there is no comparison of that name.
    """
    known = get_args(Part)
    unknown = [part for part in parts if part not in known]
    if unknown:
        raise ValueError(f"`parts` must be among {known}, got {unknown[0]!r}.")
    n = len(selection.experts)
    every = [Expert(layer, e) for layer, site in model.moe.items() for e in range(site.n_experts)]
    drawn = ExpertSet(every[place] for place in rng.choice(len(every), n, replace=False))
    held = replace(selection, cost=replace(selection.cost, array=0 * selection.cost.array))
    costly = select_experts(selection.cost, n=n)
    ways = {
        "routers_only": ("routers, moved routing", selection, {"experts": ""}),
        "experts_only": (
            "selected experts, routers frozen",
            selection,
            {"routers": False, "routing_kl": 0.0},
        ),
        "all_experts": ("all experts, routers, moved routing", selection, {"experts": "all"}),
        "no_transport": (
            "selected experts, routers, no routing loss",
            selection,
            {"routing_kl": 0.0},
        ),
        "routing_held": ("selected experts, routers, routing held as it was", held, {}),
        "costly_experts": (
            "costliest experts, routers, moved routing",
            selection,
            {"experts": costly},
        ),
        "random_experts": ("random experts, routers, moved routing", selection, {"experts": drawn}),
        "answer_tokens": (
            "selected experts, routers, routing moved where the answer is written",
            selection,
            {"tokens": "answer"},
        ),
    }
    mesa = Treatment("mesa", "selected experts, routers, moved routing", selection)
    return [mesa, *(Treatment(name, *ways[name]) for name in parts)]


def lessons_of(model: MoEModel, prompts: PromptSet, n: int) -> PromptSet:
    """Prompts with their responses, or with the model's own refusals and harmless answers.

    Args:
        model: The model.
        prompts: As many harmful as harmless prompts.
        n: How many, at most.

    Returns:
        The lessons.

    Raises:
        DesignError: If responses are missing and the model refuses no harmful prompt.
    """
    harm = prompts.harm
    groups = [np.flatnonzero(harm == level) for level in (False, True)]
    kept = [group[some(len(group), n // 2)] for group in groups]
    chosen = prompts.select(np.sort(np.concatenate(kept)))
    if all(prompt.response is not None for prompt in chosen):
        return chosen
    texts = run(model, chosen, max_new_tokens=ANSWER_TOKENS).texts
    refused = (RefusalRate().of_texts(texts) > 0) & chosen.harm
    refusals = Counter(text for text, said in zip(texts, refused, strict=True) if said)
    if not refusals:
        raise DesignError(
            "The model refuses none of the harmful prompts, so there is no refusal of its own to "
            "spread. Give prompts with a `response` to learn."
        )
    usual = refusals.most_common(1)[0][0]
    return PromptSet(
        [
            replace(prompt, response=usual if prompt.harm and not said else text)
            for prompt, text, said in zip(chosen, texts, refused, strict=True)
        ],
        source=f"{prompts.source}, answered by the model",
    )


def some(n: int, limit: int) -> Int[ndarray, " chosen"]:
    """Places of at most `limit` of `n` things, evenly spread."""
    return np.unique(np.linspace(0, n - 1, min(n, max(limit, 1))).round().astype(int))


@dataclass(frozen=True)
class Spread:
    """How concentrated refusal is in one model, and how the model answers.

    Attributes:
        curves: What is left of refusals as experts are banned, by ranking.
        best: The curve of the ranking that needs the fewest experts; None if nothing is refused.
        null: The same, as far as needed and on fewer prompts, beside random orders.
        refused: Fraction of held-out harmful prompts whose refusal is the likeliest opening.
        over_refusal: Fraction of held-out harmless prompts that are refused in writing.
        same: Fraction of held-out harmless answers that are those of the untouched model.
        answers: These answers.
    """

    curves: Mapping[str, AblationCurve]
    best: AblationCurve | None
    null: AblationCurve | None
    refused: float
    over_refusal: float
    same: float
    answers: tuple[str, ...]

    @property
    def needed(self) -> int | None:
        """Fewest experts, over the rankings, without which refusals are at most half."""
        return None if self.best is None else self.best.n_needed()

    @property
    def at_least(self) -> int:
        """That number; or one more than the longest order tried, if none was enough."""
        if self.best is None:
            return 0
        return len(self.best.order) + 1 if self.needed is None else self.needed


def spread_of(
    model: MoEModel,
    *,
    metric: RefusalLogOdds,
    searched: PromptSet,
    judged: PromptSet,
    max_experts: int,
    n_null: int,
    rng: Generator,
    answers: Sequence[str] | None = None,
) -> Spread:
    """Rank experts on some prompts, and ban them one after another on others.

    Args:
        model: The model as it is.
        metric: Its refusal log-odds.
        searched: Harmful prompts to rank on.
        judged: Other prompts, harmful and harmless.
        max_experts: Length of the orders.
        n_null: Random orders beside the best ranking.
        rng: Source of randomness.
        answers: The untouched model's answers to the harmless prompts; its own if None.

    Returns:
        The curves and the answers.
    """
    harmful, benign = judged.select(judged.harm), judged.select(~judged.harm)
    texts = tuple(run(model, benign, max_new_tokens=ANSWER_TOKENS).texts)
    about = {
        "over_refusal": float(RefusalRate().of_texts(texts).mean()),
        "same": float(np.mean([a == b for a, b in zip(texts, answers or texts, strict=True)])),
        "answers": texts,
    }
    refused = float((metric(run(model, harmful).logits) > 0).float().mean())
    if not refused:
        return Spread({}, None, None, refused, **about)
    record = record_routing(model, searched, n_random_routers=0, progress=False)
    use = selection_frequency(record, span="prompt")
    orders = _orders(model, searched, metric, use, max_experts)
    curves = {
        name: ablation_curve(model, harmful, order, metric=metric) for name, order in orders.items()
    }
    best = min(curves.values(), key=lambda curve: curve.n_needed() or len(curve.order) + 1)
    null = None
    if n_null:
        fewer = harmful.select(some(len(harmful), _N_FOR_NULL))
        order = best.order[: best.n_needed()]
        null = ablation_curve(
            model, fewer, order, metric=metric, match=use, n_draws=n_null, rng=rng
        )
    return Spread(curves, best, null, refused, **about)


def _orders(
    model: MoEModel,
    searched: PromptSet,
    metric: RefusalLogOdds,
    use: Scores,
    max_experts: int,
) -> dict[str, list[Expert]]:
    """The experts in the order in which each ranking takes them away."""
    n_all = use.mean.size
    slopes = [expert for expert, _ in abs(attribution(model, searched, metric=metric)).top(n_all)]
    refused = float((metric(run(model, searched).logits) > 0).float().mean())
    found = greedy_ablation(
        model,
        searched,
        metric=metric,
        candidates=slopes[:_N_TRIED],
        stop_at=refused / 2,
        max_experts=max_experts,
    )
    taken = [step.expert for step in found.steps]
    kept = [
        *(e for e in taken if e in found.experts),
        *(e for e in found.experts if e not in taken),
    ]
    ranked = {
        "greedy": [*kept, *(expert for expert in slopes if expert not in found.experts)],
        "attribution": slopes,
        "use": [expert for expert, _ in use.top(n_all)],
    }
    return {name: _possible(model, order)[:max_experts] for name, order in ranked.items()}


def _possible(model: MoEModel, order: Sequence[Expert]) -> list[Expert]:
    """As much of an order as leaves each layer enough experts, and as many to stand in for them."""
    left = {
        layer: min(site.n_experts // 2, site.n_experts - site.top_k)
        for layer, site in model.moe.items()
    }
    kept = []
    for expert in order:
        if left[expert.layer]:
            left[expert.layer] -= 1
            kept.append(expert)
    return kept
