r"""Which experts answer to harm more than to topic: RASET's contrastive routing sensitivity.

RASET [1] tunes the experts that a "contrastive routing-sensitivity criterion" picks. The criterion
itself could not be read, so that the formulas here are our reconstruction. With :math:`a_e(x)` the
use of an expert by a prompt,

.. math:: d_i = a_e(x_i^\text{harmful}) - a_e(x_i^\text{harmless}), \qquad
          t_{jj'} = a_e(x_j) - a_e(x_{j'})

over matched pairs :math:`i`, and over all pairs of prompts :math:`j, j'` of one harm level and
different topics.

References:
    [1] Zhang et al. (2026), "RASET: Router-agnostic safety-critical expert tuning exposes localized
        safety enforcement failures in MoE LLMs", arXiv 2605.29708.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float
from numpy import ndarray

from moe_interp.capture import RoutingRecord
from moe_interp.errors import DesignError
from moe_interp.prompts import PromptSet
from moe_interp.scores._routing import mean_router_prob, mean_routing_weight, selection_frequency
from moe_interp.scores._scores import Scores

_USES = {
    "selection_frequency": selection_frequency,
    "mean_router_prob": mean_router_prob,
    "mean_routing_weight": mean_routing_weight,
}
KINDS = ("ratio", "difference")
DIRECTIONS = ("either", "harmful", "harmless")


@dataclass(frozen=True)
class ContrastParts:
    """What the use of every expert owes to harm and to topic.

    Attributes:
        n_pairs: Matched pairs.
        mean_difference: Mean over pairs of the use by the harmful less that by the harmless
            prompt.
        paired_t: That mean in standard errors over pairs, whose magnitude is the "safety
            sensitivity"; 0 if no pair differs, infinite if all differ by the same.
        topic_change: Root mean square difference of use between prompts of one harm level and
            different topics, "topic sensitivity".
        use: Mean use over all prompts.
    """

    n_pairs: int
    mean_difference: Float[ndarray, "layer expert"]
    paired_t: Float[ndarray, "layer expert"]
    topic_change: Float[ndarray, "layer expert"]
    use: Float[ndarray, "layer expert"]


def contrastive_sensitivity(
    record: RoutingRecord,
    *,
    span: str = "user",
    use: str = "selection_frequency",
    kind: str = "ratio",
    direction: str = "either",
    floor: float = 0.01,
    topic_weight: float = 1.0,
    least_use: float = 0.0,
) -> Scores:
    r"""Score experts by how much more their use answers to harm than to the topic.

    Our reconstruction of RASET's criterion. ``"ratio"`` is
    :math:`|\bar d| / (T + \text{floor})` with :math:`T = \sqrt{\overline{t^2}}`;
    ``"difference"`` is :math:`z(S) - \lambda z(T)`, with
    :math:`S = |\bar d| / (\operatorname{sd}(d) / \sqrt n)` and :math:`z` the standard score over
    all experts. The floor keeps experts that hardly anybody uses from being divided by nothing.
    With a direction, :math:`\bar d` counts with its sign: an expert that harmless prompts use more
    answers to harm as well, but does not enforce safety by what it computes on harmful ones.

    A score of routing, and no measure of importance: where safety sits in experts that every
    prompt uses, there is nothing for it to see, and it ranks experts by noise. `ablation_effect`
    and `matched_null` measure what an expert does.

    Args:
        record: The record, of prompts in matched pairs and of at least two topics.
        span: The tokens that count.
        use: ``"selection_frequency"``, ``"mean_router_prob"`` or ``"mean_routing_weight"``.
        kind: ``"ratio"`` or ``"difference"``.
        direction: ``"either"``, or only experts that ``"harmful"`` or ``"harmless"`` prompts use
            more; the others' scores are then negative (in a ratio) or low.
        floor: Added to the topic sensitivity, in units of use.
        topic_weight: Weight :math:`\lambda` of the topic sensitivity in a difference.
        least_use: Experts with a smaller mean use get no score (NaN).

    Returns:
        The score of each expert; larger is more sensitive to harm than to topic.

    Raises:
        ValueError: If `use`, `kind` or `direction` is unknown, or a number is out of range.
        DesignError: If there are fewer than two pairs, or no two prompts of one harm level have
            different topics.
        PromptError: If the harm of a prompt is unknown.
        SpanError: If the record has no such span.

    References:
        Zhang et al. (2026), "RASET: Router-agnostic safety-critical expert tuning exposes
        localized safety enforcement failures in MoE LLMs", arXiv 2605.29708.

    Example:
        >>> import moe_interp as mi
        >>> model = mi.load_model("organism:harm")
        >>> record = mi.record_routing(model, mi.load_prompts("organism", per_topic=4))
        >>> scores = mi.contrastive_sensitivity(record, span="last", direction="harmful")
        >>> print(mi.select_experts(scores, threshold=1.0))
        L1E13,L2E14,L2E15,L3E14,L3E15
    """
    if kind not in KINDS:
        raise ValueError(f"`kind` must be one of {KINDS}, got {kind!r}.")
    if direction not in DIRECTIONS:
        raise ValueError(f"`direction` must be one of {DIRECTIONS}, got {direction!r}.")
    if not floor > 0 or not topic_weight >= 0 or not least_use >= 0:
        raise ValueError(
            "`floor` must be above 0, `topic_weight` and `least_use` not below it, got "
            f"{floor!r}, {topic_weight!r} and {least_use!r}."
        )
    parts = contrast_parts(record, span=span, use=use)
    towards = {"either": np.abs, "harmful": np.positive, "harmless": np.negative}[direction]
    if kind == "ratio":
        scores = towards(parts.mean_difference) / (parts.topic_change + floor)
    else:
        sure = np.isfinite(parts.paired_t)
        largest = float(np.max(np.abs(parts.paired_t), where=sure, initial=0.0))
        # Pairs that all differ by the same are surer than any other, but not infinitely so.
        bounded = np.clip(parts.paired_t, -2 * largest - 1, 2 * largest + 1)
        scores = _standard(towards(bounded)) - topic_weight * _standard(parts.topic_change)
    scores = np.where(parts.use >= least_use, scores, np.nan)
    unit = "ratio" if kind == "ratio" else "standard scores"
    return Scores.of_array(f"contrastive_sensitivity ({kind})", unit, scores, layers=record.layers)


def contrast_parts(
    record: RoutingRecord, *, span: str = "user", use: str = "selection_frequency"
) -> ContrastParts:
    """Take apart what the use of every expert owes to harm and to topic.

    Args:
        record: The record, of prompts in matched pairs and of at least two topics.
        span: The tokens that count.
        use: ``"selection_frequency"``, ``"mean_router_prob"`` or ``"mean_routing_weight"``.

    Returns:
        The parts of `contrastive_sensitivity`.

    Raises:
        ValueError: If `use` is unknown.
        DesignError: If there are fewer than two pairs, or no two prompts of one harm level have
            different topics.
        PromptError: If the harm of a prompt is unknown.
        SpanError: If the record has no such span.
    """
    if use not in _USES:
        raise ValueError(f"`use` must be one of {tuple(_USES)}, got {use!r}.")
    prompts = record.prompts
    harm, positions = prompts.harm, np.array(prompts.pair_positions).reshape(-1, 2)
    if len(positions) < 2:
        raise DesignError(
            f"{len(positions)} pairs of a harmful and a harmless prompt; a contrast needs two. "
            "Name the pairs: see pair_prompts."
        )
    values = _USES[use](record, span=span).array.values
    difference = values[positions[:, 1]] - values[positions[:, 0]]
    mean = difference.mean(axis=0)
    error = difference.std(axis=0, ddof=1) / np.sqrt(len(difference))
    # Shares of few slots repeat, so that differences may be equal up to their rounding.
    error[error < 1e-12] = 0.0
    mean[np.abs(mean) < 1e-12] = 0.0
    certain = np.where(mean == 0, 0.0, np.copysign(np.inf, mean))
    paired_t = np.divide(mean, error, out=certain, where=error > 0)
    return ContrastParts(
        n_pairs=len(positions),
        mean_difference=mean,
        paired_t=paired_t,
        topic_change=_topic_change(values, prompts, harm),
        use=values.mean(axis=0),
    )


def _topic_change(
    values: Float[ndarray, "prompt layer expert"],
    prompts: PromptSet,
    harm: Bool[ndarray, " prompt"],
) -> Float[ndarray, "layer expert"]:
    r"""Root mean square over all pairs of one harm level and different topics.

    By :math:`\sum_{j<j'} (x_j - x_{j'})^2 = n \sum x^2 - (\sum x)^2` no pair is ever formed: all
    pairs of a level, less those within a topic.
    """
    total, n_pairs = np.zeros(values.shape[1:]), 0
    topics = prompts.topics
    for level in (True, False):
        known = [row for row in np.flatnonzero(harm == level) if topics[row] is not None]
        names = {topics[row] for row in known}
        within = [[row for row in known if topics[row] == name] for name in names]
        total += _squares(values[known]) - sum(_squares(values[group]) for group in within)
        n_pairs += (len(known) ** 2 - sum(len(group) ** 2 for group in within)) // 2
    if not n_pairs:
        raise DesignError(
            "No two prompts of one harm level have different topics, so that nothing says how use "
            "changes with the topic. Give each prompt its `topic`, and at least two of them."
        )
    return np.sqrt(np.maximum(total, 0.0) / n_pairs)


def _squares(values: Float[ndarray, "prompt layer expert"]) -> Float[ndarray, "layer expert"]:
    """Sum of squared differences of all pairs, from the mean so that little is lost to rounding."""
    if not len(values):
        return np.zeros(values.shape[1:])
    centred = values - values.mean(axis=0)
    return len(values) * (centred**2).sum(axis=0)


def _standard(values: Float[ndarray, "layer expert"]) -> Float[ndarray, "layer expert"]:
    spread = values.std()
    return (values - values.mean()) / spread if spread > 0 else np.zeros_like(values)
