"""Routing drift (SafeMoE, RASA): did a second checkpoint lose its refusals through its routers?"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Bool
from numpy import ndarray
from numpy.random import Generator

from moe_interp.errors import DesignError
from moe_interp.interventions import Transplant, routing_of, run
from moe_interp.metrics import RefusalLogOdds
from moe_interp.models import MoEModel, load_model
from moe_interp.organism import organism_path, restore_base_experts
from moe_interp.prompts import PromptSet
from moe_interp.scores import Scores, selection_frequency
from moe_interp.studies._causal import ANSWER_TOKENS, planted_experts, refusal_of
from moe_interp.studies._raset2026_tuning import BATCH_SIZE, is_organism, lessons_of
from moe_interp.studies._result import StudyResult
from moe_interp.studies._study import Study
from moe_interp.tuning import (
    ModelChange,
    Observation,
    RoutingDrift,
    TuneResult,
    model_change,
    observe,
    routing_drift,
    tune_experts,
)

NAME, PAPER = "drift", "SafeMoE (2025)"
STATUS = {
    "routing drift, KL at the last prompt token": "read in code (SafeMoE); temperature 0.1",
    "restoring the old routing": "abstract (SafeMoE's causal check); experts and weights of prompt "
    "tokens, generated tokens are routed freely",
    "routing-KL regulariser": "read in code (SafeMoE); here on the prompts that are trained "
    "on, at every step",
    "new routing in the old model": "our reconstruction of a control",
    "change of top-k slots": "secondary notes (RASET, arXiv 2605.29708)",
}
SPANS = ("prompt", "last")
# Below this change of refused openings there is nothing to be restored.
LEAST_CHANGE = 0.1


@dataclass(frozen=True, eq=False)
class _Checkpoint:
    """One second model: what differs, and what it does with and without the first's routing.

    Attributes:
        name: What was changed to get it.
        change: Refusals, harmless answers and routing, first model to second.
        moved: Routing drift of harmful prompts at the last token.
        opened: Whether harmful prompts open with a refusal: in the first model, the second, the
            second with the first's routing, and the first with the second's routing.
        use_change: How much more often harmful prompts choose each expert in the second model.
    """

    name: str
    change: ModelChange
    moved: RoutingDrift
    opened: dict[str, Bool[ndarray, " prompt"]]
    use_change: Scores

    @property
    def kl_last(self) -> float:
        """Mean divergence of the routers at the last token of harmful prompts, in nats."""
        return float(self.moved.kl_nats.mean())

    @property
    def rates(self) -> dict[str, float]:
        """Refused openings in each state."""
        return {state: float(found.mean()) for state, found in self.opened.items()}

    def part(self, state: str) -> float | None:
        """How much of the change of refusals a state with foreign routing shows; None if none.

        Of ``"restored"``, the part that is undone by the old routing; of ``"carried"``, the part
        that the new routing makes by itself.
        """
        rates = self.rates
        whole = rates["after"] - rates["before"]
        if abs(whole) < LEAST_CHANGE:
            return None
        start = rates["after"] if state == "restored" else rates["before"]
        # Adding 0 turns a negative 0 into 0.
        return (rates[state] - start) / (-whole if state == "restored" else whole) + 0.0


def drift(
    model: MoEModel,
    prompts: PromptSet,
    *,
    rng: Generator,
    base: MoEModel | str | None = None,
    steps: int = 96,
    learning_rate: float = 0.03,
    penalty: float = 3.0,
    temperature: float = 0.1,
    openers: Sequence[str] | None = None,
) -> StudyResult:
    r"""Ask how much of a change of refusals between two checkpoints is a change of routing.

    Routing of the same tokens is compared: the share of top-k slots that changed, and
    :math:`\mathrm{KL}(\sigma(z/\tau) \| \sigma(z'/\tau))` of the routers at the last token of
    harmful prompts. Then the old routing is put into the new model: what that brings back was lost
    through the routers. And the new routing is put into the old model: what that takes away, the
    routers take away alone.

    With `base`, `model` is compared with it. Without, on an organism, the organism is compared
    with copies whose truth is known: its un-aligned twin, in which nothing but experts differ; a
    copy in which nothing but routers were trained to answer; one in which everything was; and the
    last two trained again with a penalty on the divergence of routing.

    Args:
        model: The second checkpoint; or, without `base`, an organism, which is the first.
        prompts: Harmful and harmless prompts.
        rng: Source of randomness.
        base: The first checkpoint, such as the model before fine-tuning, or its name.
        steps: Steps of training of each copy of an organism, about.
        learning_rate: Of the copies in which routers alone are trained; the others get a tenth.
        penalty: Weight of the penalty on routing in the copies that have one.
        temperature: What routers' logits are divided by in drift and penalty.
        openers: Words that open a refusal; by default the card's or the usual.

    Returns:
        Drift, refusals, and what the routing accounts for, for each second checkpoint.

    Raises:
        DesignError: If there is no first checkpoint, or the two route other tokens or layers.
        PromptError: If prompts lack harm.
        ValueError: If a number is out of range.

    References:
        SafeMoE: "Safe Fine-Tuning for MoE LLMs by Aligning Harmful Input Routing" (2025),
        arXiv 2509.22745. RASA (2026), arXiv 2602.04448.

    Example:
        >>> import moe_interp as mi
        >>> model = mi.load_model("organism:topic")
        >>> prompts = mi.load_prompts("organism", per_topic=1)
        >>> result = drift(model, prompts, rng=np.random.default_rng(0), base=model)
        >>> float(result.tables["checkpoints"]["slots_changed_prompt"].iloc[0])
        0.0
    """
    prompts = prompts.balanced()
    metric = refusal_of(model, openers)
    made: dict[str, Callable[[], AbstractContextManager[MoEModel]]]
    if base is not None:
        first = load_model(base) if isinstance(base, str) else base
        judged_on, made = prompts, {"model": lambda: nullcontext(model)}
    else:
        _need_organism(model)
        trained_on, judged_on = prompts.split(rng=rng)
        seed = int(rng.integers(2**31))
        first = model
        made = _copies(
            model,
            trained_on,
            steps=steps,
            learning_rate=learning_rate,
            penalty=penalty,
            temperature=temperature,
            seed=seed,
        )
    before = observe(first, judged_on, spans=SPANS, max_new_tokens=ANSWER_TOKENS)
    checkpoints = [
        _compare(name, first, make, before, judged_on, metric, temperature)
        for name, make in made.items()
    ]
    table = _table(checkpoints)
    return STUDY.result(
        model,
        prompts,
        rng,
        settings={
            "first checkpoint": first.id,
            "steps": steps,
            "learning_rate": learning_rate,
            "penalty": penalty,
            "temperature": temperature,
            "judged on": len(judged_on),
        },
        answers=(*map(_said, checkpoints), *_said_of_all(table)),
        numbers={
            one.name: {
                "refused_openings": one.rates,
                "restored_part": one.part("restored"),
                "carried_part": one.part("carried"),
                **one.change.to_dict(),
            }
            for one in checkpoints
        },
        tables={
            "checkpoints": table,
            "layers": _layer_table(checkpoints),
            "experts": _expert_table(checkpoints),
        },
        maps={f"Use by harmful prompts: {one.name} less first": one.name for one in checkpoints},
        truth=tuple(map(str, planted_experts(model))),
    )


def _need_organism(model: MoEModel) -> None:
    if not is_organism(model):
        raise DesignError(
            f"Drift is between two checkpoints, and {model.id!r} is one. Pass the first as `base=` "
            "(--base in a shell), such as the model before it was fine-tuned."
        )


def _copies(
    model: MoEModel,
    lessons_from: PromptSet,
    *,
    steps: int,
    learning_rate: float,
    penalty: float,
    temperature: float,
    seed: int,
) -> dict[str, Callable[[], AbstractContextManager[MoEModel]]]:
    """Second checkpoints of an organism, by what was changed; made when they are asked for."""
    harmless = lessons_from.select(~lessons_from.harm)
    answers = run(model, harmless, max_new_tokens=ANSWER_TOKENS).texts
    lessons = lessons_of(model, lessons_from, answers, model.card["refusal"]["text"])
    held = {
        "routing_kl": penalty,
        "routing_temperature": temperature,
        "routing_tokens": "last",
    }
    full = {"everything": True, "learning_rate": learning_rate / 10}
    routers = {"routers": True, "learning_rate": learning_rate}
    ways: dict[str, dict[str, Any]] = {
        "routers_only": routers,
        "routers_only_held": routers | held,
        "full": full,
        "full_held": full | held,
    }
    epochs = max(1, round(steps * BATCH_SIZE / len(lessons)))

    def tuned(way: dict[str, Any]) -> AbstractContextManager[MoEModel]:
        found: TuneResult = tune_experts(
            model, "", lessons, seed=seed, epochs=epochs, batch_size=BATCH_SIZE, **way
        )
        return found.applied(model)

    twin = (
        {"experts_only": lambda: nullcontext(_twin(model))} if len(planted_experts(model)) else {}
    )
    return {**twin, **{name: lambda way=way: tuned(way) for name, way in ways.items()}}


def _twin(model: MoEModel) -> MoEModel:
    """The organism's un-aligned twin: its safety experts are other ones, all the rest is equal."""
    path = organism_path(model.card["name"])
    twin = load_model(str(path), check=False)
    restore_base_experts(twin.nnsight._module, path)
    return twin


def _compare(
    name: str,
    first: MoEModel,
    make: Callable[[], AbstractContextManager[MoEModel]],
    before: Observation,
    judged_on: PromptSet,
    metric: RefusalLogOdds,
    temperature: float,
) -> _Checkpoint:
    """Observe a second checkpoint, with its own routing and with the first's."""
    harmful = judged_on.select(judged_on.harm)
    old = routing_of(first, harmful)
    opened = {"before": _opens(first, harmful, metric)}
    with make() as second:
        after = observe(second, judged_on, spans=SPANS, max_new_tokens=ANSWER_TOKENS)
        new = routing_of(second, harmful)
        opened["after"] = _opens(second, harmful, metric)
        opened["restored"] = _opens(second, harmful, metric, Transplant(old))
    opened["carried"] = _opens(first, harmful, metric, Transplant(new))
    records = (one.record.select(judged_on.harm) for one in (before, after))
    moved = routing_drift(*records, span="last", temperature=temperature)
    use = [selection_frequency(one.record, span="prompt") for one in (before, after)]
    difference = [one.array.values[judged_on.harm].mean(axis=0) for one in use]
    return _Checkpoint(
        name=name,
        change=model_change(before, after),
        moved=moved,
        opened=opened,
        use_change=Scores.of_array(
            name, use[0].unit, difference[1] - difference[0], layers=use[0].layers
        ),
    )


def _opens(
    model: MoEModel, prompts: PromptSet, metric: RefusalLogOdds, *recipe: Transplant
) -> Bool[ndarray, " prompt"]:
    """Whether each prompt is more likely to be opened with a refusal than not."""
    return (metric(run(model, prompts, list(recipe)).logits) > 0).numpy()


def _table(checkpoints: Sequence[_Checkpoint]) -> pd.DataFrame:
    """One row a second checkpoint."""
    rows = []
    for one in checkpoints:
        frame = one.change.to_frame().iloc[0].to_dict()
        kept = {
            name: value
            for name, value in frame.items()
            if name.startswith("slots_changed") or name in ("over_refusal", "answers_changed")
        }
        rows.append(
            {
                "checkpoint": one.name,
                **{f"opened_{state}": rate for state, rate in one.rates.items()},
                "restored_part": one.part("restored"),
                "carried_part": one.part("carried"),
                "written_before": frame["refused_before"],
                "written_after": frame["refused_after"],
                "kl_last": one.kl_last,
                **kept,
            }
        )
    return pd.DataFrame(rows)


def _layer_table(checkpoints: Sequence[_Checkpoint]) -> pd.DataFrame:
    """Drift of harmful prompts at the last token, by layer."""
    frames = [one.moved.to_frame().assign(checkpoint=one.name) for one in checkpoints]
    return pd.concat(frames, ignore_index=True)


def _expert_table(checkpoints: Sequence[_Checkpoint]) -> pd.DataFrame:
    """How much more harmful prompts use each expert in each second checkpoint."""
    table = checkpoints[0].use_change.to_frame()[["layer", "expert"]]
    for one in checkpoints:
        table[one.name] = one.use_change.mean.ravel()
    return table


def _said(one: _Checkpoint) -> str:
    rates, drifts = one.rates, one.change.drift
    said = (
        f"{one.name.replace('_', ' ')}: {drifts['prompt'].mean()[0]:.2%} of the routed slots of "
        f"prompts changed, {drifts['last'].mean()[0]:.2%} at the last token (KL {one.kl_last:.3g} "
        f"nats at temperature {one.moved.temperature:g}, harmful prompts); refused openings "
        f"{rates['before']:.2f} -> {rates['after']:.2f}, with the old routing "
        f"{rates['restored']:.2f}; the old model with the new routing {rates['carried']:.2f}; "
        f"{one.change.off_target['answers_changed'].observed:.0%} of harmless answers change."
    )
    restored, carried = one.part("restored"), one.part("carried")
    if restored is None:
        return f"{said} Refusals hardly changed: there is nothing to be restored."
    return (
        f"{said} The old routing undoes {restored:.0%} of the change, and the new routing alone "
        f"makes {carried:.0%} of it."
    )


def _said_of_all(table: pd.DataFrame) -> list[str]:
    """Whether drift foretells lost refusals, if there are checkpoints enough to ask."""
    lost = table["opened_before"] - table["opened_after"]
    if len(table) < 3 or lost.std() == 0 or table["kl_last"].std() == 0:
        return []
    r = float(np.corrcoef(table["kl_last"], lost)[0, 1])
    return [
        f"Over these {len(table)} checkpoints drift and lost refusals correlate with r = {r:.2f} "
        "(SafeMoE: 0.96). Where nothing but experts changed, refusals are lost without drift, and "
        "no drift foretells it."
    ]


STUDY = Study(
    name=NAME,
    paper=PAPER,
    arxiv="2509.22745",
    claim="Fine-tuning moves the routing of harmful prompts, the more it moves the more safety is "
    "lost, the old routing brings safety back, and a penalty on drift keeps it.",
    status=STATUS,
    adds="top-k slots beside divergence, the new routing in the old model, a second checkpoint in "
    "which nothing but experts changed and one in which nothing but routers did, harmless answers",
    run=drift,
)
