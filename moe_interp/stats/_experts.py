"""Which experts does harm move? One test an expert, corrected for looking at all of them."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from einops import rearrange
from jaxtyping import Float
from numpy import ndarray
from numpy.random import Generator
from scipy.sparse import csr_array
from scipy.stats import false_discovery_control
from scipy.stats import t as student_t

from moe_interp.stats._design import Design, make_design
from moe_interp.stats._forms import harm_rows
from moe_interp.stats._profile import RoutingProfile
from moe_interp.stats._relabel import check_resamples, draw_labels, is_exhaustive, max_p_values
from moe_interp.stats._results import plain
from moe_interp.stats._shares import interval_factor, jackknife_error

if TYPE_CHECKING:
    import pandas as pd

# A share that varies less than this between units is the same in all of them.
_CONSTANT = 1e-9


@dataclass(frozen=True, eq=False)
class ExpertTests:
    """Effect of harm on the selection of every expert.

    Attributes:
        layers: Absolute decoder layer of each row.
        span: The token set.
        effect: Selection share on harmful minus harmless prompts of the same topic, -1 to 1.
        low: Lower end of the 95 % jackknife interval of the effect.
        high: Upper end.
        statistic: Effect in units of its spread under relabelling (clustered score statistic).
        p: p-value of the expert alone, from the score statistic.
        p_adjusted: Permutation p-value adjusted for all experts of all layers (max-T).
        q: Benjamini-Hochberg adjusted `p` over all experts of all layers.
        scheme: Name of the exchange scheme.
        words: What was exchanged, in words.
        n_prompts: Prompts that took part.
        n_units: Exchange units.
        n_resamples: Relabellings that were counted.
    """

    layers: tuple[int, ...]
    span: str
    effect: Float[ndarray, "layer expert"]
    low: Float[ndarray, "layer expert"]
    high: Float[ndarray, "layer expert"]
    statistic: Float[ndarray, "layer expert"]
    p: Float[ndarray, "layer expert"]
    p_adjusted: Float[ndarray, "layer expert"]
    q: Float[ndarray, "layer expert"]
    scheme: str
    words: str
    n_prompts: int
    n_units: int
    n_resamples: int

    def to_frame(self) -> "pd.DataFrame":
        """Return one row an expert, with its absolute layer."""
        import pandas as pd

        n_layers, n_experts = self.effect.shape
        columns = {
            "layer": np.repeat(self.layers, n_experts),
            "expert": np.tile(np.arange(n_experts), n_layers),
        }
        for name in ("effect", "low", "high", "statistic", "p", "p_adjusted", "q"):
            columns[name] = rearrange(getattr(self, name), "layer expert -> (layer expert)")
        return pd.DataFrame(columns)

    def to_dict(self) -> dict[str, Any]:
        """Return the table's rows and the design as JSON-safe values."""
        return plain(
            {
                "rows": self.to_frame().to_dict("records"),
                "span": self.span,
                "scheme": self.scheme,
                "exchanged": self.words,
                "n_prompts": self.n_prompts,
                "n_units": self.n_units,
                "n_resamples": self.n_resamples,
            }
        )

    def summary(self) -> str:
        """Return how many experts differ and the strongest of them."""
        row, expert = np.unravel_index(np.argmax(np.abs(self.statistic)), self.effect.shape)
        return (
            f"On {self.span!r} tokens {int((self.p_adjusted <= 0.05).sum())} of "
            f"{self.effect.size} experts differ between harmful and harmless prompts of one "
            f"topic at the 5 % family-wise level, {int((self.q <= 0.05).sum())} at a false "
            f"discovery rate of 5 %; the strongest is L{self.layers[row]}E{expert} "
            f"({self.effect[row, expert]:+.3f} of the slots)."
        )


def expert_tests(
    profile: RoutingProfile,
    *,
    n_resamples: int = 9999,
    rng: Generator,
    scheme: str = "auto",
    alpha: float = 0.05,
) -> ExpertTests:
    """Test every expert for a difference between harmful and harmless prompts of one topic.

    The statistic is the within-topic covariance of harm and selection share over its spread
    under relabelling, a score statistic with whole exchange units as clusters. All experts see
    the same relabellings, one matrix product, so the largest statistic of each corrects for
    having looked at all of them [1]. `p` and `q` take the statistic as Student's t, which needs
    units of similar size and more than a handful of them; `p_adjusted` needs neither.

    Args:
        profile: Profile of one span.
        n_resamples: Number of relabellings; if fewer sign patterns exist, all are taken.
        rng: Source of randomness; the same state gives the same result.
        scheme: What is exchangeable: ``"wording_pair"``, ``"wording"``, ``"pair"``,
            ``"within_topic"``, or ``"auto"`` to choose from the labels.
        alpha: Level that the scheme must be able to reach.

    Returns:
        Effect, interval and p-values of every expert.

    Raises:
        ValueError: If `scheme` is unknown, or `n_resamples` or `alpha` out of range.
        DesignError: If the labels do not allow the question, or the scheme has too few units to
            reach `alpha`.

    References:
        [1] Westfall and Young (1993), "Resampling-based multiple testing".
    """
    check_resamples(n_resamples, alpha)
    design = make_design(profile, scheme, need_topics=False)
    design.exchange.require(alpha, "harm")
    shares = rearrange(
        profile.shares[design.rows].astype(np.float64),
        "prompt layer expert -> prompt (layer expert)",
    )
    effect, error = _effect(design, shares)
    reach = interval_factor(design.n_groups) * error
    unit_sums, offset, freedom = _standardised_units(design, shares)
    values = np.array([-1.0, 1.0])
    flips = design.exchange.kind == "flip"
    own = np.ones(design.exchange.n_units) if flips else values[design.exchange.label]
    statistic = own @ unit_sums - offset
    maxima = []
    for labels in draw_labels(design.exchange, n_resamples, rng, width=shares.shape[1]):
        multiplier = labels.astype(np.float64) if flips else values[labels]
        null = multiplier @ unit_sums - offset
        maxima.append(np.maximum(null.max(axis=1), -null.min(axis=1)))
    maxima = np.concatenate(maxima)
    p_value = _score_p_value(statistic, freedom)
    exhaustive = is_exhaustive(design.exchange, n_resamples)
    found = {
        "effect": effect,
        "low": effect - reach,
        "high": effect + reach,
        "statistic": statistic,
        "p": p_value,
        "p_adjusted": max_p_values(np.abs(statistic), maxima, exhaustive=exhaustive),
        "q": false_discovery_control(p_value),
    }
    n_layers = profile.n_layers
    return ExpertTests(
        layers=profile.layers,
        span=profile.span,
        **{
            name: rearrange(value, "(layer expert) -> layer expert", layer=n_layers)
            for name, value in found.items()
        },
        scheme=design.scheme,
        words=design.exchange.words,
        n_prompts=design.n_prompts,
        n_units=design.exchange.n_units,
        n_resamples=len(maxima),
    )


def _effect(
    design: Design, shares: Float[ndarray, "prompt feature"]
) -> tuple[Float[ndarray, " feature"], Float[ndarray, " feature"]]:
    """Difference of shares within topics, and its jackknife error."""
    masks = [np.ones(design.n_prompts, dtype=bool)]
    masks += [design.group != group for group in range(design.n_groups)]
    contrasts = []
    for keep in masks:
        row = harm_rows(design, keep).sum(axis=0)
        # Harm is coded -1 and +1, two apart.
        contrasts.append(2 * row / (row**2).sum() if row.any() else row)
    effects = np.array(contrasts) @ shares
    return effects[0], jackknife_error(effects[1:])


def _standardised_units(
    design: Design, shares: Float[ndarray, "prompt feature"]
) -> tuple[Float[ndarray, "unit feature"], Float[ndarray, " feature"], int]:
    """Unit sums over the spread their contrast has under relabelling, its mean, and the freedom."""
    exchange = design.exchange
    rows = harm_rows(design, np.ones(design.n_prompts, dtype=bool))
    flips = exchange.kind == "flip"
    weights = rows.sum(axis=0) if flips else np.ones(design.n_prompts)
    topic = csr_array((np.ones(design.n_prompts), (design.topic, np.arange(design.n_prompts))))
    means = (topic @ shares) / np.asarray(topic.sum(axis=1)).reshape(-1, 1)
    collect = csr_array((weights, (exchange.unit, np.arange(design.n_prompts))))
    sums = collect @ (shares - means[design.topic])
    if flips:
        variance, offset, freedom = (sums**2).sum(axis=0), np.zeros(sums.shape[1]), len(sums)
    else:
        variance, offset, freedom = np.zeros(sums.shape[1]), np.zeros(sums.shape[1]), 0
        values = 2.0 * exchange.label - 1
        for stratum in range(int(exchange.stratum.max()) + 1):
            own = exchange.stratum == stratum
            offset += values[own].mean() * sums[own].sum(axis=0)
            if own.sum() > 1:
                variance += values[own].var(ddof=1) * own.sum() * sums[own].var(axis=0)
                freedom += int(own.sum()) - 1
    spread = np.sqrt(variance)
    inverse = np.divide(1.0, spread, out=np.zeros_like(spread), where=spread > _CONSTANT)
    return sums * inverse, offset * inverse, freedom


def _score_p_value(
    statistic: Float[ndarray, " feature"], freedom: int
) -> Float[ndarray, " feature"]:
    r"""Two-sided p-value of a score statistic whose square cannot exceed `freedom`.

    For sign flips :math:`t = z \sqrt{(n - 1) / (n - z^2)}` is the paired t statistic itself.
    """
    room = np.maximum(freedom - statistic**2, 1e-12 * freedom)
    student = statistic * np.sqrt((freedom - 1) / room)
    return 2 * student_t.sf(np.abs(student), freedom - 1)
