"""kNN-MoE (2026): tokens are routed as the reference tokens most like them should have been."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float, Int
from numpy import ndarray
from numpy.random import Generator
from scipy import stats as distributions

from moe_interp.errors import DesignError, PromptError
from moe_interp.interventions import RetrieveRouting, RoutingMemory, response_losses
from moe_interp.models import MoEModel
from moe_interp.organism import shifted_prompts
from moe_interp.prompts import PromptSet
from moe_interp.stats import paired_permutation_test
from moe_interp.studies._causal import units_of
from moe_interp.studies._result import StudyResult
from moe_interp.studies._study import Study
from moe_interp.tuning import FittedRouting, fit_routing

NAME, PAPER = "knn_moe2026", "kNN-MoE (2026)"
STATUS = {
    "routing fitted to reference sequences": "abstract and secondary notes; Adam, the model's own "
    "selection and the best step are our reconstruction",
    "memory of router inputs and assignments": "abstract and secondary notes",
    "similarity": "our reconstruction (2 to the power of -(distance / half)^2)",
    "mixture, coefficient = mean similarity": "abstract and secondary notes",
    "shuffled, unfitted, far and empty memories": "our reconstruction of a control",
}
# How far a far memory lies, in units of its spacing and of the distance of half likeness.
_FAR = 100.0


def knn_moe2026(
    model: MoEModel,
    prompts: PromptSet,
    *,
    rng: Generator,
    n_reference: int = 64,
    n_held_out: int = 64,
    n_steps: int = 25,
    learning_rate: float = 0.5,
    n_neighbours: int = 2,
    half: float = 4.0,
    floor: float = 0.01,
    n_shuffles: int = 19,
    n_resamples: int = 1999,
    backend: str = "auto",
) -> StudyResult:
    r"""Fit the routing of reference sequences, and route other sequences by likeness to them.

    On the reference half the router logits of every token are moved to make the responses more
    likely (`fit_routing`). A memory holds what each router saw and what it should have chosen. On
    the held-out half each token's routing is mixed with that of its nearest neighbours
    (`RetrieveRouting`); the coefficient is the neighbours' mean similarity.

    Added here: sequences of one wording or pair stay in one half; the gain comes with an interval
    over exchange units; beside it stand memories that hold the same keys with each other's
    values, the same keys with the model's own routing, the same values at keys far from
    everything, and nothing at all.

    Prompts need responses. For an organism without them, the dialect of `shifted_prompts` is
    taken, of about as many requests as prompts are given.

    Args:
        model: The model; its weights are not changed.
        prompts: Prompts with responses; for an organism any.
        rng: Source of randomness.
        n_reference: Largest number of reference sequences.
        n_held_out: Largest number of held-out sequences.
        n_steps: Steps of the fit.
        learning_rate: Size of a step, in units of a router logit.
        n_neighbours: Neighbours of a token.
        half: Distance at which tokens are half alike, in units of the memory's spacing.
        floor: Similarity below which a neighbour counts for nothing.
        n_shuffles: Memories with each other's values.
        n_resamples: Sign patterns of the test of the gain.
        backend: What is searched with: ``"torch"``, ``"faiss"`` or ``"auto"``.

    Returns:
        The losses with each memory, and the weight of each expert before and after the fit.

    Raises:
        PromptError: If prompts lack responses or hang together in one unit.
        DesignError: If fewer than two units are held out.
        ValueError: If a number is out of range, or a layer does not call its experts by index.

    References:
        Lyu et al. (2026), "Routing by Analogy", arXiv 2601.02144.

    Example:
        >>> import moe_interp as mi
        >>> model = mi.load_model("organism:topic")
        >>> prompts = mi.load_prompts("organism", per_topic=4)
        >>> result = knn_moe2026(
        ...     model, prompts, rng=np.random.default_rng(0), n_steps=5, n_shuffles=1)
        >>> result.numbers["empty_is_identical"], result.numbers["far_is_identical"]
        (True, True)
    """
    if n_shuffles < 1:
        raise ValueError(f"`n_shuffles` must be at least 1, got {n_shuffles!r}.")
    model.require_weights("Fitting routing")
    data = _data(model, prompts)
    reference, held_out = data.split(rng=rng)
    reference, held_out = (
        _some(part, most, rng) for part, most in ((reference, n_reference), (held_out, n_held_out))
    )
    fitted = fit_routing(model, reference, n_steps=n_steps, learning_rate=learning_rate)

    def recall(memory: RoutingMemory) -> RetrieveRouting:
        return RetrieveRouting(
            memory, n_neighbours=n_neighbours, half=half, floor=floor, backend=backend
        )

    losses = _losses(model, held_out, fitted, recall, n_shuffles, half, rng)
    table, numbers = _compare(losses, units_of(held_out), n_resamples, rng)
    numbers["fit"] = {"before": fitted.before.mean(), "after": fitted.after.mean()}
    return STUDY.result(
        model,
        data,
        rng,
        settings={
            "reference sequences": len(reference),
            "held-out sequences": len(held_out),
            "n_steps": n_steps,
            "learning_rate": learning_rate,
            "n_neighbours": n_neighbours,
            "half": half,
            "floor": floor,
            "n_shuffles": n_shuffles,
            "n_resamples": n_resamples,
            "backend": recall(fitted.memory).backend,
        },
        answers=tuple(_said(fitted, table, numbers)),
        numbers=numbers,
        tables={
            "experts": _expert_table(model, fitted),
            "memories": table,
            "layers": _layer_table(model, fitted, held_out, recall(fitted.memory)),
            "sequences": pd.DataFrame(
                {
                    "prompt": held_out.ids,
                    "untouched": losses.untouched,
                    "memory": losses.found["memory"],
                    "shuffled": losses.shuffled.mean(axis=0),
                }
            ),
        },
        maps={"Weight on reference tokens: fitted less the model's own": "difference"},
    )


@dataclass(frozen=True)
class _Losses:
    """Losses of the held-out responses: untouched, by memory, and with each shuffled memory."""

    untouched: Float[ndarray, " prompt"]
    found: dict[str, Float[ndarray, " prompt"]]
    shuffled: Float[ndarray, "shuffle prompt"]


def _losses(
    model: MoEModel,
    held_out: PromptSet,
    fitted: FittedRouting,
    recall: Callable[[RoutingMemory], RetrieveRouting],
    n_shuffles: int,
    half: float,
    rng: Generator,
) -> _Losses:
    def losses(*recipes: list[RetrieveRouting]) -> Float[ndarray, "recipe prompt"]:
        # Each in batches of its own, so that what changes nothing is the same bit for bit.
        return np.concatenate([response_losses(model, held_out, [one]) for one in recipes])

    memories = {
        "memory": fitted.memory,
        "unfitted memory": fitted.own,
        "far memory": fitted.memory.moved(_FAR * half),
        "empty memory": fitted.memory.select([]),
    }
    untouched, *found = losses([], *([recall(memory)] for memory in memories.values()))
    shuffled = [[recall(fitted.memory.shuffled(rng=rng))] for _ in range(n_shuffles)]
    return _Losses(untouched, dict(zip(memories, found, strict=True)), losses(*shuffled))


def _compare(
    losses: _Losses, units: Int[ndarray, " prompt"], n_resamples: int, rng: Generator
) -> tuple[pd.DataFrame, dict[str, Any]]:
    """The gain of each memory, and how far the fitted one's lies beyond the shuffled ones'."""
    untouched, found, shuffled = losses.untouched, losses.found, losses.shuffled
    rows = found | {"shuffled memory (mean)": shuffled.mean(axis=0)}
    table = pd.DataFrame(
        [_gain(name, untouched, one, units, n_resamples, rng) for name, one in rows.items()]
    )
    gain, gains = float(table["gain"][0]), untouched.mean() - shuffled.mean(axis=1)
    beyond = _gain("", shuffled.mean(axis=0), found["memory"], units, n_resamples, rng)
    return table, {
        "gain": gain,
        "shuffled_gains": gains,
        "p_shuffled": (1 + int((gains >= gain - 1e-9).sum())) / (1 + len(gains)),
        "beyond_shuffled": {name: beyond[name] for name in ("gain", "low", "high", "p")},
        "empty_is_identical": bool(np.array_equal(found["empty memory"], untouched)),
        "far_is_identical": bool(np.array_equal(found["far memory"], untouched)),
    }


def _data(model: MoEModel, prompts: PromptSet) -> PromptSet:
    has = np.array([response is not None for response in prompts.responses])
    if has.all():
        return prompts
    if has.any() or model.card is None:
        raise PromptError(
            f"{int((~has).sum())} of {len(has)} prompts have no `response`, and routing is fitted "
            "to make responses likely. Give each prompt its `response`."
        )
    topics = len(set(prompts.topics))
    return shifted_prompts(per_topic=max(1, len(prompts) // (2 * max(topics, 1))))


def _some(prompts: PromptSet, most: int, rng: Generator) -> PromptSet:
    """At most so many prompts, in their order."""
    if most < 1:
        raise ValueError(f"Reference and held-out sequences must be at least 1, got {most!r}.")
    rows = np.sort(rng.permutation(len(prompts))[:most])
    return prompts.select(rows.tolist())


def _gain(
    name: str,
    before: Float[ndarray, " prompt"],
    after: Float[ndarray, " prompt"],
    units: Int[ndarray, " prompt"],
    n_resamples: int,
    rng: Generator,
) -> dict[str, Any]:
    """How much better responses are foretold, with an interval and a test over units."""
    distinct = np.unique(units)
    if len(distinct) < 2:
        raise DesignError(
            "The held-out sequences are one unit (one wording, pair or prompt), which leaves "
            "nothing to estimate an error from. Give more sequences, in more units."
        )
    means = [[own[units == one].mean() for one in distinct] for own in (before, after)]
    apart = np.array(means[0]) - np.array(means[1])
    reach = distributions.t.ppf(0.975, len(apart) - 1) * apart.std(ddof=1) / len(apart) ** 0.5
    test = paired_permutation_test(
        np.array(means[0])[:, None], np.array(means[1])[:, None], n_resamples=n_resamples, rng=rng
    )
    return {
        "memory": name,
        "loss": float(after.mean()),
        "gain": float(before.mean() - after.mean()),
        "low": float(apart.mean() - reach),
        "high": float(apart.mean() + reach),
        "p": float(test.p_value[0]),
        "sequences_better": float((after < before).mean()),
        "units": len(distinct),
    }


def _expert_table(model: MoEModel, fitted: FittedRouting) -> pd.DataFrame:
    """Mean weight of each expert over the reference tokens."""
    frames = []
    for layer in fitted.memory.layers:
        n_experts = model.moe[layer].n_experts
        means = {
            name: np.bincount(
                memory.index[layer].numpy().ravel(),
                weights=memory.weights[layer].double().numpy().ravel(),
                minlength=n_experts,
            )
            / len(memory)
            for name, memory in (("own", fitted.own), ("fitted", fitted.memory))
        }
        frames.append(pd.DataFrame({"layer": layer, "expert": np.arange(n_experts), **means}))
    table = pd.concat(frames, ignore_index=True)
    return table.assign(difference=table["fitted"] - table["own"])


def _layer_table(
    model: MoEModel, fitted: FittedRouting, held_out: PromptSet, recall: RetrieveRouting
) -> pd.DataFrame:
    """How near the held-out tokens are to the memory, as the untouched model sees them."""
    seen = fit_routing(model, held_out, n_steps=0).own
    rows = []
    for layer in fitted.memory.layers:
        spacing = fitted.memory.spacing(layer)
        distance, _ = fitted.memory.search(
            layer, seen.keys[layer], recall.n_neighbours, backend=recall.backend
        )
        alike = np.exp2(-distance.double().numpy() / (recall.half * spacing) ** 2)
        alike[alike < recall.floor] = 0
        rows.append(
            {
                "layer": layer,
                "spacing": spacing,
                "coefficient": float(alike.mean()),
                "tokens_with_a_neighbour": float((alike > 0).any(axis=1).mean()),
                "rerouted_reference_tokens": _rerouted(fitted, layer),
            }
        )
    return pd.DataFrame(rows)


def _rerouted(fitted: FittedRouting, layer: int) -> float:
    """Part of the reference tokens whose fitted experts are others than the model's own."""
    own, new = (memory.index[layer].sort(-1).values for memory in (fitted.own, fitted.memory))
    return float((own != new).any(-1).double().mean())


def _said(fitted: FittedRouting, table: pd.DataFrame, numbers: dict[str, Any]) -> list[str]:
    rows = table.set_index("memory")
    first, beyond = rows.loc["memory"], numbers["beyond_shuffled"]
    low, high = numbers["shuffled_gains"].min(), numbers["shuffled_gains"].max()
    same = {True: "changes nothing, bit for bit", False: "changes something"}
    return [
        f"Reference: {fitted.summary()}",
        f"Held out: the memory changes the loss by {-first['gain']:+.3f} nats per token to "
        f"{first['loss']:.3f} (gain [{first['low']:+.3f}, {first['high']:+.3f}], p = "
        f"{first['p']:.3g}, {first['units']:.0f} units).",
        f"Memories with each other's values gain {low:+.3f} to {high:+.3f} (p = "
        f"{numbers['p_shuffled']:.3g}); beyond their mean the memory gains {beyond['gain']:+.3f} "
        f"[{beyond['low']:+.3f}, {beyond['high']:+.3f}].",
        f"With the model's own routing as values it gains "
        f"{rows.loc['unfitted memory', 'gain']:+.3f}: what neighbours alone give.",
        f"An empty memory {same[numbers['empty_is_identical']]}; one far from everything "
        f"{same[numbers['far_is_identical']]}.",
    ]


STUDY = Study(
    name=NAME,
    paper=PAPER,
    arxiv="2601.02144",
    claim="Routing optimised for reference sequences, looked up by likeness and mixed with the "
    "router's own, beats zero-shot and rivals fine-tuning.",
    status=STATUS,
    adds="held-out units, an interval over them, memories that are shuffled, unfitted, far and "
    "empty",
    run=knn_moe2026,
)
