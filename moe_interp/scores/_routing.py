"""Scores that a record of routing gives by itself: how often, and on which prompts."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import numpy as np
from einops import rearrange
from jaxtyping import Float, Int
from numpy import ndarray
from scipy import special

from moe_interp.capture import RoutingRecord, sum_by_prompt
from moe_interp.errors import DesignError
from moe_interp.scores._scores import Scores

OfTokens = Callable[[Mapping[str, ndarray], int], Float[ndarray, "token layer expert"]]


def selection_frequency(record: RoutingRecord, *, span: str = "prompt") -> Scores:
    """How often each expert is chosen: the mean over prompts of the fraction of their tokens.

    Every prompt counts the same, however long it is. Over the experts of a layer the numbers
    add up to the number of experts chosen per token.

    Args:
        record: The record.
        span: The tokens that count.

    Returns:
        The frequency of each expert for each prompt, in [0, 1].

    Raises:
        SpanError: If the record has no such span.
    """
    frequency = record.shares(span) * record.top_k
    name, unit = "selection_frequency", "fraction of tokens"
    return Scores.of_array(name, unit, np.asarray(frequency, dtype=float), layers=record.layers)


def mean_routing_weight(record: RoutingRecord, *, span: str = "prompt") -> Scores:
    """Routing mass: the weight an expert has on a token, 0 where it is not chosen, averaged.

    The mean over prompts of the mean over their tokens. Over the experts of a layer it adds up to
    the mean sum of the weights, which is 1 only where the model renormalises.

    Args:
        record: The record, with ``"routing_weights"``.
        span: The tokens that count.

    Returns:
        The mean weight of each expert for each prompt.

    Raises:
        DesignError: If the record has no weights.
        SpanError: If the record has no such span.
    """
    needed = ("routing_weights", "expert_index")
    return _mean_of_tokens("mean_routing_weight", "weight", needed, _mass, record, span)


def mean_router_prob(record: RoutingRecord, *, span: str = "prompt") -> Scores:
    """Probability the router gives an expert, chosen or not, averaged over tokens and prompts.

    Softmax of the recorded logits over all experts, before any selection. For routers whose score
    is a sigmoid the number is the score itself, which does not add up to 1.

    Args:
        record: The record, with ``"router_logits"``.
        span: The tokens that count.

    Returns:
        The mean probability of each expert for each prompt, in [0, 1].

    Raises:
        DesignError: If the record has no logits, or the model's score function is neither.
        SpanError: If the record has no such span.
    """
    function = record.model["score_function"]
    if function not in _SCORE_FUNCTIONS:
        raise DesignError(
            f"{record.model['model_class']} scores experts by {function!r}, and a mean probability "
            f"is defined for {', '.join(_SCORE_FUNCTIONS)}. Use mean_routing_weight."
        )
    probs = partial(_probs, function=function)
    needed = ("router_logits",)
    return _mean_of_tokens("mean_router_prob", "probability", needed, probs, record, span)


_SCORE_FUNCTIONS = {
    "softmax": partial(special.softmax, axis=-1),
    "sigmoid": special.expit,
}


def _mass(values: Mapping[str, ndarray], n_experts: int) -> Float[ndarray, "token layer expert"]:
    """The weight of every expert on every token, 0 where it was not chosen."""
    weights, index = values["routing_weights"], values["expert_index"].astype(np.int64)
    mass = np.zeros((*weights.shape[:2], n_experts))
    np.put_along_axis(mass, index, weights, axis=-1)
    return mass


def _probs(
    values: Mapping[str, ndarray], n_experts: int, *, function: str
) -> Float[ndarray, "token layer expert"]:
    return _SCORE_FUNCTIONS[function](values["router_logits"].astype(np.float64))


def _summed(
    values: Mapping[str, ndarray],
    owner: Int[ndarray, " token"],
    n_prompts: int,
    *,
    of_tokens: OfTokens,
    n_experts: int,
) -> Float[ndarray, "prompt layer expert"]:
    """The sum over the tokens of each prompt."""
    found = of_tokens(values, n_experts)
    total = np.zeros((n_prompts, *found.shape[1:]))
    np.add.at(total, owner, found)
    return total


def _mean_of_tokens(
    name: str,
    unit: str,
    needed: Sequence[str],
    of_tokens: OfTokens,
    record: RoutingRecord,
    span: str,
) -> Scores:
    """The mean of a function of tokens, read part by part."""
    missing = [quantity for quantity in needed if quantity not in record.dataset]
    if missing:
        raise DesignError(
            f"This record has no `{missing[0]}`. Capture it with "
            f"record_routing(..., quantities=[..., {missing[0]!r}])."
        )
    record.check_every_prompt(span)
    summed = partial(_summed, of_tokens=of_tokens, n_experts=record.n_experts)
    shape = (len(record.layers), record.n_experts)
    total = sum_by_prompt(record.dataset, needed, record.inside(span), summed, shape)
    n_tokens = rearrange(record.n_slots(span) / record.top_k, "prompt -> prompt 1 1")
    return Scores.of_array(name, unit, total / n_tokens, layers=record.layers)


def risk_difference(record: RoutingRecord, *, span: str = "user") -> Scores:
    """Selection frequency on harmful prompts less that on harmless ones.

    A description, not a test, and no measure of importance: in a model whose safety experts are
    used by every prompt it is 0 for all of them. `expert_tests` tests it; `ablation_effect`
    measures importance.

    Args:
        record: The record, of prompts that are labelled by harm.
        span: The tokens that count.

    Returns:
        The difference of each expert, in [-1, 1].

    Raises:
        PromptError: If the harm of a prompt is unknown.
        DesignError: If all prompts have the same harm level.
        SpanError: If the record has no such span.
    """
    harm = record.prompts.harm
    if harm.all() or not harm.any():
        level = "harmful" if harm.all() else "harmless"
        raise DesignError(
            f"All {len(harm)} prompts are {level}; a difference needs prompts of both kinds."
        )
    frequency = selection_frequency(record, span=span).array.values
    difference = frequency[harm].mean(axis=0) - frequency[~harm].mean(axis=0)
    name, unit = "risk_difference", "difference of fractions of tokens"
    return Scores.of_array(name, unit, difference, layers=record.layers)
