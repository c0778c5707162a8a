"""Scores that a record of routing gives by itself: how often, and on which prompts."""

from functools import partial

import numpy as np
from einops import rearrange
from jaxtyping import Float, Num
from numpy import ndarray
from scipy import special

from moe_interp.capture import RoutingRecord
from moe_interp.errors import DesignError
from moe_interp.scores._scores import Scores


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
    weights = _of_tokens(record, "routing_weights", span)
    index = _of_tokens(record, "expert_index", span).astype(np.int64)
    mass = np.zeros((*weights.shape[:2], record.n_experts))
    np.put_along_axis(mass, index, weights, axis=-1)
    return _mean_of_tokens("mean_routing_weight", "weight", mass, record, span)


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
    logits = _of_tokens(record, "router_logits", span).astype(np.float64)
    probs = _SCORE_FUNCTIONS[function](logits)
    return _mean_of_tokens("mean_router_prob", "probability", probs, record, span)


_SCORE_FUNCTIONS = {
    "softmax": partial(special.softmax, axis=-1),
    "sigmoid": special.expit,
}


def _of_tokens(record: RoutingRecord, quantity: str, span: str) -> Num[ndarray, "token layer _"]:
    if quantity not in record.dataset:
        raise DesignError(
            f"This record has no `{quantity}`. Capture it with "
            f"record_routing(..., quantities=[..., {quantity!r}])."
        )
    return record.dataset[quantity].values[record.inside(span)]


def _mean_of_tokens(
    name: str,
    unit: str,
    values: Float[ndarray, "token layer expert"],
    record: RoutingRecord,
    span: str,
) -> Scores:
    record.check_every_prompt(span)
    owner = record.dataset["prompt_index"].values[record.inside(span)]
    total = np.zeros((record.n_prompts, *values.shape[1:]))
    np.add.at(total, owner, values)
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
