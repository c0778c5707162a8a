"""Does routing follow harm, or topic, at all? Permutation tests over all experts together."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float
from numpy import ndarray
from numpy.random import Generator

from moe_interp.notebook import Shown
from moe_interp.stats._contrast import HarmSquares, TopicSquares
from moe_interp.stats._design import make_design
from moe_interp.stats._product import Product
from moe_interp.stats._profile import RoutingProfile
from moe_interp.stats._relabel import Tally, check_resamples, draw_labels, is_exhaustive
from moe_interp.stats._results import format_p, plain
from moe_interp.stats._schemes import Exchange

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, eq=False)
class HarmTest(Shown):
    """Permutation p-values of harm and topic, per layer and for all layers pooled (last).

    Attributes:
        layers: Absolute decoder layers; the arrays have one more entry, for all layers pooled.
        span: The token set.
        harm: p-value of an effect of harm that is the same in every topic.
        harm_nested: p-value of any effect of harm within topics, the same or not.
        topic: p-value of topic; NaN with a single topic.
        scheme: Name of the exchange scheme.
        reason: Why this scheme: what ``"auto"`` found in the labels, or that it was asked for.
        words: What was exchanged for harm, in words.
        topic_words: What was exchanged for topic, in words.
        n_prompts: Prompts that took part.
        n_units: Exchange units of harm.
        n_resamples: Relabellings of harm that were counted.
        exhaustive: Whether these were all there are.
    """

    layers: tuple[int, ...]
    span: str
    harm: Float[ndarray, " row"]
    harm_nested: Float[ndarray, " row"]
    topic: Float[ndarray, " row"]
    scheme: str
    reason: str
    words: str
    topic_words: str
    n_prompts: int
    n_units: int
    n_resamples: int
    exhaustive: bool

    @property
    def p_harm(self) -> float:
        """p-value of harm over all layers."""
        return float(self.harm[-1])

    @property
    def p_harm_nested(self) -> float:
        """p-value of harm within topics over all layers."""
        return float(self.harm_nested[-1])

    @property
    def p_topic(self) -> float:
        """p-value of topic over all layers."""
        return float(self.topic[-1])

    def to_frame(self) -> "pd.DataFrame":
        """Return one row a layer and one for ``"all"``."""
        import pandas as pd

        return pd.DataFrame(
            {
                "span": self.span,
                "layer": np.array([*self.layers, "all"], dtype=object),
                "p_harm": self.harm,
                "p_harm_nested": self.harm_nested,
                "p_topic": self.topic,
            }
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the p-values and the design as JSON-safe values."""
        return plain(
            {
                "rows": self.to_frame().to_dict("records"),
                "scheme": self.scheme,
                "reason": self.reason,
                "exchanged_for_harm": self.words,
                "exchanged_for_topic": self.topic_words,
                "n_prompts": self.n_prompts,
                "n_units": self.n_units,
                "n_resamples": self.n_resamples,
                "exhaustive": self.exhaustive,
            }
        )

    def summary(self) -> str:
        """Return the pooled p-values in a sentence."""
        return (
            f"On {self.span!r} tokens: harm {format_p(self.p_harm)}, harm within topics "
            f"{format_p(self.p_harm_nested)}, topic {format_p(self.p_topic)} ({self.n_prompts} "
            f"prompts; exchanged for harm: {self.words}, since {self.reason}; for topic: "
            f"{self.topic_words})."
        )


def harm_test(
    profile: RoutingProfile,
    *,
    n_resamples: int = 9999,
    rng: Generator,
    scheme: str = "auto",
    alpha: float = 0.05,
    product: Product = np.matmul,
) -> HarmTest:
    """Test whether routing follows harm within topics, and whether it follows topic.

    A permutational analysis of variance on Hellinger distances [1, 2]: all experts and layers
    enter one statistic, the sum of squares explained by harm after topic (or by topic after
    harm). Labels are exchanged only where the null hypothesis allows it; see `scheme`. What can
    be wrong is that choice: prompts that share wording are not exchangeable one by one.

    Args:
        profile: Profile of one span.
        n_resamples: Number of relabellings; if fewer sign patterns exist, all are taken.
        rng: Source of randomness; the same state gives the same result.
        scheme: What is exchangeable: ``"wording_pair"``, ``"wording"``, ``"pair"``,
            ``"within_topic"``, or ``"auto"`` to choose from the labels.
        alpha: Level that the scheme must be able to reach.
        product: Matrix product in single precision, to use a graphics card: ``lambda a, b:
            (torch.tensor(a, device="cuda") @ torch.tensor(b, device="cuda")).cpu().numpy()``.
            Relabellings that its rounding leaves undecided are computed again in double
            precision, so that no p-value depends on it.

    Returns:
        The p-values per layer and pooled.

    Raises:
        ValueError: If `scheme` is unknown, or `n_resamples` or `alpha` out of range.
        DesignError: If the labels do not allow the question, or the scheme has too few units to
            reach `alpha`.

    References:
        [1] Anderson (2001), "A new method for non-parametric multivariate analysis of variance".
        [2] Legendre and Gallagher (2001), "Ecologically meaningful transformations".
    """
    check_resamples(n_resamples, alpha)
    design = make_design(profile, scheme, need_topics=False)
    design.exchange.require(alpha, "harm")
    points = design.embed(profile)
    harm = _count(
        HarmSquares(design, points, product), design.exchange, n_resamples, rng, points[0].size
    )
    main, nested = np.split(harm.p_value, 2)
    topic = np.full(profile.n_layers + 1, np.nan)
    if len(design.topics) > 1:
        design.topic_exchange.require(alpha, "topic")
        squares = TopicSquares(design, points, product)
        width = squares.n_columns * max(design.topic_exchange.n_units, points[0].size)
        topic = _count(squares, design.topic_exchange, n_resamples, rng, width).p_value
    return HarmTest(
        layers=profile.layers,
        span=profile.span,
        harm=main,
        harm_nested=nested,
        topic=topic,
        scheme=design.scheme,
        reason=design.reason,
        words=design.exchange.words,
        topic_words=design.topic_exchange.words,
        n_prompts=design.n_prompts,
        n_units=design.exchange.n_units,
        n_resamples=harm.n_draws,
        exhaustive=is_exhaustive(design.exchange, n_resamples),
    )


def _count(
    squares: HarmSquares | TopicSquares,
    exchange: Exchange,
    n_resamples: int,
    rng: Generator,
    width: int,
) -> Tally:
    flips = exchange.kind == "flip"
    own = np.ones_like(exchange.label) if flips else exchange.label
    observed = squares(own[None], exact=True)
    tally = Tally(
        observed.square[0],
        observed.variance[0],
        exhaustive=is_exhaustive(exchange, n_resamples),
    )
    for labels in draw_labels(exchange, n_resamples, rng, width=width):
        found = squares(labels)
        unsure = tally.undecided(found.square, found.variance, found.error)
        if unsure.any():
            found.square[unsure] = squares(labels[unsure], exact=True).square
        tally.add(found.square, found.variance)
    return tally
