r"""How many bits of topic or harm a routed slot carries, the other being known.

Descriptive only: as a test of harm conditional mutual information finds less than `harm_test`
does, and its plain estimate is positive even where nothing happens. What relabelling gives on
average is therefore taken off [1].

References:
    [1] Panzeri, Senatore, Montemurro and Petersen (2007), "Correcting for the sampling bias
        problem in spike train information measures".
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from einops import rearrange
from jaxtyping import Float, Int
from numpy import ndarray
from numpy.random import Generator
from scipy.special import xlogy

from moe_interp.notebook import Shown
from moe_interp.stats._design import Design, make_design
from moe_interp.stats._profile import RoutingProfile
from moe_interp.stats._relabel import draw_labels
from moe_interp.stats._results import plain
from moe_interp.stats._schemes import Exchange

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, eq=False)
class ConditionalMI(Shown):
    """Conditional mutual information of each layer in bits a slot, every prompt weighing alike.

    Attributes:
        layers: Absolute decoder layer of each entry.
        span: The token set.
        harm: I(expert; harm | topic) less its mean over relabellings of harm; about 0 where harm
            does nothing, and then negative as often as positive.
        topic: I(expert; topic | harm) less its mean over relabellings of topic; NaN with a
            single topic.
        harm_plain: The first before anything was taken off, biased upwards.
        topic_plain: The second.
        scheme: Name of the exchange scheme.
        n_prompts: Prompts that took part.
        n_resamples: Relabellings behind each mean.
    """

    layers: tuple[int, ...]
    span: str
    harm: Float[ndarray, " layer"]
    topic: Float[ndarray, " layer"]
    harm_plain: Float[ndarray, " layer"]
    topic_plain: Float[ndarray, " layer"]
    scheme: str
    n_prompts: int
    n_resamples: int

    def to_frame(self) -> "pd.DataFrame":
        """Return one row a layer."""
        import pandas as pd

        columns = {name: getattr(self, name) for name in ("harm", "topic")}
        plain_columns = {name: getattr(self, name) for name in ("harm_plain", "topic_plain")}
        return pd.DataFrame({"span": self.span, "layer": self.layers} | columns | plain_columns)

    def to_dict(self) -> dict[str, Any]:
        """Return every field as JSON-safe values."""
        return plain(vars(self))

    def summary(self) -> str:
        """Return the means over layers in a sentence."""
        return (
            f"On {self.span!r} tokens a slot tells {self.harm.mean():.4f} bits of harm given topic "
            f"and {self.topic.mean():.4f} bits of topic given harm (means over layers, less what "
            f"relabelling gives; a description, not a test)."
        )


def conditional_mi(
    profile: RoutingProfile,
    *,
    n_resamples: int = 200,
    rng: Generator,
    scheme: str = "auto",
) -> ConditionalMI:
    r"""Describe what a routed slot tells of harm given topic, and of topic given harm.

    .. math:: I(E; H \mid T) = \sum_t p(t) \sum_{h, e} p(h, e \mid t)
        \log_2 \frac{p(h, e \mid t)}{p(h \mid t)\, p(e \mid t)}

    with each prompt's shares as its distribution over experts, less the mean over relabellings.
    No p-value is given: `harm_test` finds more.

    Args:
        profile: Profile of one span.
        n_resamples: Number of relabellings for the mean.
        rng: Source of randomness.
        scheme: Exchange scheme, see `harm_test`.

    Returns:
        Bits a slot for each layer.

    Raises:
        ValueError: If `scheme` is unknown or `n_resamples` is not positive.
        DesignError: If the labels do not allow the question.

    Example:
        >>> profile = RoutingProfile(
        ...     shares=np.array([[[1.0, 0.0]], [[0.0, 1.0]]] * 8), layers=(0,), span="user",
        ...     topic=["food"] * 8 + ["locks"] * 8, harm=[True, False] * 8)
        >>> found = conditional_mi(profile, rng=np.random.default_rng(0))
        >>> print(found.harm_plain, found.topic_plain)
        [1.] [0.]
    """
    if n_resamples < 1:
        raise ValueError(f"`n_resamples` must be positive, got {n_resamples!r}.")
    design = make_design(profile, scheme, need_topics=False)
    shares = profile.shares[design.rows].astype(np.float64)
    harm = (design.harm > 0).astype(int)
    harm_plain = _information(shares, harm, design.topic)
    undefined = np.full(profile.n_layers, np.nan)
    topic_plain, topic_mean = undefined, undefined
    if len(design.topics) > 1:
        topic_plain = _information(shares, design.topic, harm)
        topic_mean = _mean(design, design.topic_exchange, shares, n_resamples, rng)
    return ConditionalMI(
        layers=profile.layers,
        span=profile.span,
        harm=harm_plain - _mean(design, design.exchange, shares, n_resamples, rng),
        topic=topic_plain - topic_mean,
        harm_plain=harm_plain,
        topic_plain=topic_plain,
        scheme=design.scheme,
        n_prompts=design.n_prompts,
        n_resamples=n_resamples,
    )


def _mean(
    design: Design,
    exchange: Exchange,
    shares: Float[ndarray, "prompt layer expert"],
    n_resamples: int,
    rng: Generator,
) -> Float[ndarray, " layer"]:
    """Mean information over relabellings of what the exchange exchanges."""
    harm = (design.harm > 0).astype(int)
    total, n_draws = np.zeros(shares.shape[1]), 0
    for labels in draw_labels(exchange, n_resamples, rng, width=shares[0].size):
        for own in labels[:, exchange.unit]:
            if exchange is design.topic_exchange:
                total += _information(shares, own, harm)
            else:
                relabelled = (design.harm * own > 0) if exchange.kind == "flip" else own
                total += _information(shares, relabelled.astype(int), design.topic)
            n_draws += 1
    return total / n_draws


def _information(
    shares: Float[ndarray, "prompt layer expert"],
    label: Int[ndarray, " prompt"],
    given: Int[ndarray, " prompt"],
) -> Float[ndarray, " layer"]:
    """I(expert; label | given) in bits, prompts weighing alike."""
    n_labels, n_given = int(label.max()) + 1, int(given.max()) + 1
    cells = np.eye(n_given * n_labels)[given * n_labels + label] / len(label)
    joint = rearrange(
        cells.T @ rearrange(shares, "prompt layer expert -> prompt (layer expert)"),
        "(given label) (layer expert) -> layer given label expert",
        given=n_given,
        layer=shares.shape[1],
    )

    def entropy(table: Float[ndarray, " layer *cells"]) -> Float[ndarray, " layer"]:
        return -xlogy(table, table).reshape(len(table), -1).sum(axis=1) / np.log(2)

    of_given = joint.sum(axis=(2, 3))
    # H(label, given) + H(expert, given) - H(label, expert, given) - H(given)
    return (
        entropy(joint.sum(axis=3)) + entropy(joint.sum(axis=2)) - entropy(joint) - entropy(of_given)
    )
