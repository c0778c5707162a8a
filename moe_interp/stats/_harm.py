"""Does routing follow harm, or topic, at all? Permutation tests over all experts together."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from einops import rearrange, reduce
from jaxtyping import Float
from numpy import ndarray
from numpy.random import Generator
from scipy.sparse import csr_array

from moe_interp.stats._design import Design, make_design
from moe_interp.stats._forms import SumsOfSquares, harm_rows, topic_rows
from moe_interp.stats._profile import RoutingProfile
from moe_interp.stats._relabel import Tally, check_resamples, draw_labels, is_exhaustive
from moe_interp.stats._results import format_p, plain

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, eq=False)
class HarmTest:
    """Permutation p-values of harm and topic, per layer and for all layers pooled (last).

    Attributes:
        layers: Absolute decoder layers; the arrays have one more entry, for all layers pooled.
        span: The token set.
        harm: p-value of an effect of harm that is the same in every topic.
        harm_nested: p-value of any effect of harm within topics, the same or not.
        topic: p-value of topic; NaN with a single topic.
        scheme: Name of the exchange scheme.
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
            f"prompts; exchanged for harm: {self.words}; for topic: {self.topic_words})."
        )


def harm_test(
    profile: RoutingProfile,
    *,
    n_resamples: int = 9999,
    rng: Generator,
    scheme: str = "auto",
    alpha: float = 0.05,
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
    sums = SumsOfSquares(design, points)()
    harm, nested = _count_harm(design, points, sums, n_resamples, rng)
    if len(design.topics) > 1:
        design.topic_exchange.require(alpha, "topic")
        topic = _count_topic(design, points, sums, n_resamples, rng).p_value
    else:
        topic = np.full(profile.n_layers + 1, np.nan)
    return HarmTest(
        layers=profile.layers,
        span=profile.span,
        harm=harm.p_value,
        harm_nested=nested.p_value,
        topic=topic,
        scheme=design.scheme,
        words=design.exchange.words,
        topic_words=design.topic_exchange.words,
        n_prompts=design.n_prompts,
        n_units=design.exchange.n_units,
        n_resamples=harm.n_draws,
        exhaustive=is_exhaustive(design.exchange, n_resamples),
    )


def _count_harm(
    design: Design,
    points: Float[ndarray, "prompt layer expert"],
    sums: dict[str, Float[ndarray, " layer"]],
    n_resamples: int,
    rng: Generator,
) -> tuple[Tally, Tally]:
    exchange, n_layers = design.exchange, points.shape[1]
    features = rearrange(points, "prompt layer expert -> prompt (layer expert)")
    everyone = np.ones(design.n_prompts, dtype=bool)
    rows = harm_rows(design, everyone)
    sizes = (rows**2).sum(axis=1)
    flips = exchange.kind == "flip"
    values = np.array([-1.0, 1.0])
    parts = []
    for topic in range(len(design.topics)):
        members = np.flatnonzero(design.topic == topic)
        units, position = np.unique(exchange.unit[members], return_inverse=True)
        own = features[members] - features[members].mean(axis=0)
        weights = rows[topic, members] if flips else np.ones(len(members))
        collect = csr_array((weights, (position, np.arange(len(members)))))
        parts.append((units, collect @ own, sizes[topic]))
    exhaustive = is_exhaustive(exchange, n_resamples)
    total = _with_total(sums["total"])
    tallies = [
        Tally(_with_total(sums[name]), total=total, exhaustive=exhaustive)
        for name in ("harm", "nested")
    ]
    for labels in draw_labels(exchange, n_resamples, rng, width=features.shape[1]):
        multiplier = labels.astype(np.float64) if flips else values[labels]
        main = np.zeros((len(labels), features.shape[1]))
        nested = np.zeros((len(labels), n_layers))
        for units, unit_sums, size in parts:
            contrast = multiplier[:, units] @ unit_sums
            main += contrast
            nested += _layer_squares(contrast, n_layers) / size
        tallies[0].add(_with_total(_layer_squares(main, n_layers) / sizes.sum()))
        tallies[1].add(_with_total(nested))
    return tallies[0], tallies[1]


def _count_topic(
    design: Design,
    points: Float[ndarray, "prompt layer expert"],
    sums: dict[str, Float[ndarray, " layer"]],
    n_resamples: int,
    rng: Generator,
) -> Tally:
    exchange, n_layers = design.topic_exchange, points.shape[1]
    features = rearrange(points, "prompt layer expert -> prompt (layer expert)")
    levels = (design.harm > 0).astype(int)
    for level in (0, 1):
        features[levels == level] -= features[levels == level].mean(axis=0)
    collect = csr_array((np.ones(design.n_prompts), (exchange.unit, np.arange(design.n_prompts))))
    unit_sums = collect @ features
    scaled, _ = topic_rows(design, np.ones(design.n_prompts, dtype=bool))
    tally = Tally(_with_total(sums["topic"]), total=_with_total(sums["total"]), exhaustive=False)
    n_columns = scaled.shape[1]
    width = n_columns * max(exchange.n_units, features.shape[1])
    for labels in draw_labels(exchange, n_resamples, rng, width=width):
        dealt = rearrange(scaled[labels], "draw unit column -> (draw column) unit")
        squares = _layer_squares(dealt @ unit_sums, n_layers)
        tally.add(
            _with_total(
                reduce(squares, "(draw column) layer -> draw layer", "sum", column=n_columns)
            )
        )
    return tally


def _layer_squares(
    sums: Float[ndarray, "row feature"], n_layers: int
) -> Float[ndarray, "row layer"]:
    layered = rearrange(sums, "row (layer expert) -> row layer expert", layer=n_layers)
    return np.einsum("rle,rle->rl", layered, layered)


def _with_total(values: Float[ndarray, "*rows layer"]) -> Float[ndarray, "*rows layer_and_total"]:
    return np.concatenate([values, values.sum(axis=-1, keepdims=True)], axis=-1)
