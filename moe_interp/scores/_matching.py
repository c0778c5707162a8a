"""Random counterparts of interventions: the same change at experts of the same layers and use."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from numpy import ndarray
from numpy.random import Generator

from moe_interp.errors import DesignError
from moe_interp.experts import Expert, ExpertSet
from moe_interp.interventions import ExpertIntervention, Intervention
from moe_interp.scores._scores import Scores

# Width of the kernel in log use: an expert used twice as much is one width away.
_WIDTH = np.log(2)
# Uses below this part of the layer's largest are alike: on a few hundred prompts a token or two.
_SMALLEST = 1e-3
# Effects closer than this count as equal: the same run differs by as much from batch to batch, and
# a set without any effect must not beat another such set by its rounding.
_TIE = 1e-5


@dataclass(frozen=True)
class Draw:
    """One random counterpart.

    Attributes:
        recipe: The interventions at random experts.
        experts: Those experts.
        key: Equal for counterparts that are the same.
    """

    recipe: tuple[Intervention, ...]
    experts: ExpertSet
    key: object


def named_experts(recipe: Sequence[Intervention]) -> ExpertSet:
    """All experts that the interventions name."""
    return ExpertSet(expert for one in recipe for expert in one.named_experts)


def draw_counterparts(
    recipe: Sequence[Intervention], match: Sequence[Scores], n_draws: int, rng: Generator
) -> list[Draw]:
    """Draw experts of the same layers and like use, and change those in the same way.

    Args:
        recipe: The interventions in question.
        match: Measures of use that the experts are matched on.
        n_draws: How many counterparts.
        rng: Source of randomness.

    Returns:
        The counterparts.

    Raises:
        DesignError: If a layer has too few experts left to draw from, or an intervention has no
            random counterpart.
        ValueError: If `match` does not measure use.
    """
    odds = {
        expert: _odds(recipe, expert, others, match, rng)
        for expert, others in _candidates(recipe, match).items()
    }
    draws = []
    for _ in range(n_draws):
        places = _draw_places(odds, rng)
        drawn = tuple(one.matched(places, rng) for one in recipe)
        draws.append(Draw(drawn, ExpertSet(places.values()), _key(recipe, places)))
    return draws


def _candidates(
    recipe: Sequence[Intervention], match: Sequence[Scores]
) -> dict[Expert, list[Expert]]:
    """The experts of its layer, for each expert, that are not in question themselves."""
    found = {}
    for layer, ids in named_experts(recipe).by_layer().items():
        n_experts = match[0].n_experts
        free = [Expert(layer, other) for other in range(n_experts) if other not in ids]
        if len(free) < len(ids):
            raise DesignError(
                f"Layer {layer} has {n_experts} experts, {len(ids)} of which are in question: "
                "too few are left for a random set. Ask about fewer experts of this layer."
            )
        found |= {Expert(layer, expert): free for expert in ids}
    return found


def _odds(
    recipe: Sequence[Intervention],
    expert: Expert,
    others: Sequence[Expert],
    match: Sequence[Scores],
    rng: Generator,
) -> dict[Expert, float]:
    """Log odds of standing in for an expert, of those that the same could be done to."""
    ours = [one for one in recipe if expert in one.named_experts]
    able = [other for other in others if _fits(ours, expert, other, rng)]
    likeness = log_likeness(match, expert)
    return {other: float(likeness[other.expert]) for other in able}


def log_likeness(match: Sequence[Scores], expert: Expert) -> Float[ndarray, " expert"]:
    """Log odds of standing in for an expert, by likeness of use, of all experts of its layer."""
    use = np.stack([log_use(score, expert.layer) for score in match])
    return -0.5 * (((use - use[:, [expert.expert]]) / _WIDTH) ** 2).sum(axis=0)


def _draw_places(
    odds: Mapping[Expert, Mapping[Expert, float]], rng: Generator
) -> dict[Expert, Expert]:
    """One expert for each, none of them twice."""
    places: dict[Expert, Expert] = {}
    experts = list(odds)
    # In random order: the last expert gets what the others left.
    for place in rng.permutation(len(experts)):
        expert = experts[place]
        free = {o: odd for o, odd in odds[expert].items() if o not in places.values()}
        if not free:
            raise DesignError(
                f"No expert of layer {expert.layer} is left to stand in for {expert}: the change "
                "cannot act on any other. Give a reference in which more experts of this layer "
                "are chosen."
            )
        # Less the largest, so that the nearest is likely however far it is.
        weight = np.exp(np.array(list(free.values())) - max(free.values()))
        places[expert] = list(free)[rng.choice(len(free), p=weight / weight.sum())]
    return places


def _key(recipe: Sequence[Intervention], places: Mapping[Expert, Expert]) -> object:
    if not all(len(one.named_experts) for one in recipe):
        # What names no experts, such as a vector, is drawn anew each time.
        return object()
    if len(recipe) == 1 and isinstance(recipe[0], ExpertIntervention):
        return ExpertSet(places.values())
    return frozenset(places.items())


def log_use(score: Scores, layer: int) -> Float[ndarray, " expert"]:
    """Logarithm of the use of a layer's experts, with a floor for those next to unused.

    Raises:
        ValueError: If the score is no measure of use: negative, or unknown for an expert.
    """
    use = score.of_layer(layer)
    if not np.isfinite(use).all() or (use < 0).any():
        expert = int(np.flatnonzero(~np.isfinite(use) | (use < 0))[0])
        raise ValueError(
            f"`match` must measure the use of every expert, with numbers from 0 on, but "
            f"{score.name!r} of {Expert(layer, expert)} is {use[expert]:.3g}. Match on "
            "selection_frequency(record) or mean_routing_weight(record)."
        )
    return np.log(np.maximum(use, _SMALLEST * max(float(use.max()), np.finfo(float).tiny)))


def recipes_once(
    recipe: tuple[Intervention, ...], draws: Sequence[Draw]
) -> list[tuple[Intervention, ...]]:
    """What has to run: nothing, the change, and each different counterpart once."""
    return [(), recipe, *{draw.key: draw.recipe for draw in draws}.values()]


def for_each_draw(
    measured: Float[ndarray, "recipe prompt"], draws: Sequence[Draw]
) -> Float[ndarray, "row prompt"]:
    """What `recipes_once` gave, with one row for each counterpart, equal ones repeated."""
    place = {key: 2 + row for row, key in enumerate(dict.fromkeys(draw.key for draw in draws))}
    return measured[[0, 1, *(place[draw.key] for draw in draws)]]


def as_scores(match: Scores | Sequence[Scores]) -> tuple[Scores, ...]:
    """One measure of use, or several.

    Raises:
        TypeError: If there is none, or it is no score.
    """
    scores = (match,) if isinstance(match, Scores) else tuple(match)
    if not scores or not all(isinstance(score, Scores) for score in scores):
        raise TypeError(
            "`match` must be Scores of use, or several, such as selection_frequency(record), got "
            f"{match!r}."
        )
    return scores


def mean_use(experts: ExpertSet, match: Sequence[Scores]) -> Float[ndarray, " score"]:
    """Mean of each measure of use over a set of experts; NaN for an empty set."""
    if not len(experts):
        return np.full(len(match), np.nan)
    return np.array(
        [np.mean([one.of(expert.layer, expert.expert) for expert in experts]) for one in match]
    )


def null_p_value(
    effect: float,
    null: Float[ndarray, " draw"],
    draws: Sequence[Draw],
    *,
    use: Float[ndarray, " score"] | None = None,
    null_use: Float[ndarray, "draw score"] | None = None,
) -> float:
    """How often random counterparts reach an effect in either direction; never 0.

    Counted over draws and over different draws; the larger of the two is given, so that a set
    that is drawn many times cannot make the null look richer than it is. Given the use of all,
    the same is counted with the effects that the counterparts would have if these grew in
    proportion to use, and the largest is given: a match is never exact.
    """
    found = [_share_reached(effect, null, draws)]
    if use is not None and null_use is not None:
        for own, drawn in zip(use, null_use.T, strict=True):
            # What is never used does nothing, however much it were used.
            scale = np.divide(own, drawn, out=np.ones_like(drawn), where=drawn > 0)
            found.append(_share_reached(effect, null * scale, draws))
    return max(found)


def _share_reached(effect: float, null: Float[ndarray, " draw"], draws: Sequence[Draw]) -> float:
    reaches = np.abs(null) >= abs(effect) - _TIE
    of_distinct = dict(zip((draw.key for draw in draws), reaches, strict=True))
    by_draw = (1 + reaches.sum()) / (1 + len(reaches))
    by_distinct = (1 + sum(of_distinct.values())) / (1 + len(of_distinct))
    return float(max(by_draw, by_distinct))


def _fits(ours: Sequence[Intervention], expert: Expert, other: Expert, rng: Generator) -> bool:
    for one in ours:
        places: Mapping[Expert, Expert] = {named: named for named in one.named_experts}
        try:
            one.matched({**places, expert: other}, rng)
        except DesignError:
            raise
        except ValueError:
            return False
    return True
