"""Scores that a record of routing gives by itself: how often, and on which prompts."""

import numpy as np

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
