"""Domains and words that experts belong to, and experts that belong to all of them."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from einops import rearrange
from jaxtyping import Bool, Float, Integer
from numpy import ndarray
from numpy.random import Generator


@dataclass(frozen=True)
class DomainSpecialisation:
    """How often the tokens of each domain choose each expert.

    Attributes:
        domains: The domains, sorted.
        share: Part of a domain's tokens that choose the expert.
        low: Lower end of the 95 % interval, units drawn again within the domain.
        high: Upper end.
        overall: Part of all tokens that choose the expert.
        p_value: That no domain uses the expert more or less than the others.
        p_adjusted: The same, corrected for all experts of all layers.
    """

    domains: tuple[str, ...]
    share: Float[ndarray, "domain layer expert"]
    low: Float[ndarray, "domain layer expert"]
    high: Float[ndarray, "domain layer expert"]
    overall: Float[ndarray, "layer expert"]
    p_value: Float[ndarray, "layer expert"]
    p_adjusted: Float[ndarray, "layer expert"]


def domain_specialisation(
    count: Float[ndarray, "unit layer expert"],
    tokens: Float[ndarray, " unit"],
    domain: Sequence[str],
    *,
    strata: Sequence[int] | None = None,
    n_resamples: int = 1999,
    n_bootstrap: int = 1000,
    rng: Generator,
) -> DomainSpecialisation:
    r"""Measure :math:`N_{D,e} / N_D`, and test it by exchanging the domains of units.

    The statistic of an expert is the largest difference between a domain's share and that of all
    tokens. Under the null hypothesis the domain of a unit, a pair of prompts for example, is
    arbitrary, among units of the same stratum.

    Args:
        count: Tokens of each unit that chose each expert.
        tokens: Tokens of each unit.
        domain: Domain of each unit.
        strata: Stratum of each unit, such as its wording; all in one if not given.
        n_resamples: Relabellings.
        n_bootstrap: Draws of the intervals.
        rng: Source of randomness.

    Returns:
        Shares with intervals and p-values.

    Raises:
        ValueError: If lengths differ, there are fewer than two domains, or a number is not
            positive.

    References:
        Muennighoff et al. (2024), "OLMoE", arXiv 2409.02060, section 5.3.
    """
    names = sorted(set(domain))
    if not len(count) == len(tokens) == len(domain) or len(names) < 2:
        raise ValueError(
            f"`count`, `tokens` and `domain` must be as long, of two domains or more; got "
            f"{len(count)}, {len(tokens)} and {len(domain)} of {len(names)} domains."
        )
    if min(n_resamples, n_bootstrap) < 1:
        raise ValueError("`n_resamples` and `n_bootstrap` must be positive.")
    place = np.array([names.index(one) for one in domain])
    stratum = np.zeros(len(place), dtype=int) if strata is None else np.asarray(strata)
    flat = rearrange(np.asarray(count, dtype=float), "unit layer expert -> unit (layer expert)")
    overall = flat.sum(axis=0) / tokens.sum()
    share = _shares(np.eye(len(names))[place].T, flat, tokens)
    reached, maxima = np.zeros(flat.shape[1], dtype=int), np.empty(n_resamples)
    observed = np.abs(share - overall).max(axis=0)
    for draw in range(n_resamples):
        relabelled = place.copy()
        for one in np.unique(stratum):
            rows = np.flatnonzero(stratum == one)
            relabelled[rows] = rng.permutation(place[rows])
        null = np.abs(_shares(np.eye(len(names))[relabelled].T, flat, tokens) - overall)
        largest = null.max(axis=0)
        reached += largest >= observed - 1e-12
        maxima[draw] = largest.max()
    beaten = (maxima[:, None] >= observed - 1e-12).sum(axis=0)
    low, high = _domain_intervals(place, len(names), flat, tokens, n_bootstrap, rng)
    shape = count.shape[1:]
    return DomainSpecialisation(
        domains=tuple(names),
        share=share.reshape(-1, *shape),
        low=low.reshape(-1, *shape),
        high=high.reshape(-1, *shape),
        overall=overall.reshape(shape),
        p_value=((1 + reached) / (1 + n_resamples)).reshape(shape),
        p_adjusted=((1 + beaten) / (1 + n_resamples)).reshape(shape),
    )


def _shares(
    weight: Float[ndarray, "domain unit"],
    flat: Float[ndarray, "unit any"],
    tokens: Float[ndarray, " unit"],
) -> Float[ndarray, "domain any"]:
    return weight @ flat / (weight @ tokens)[:, None]


def _domain_intervals(
    place: ndarray,
    n_domains: int,
    flat: Float[ndarray, "unit any"],
    tokens: Float[ndarray, " unit"],
    n_bootstrap: int,
    rng: Generator,
) -> tuple[Float[ndarray, "domain any"], Float[ndarray, "domain any"]]:
    ends = []
    for one in range(n_domains):
        rows = np.flatnonzero(place == one)
        weight = rng.multinomial(len(rows), np.full(len(rows), 1 / len(rows)), size=n_bootstrap)
        drawn = _shares(weight.astype(float), flat[rows], tokens[rows])
        ends.append(np.quantile(drawn, [0.025, 0.975], axis=0))
    return np.stack([low for low, _ in ends]), np.stack([high for _, high in ends])


@dataclass(frozen=True)
class VocabularySpecialisation:
    """How far a token's identity decides its experts.

    Attributes:
        in_sample: Mean over token ids of the part of an id's occurrences that chose the expert
            which it chooses most, as in the paper; biased upwards for rare ids.
        held_out: For each token, whether it chose the expert that other prompts' tokens of its id
            choose most; NaN for ids that no other prompts have.
        baseline: The same for the expert that all other prompts' tokens choose most.
        n_ids: Token ids in `in_sample`.
    """

    in_sample: Float[ndarray, " layer"]
    held_out: Float[ndarray, "token layer"]
    baseline: Float[ndarray, "token layer"]
    n_ids: int


def vocabulary_specialisation(
    index: Integer[ndarray, "token layer top_k"],
    token_id: Integer[ndarray, " token"],
    half: Bool[ndarray, " token"],
    n_experts: int,
    *,
    min_count: int = 10,
) -> VocabularySpecialisation:
    """Measure how often tokens of one id choose the same expert.

    The paper's mean over ids takes the favourite expert and its frequency from the same tokens.
    Held out, the favourite comes from one half of the prompts and the frequency from the other.

    Args:
        index: The experts that each token chose.
        token_id: The id of each token.
        half: Which half of the prompts each token is in.
        n_experts: Experts in each layer.
        min_count: Occurrences from which an id enters the mean over ids.

    Returns:
        The mean over ids, and what each token does, held out.

    Raises:
        ValueError: If lengths differ, or no id occurs `min_count` times.

    References:
        Muennighoff et al. (2024), "OLMoE", arXiv 2409.02060, section 5.4.
    """
    index, token_id, half = np.asarray(index), np.asarray(token_id), np.asarray(half)
    if not len(index) == len(token_id) == len(half):
        raise ValueError(
            f"`index`, `token_id` and `half` must name the same tokens, got {len(index)}, "
            f"{len(token_id)} and {len(half)}."
        )
    chosen = np.zeros((*index.shape[:2], n_experts))
    np.put_along_axis(chosen, index.astype(np.int64), 1.0, axis=2)
    ids, own = np.unique(token_id, return_inverse=True)
    count = _of_ids(chosen, own, len(ids))
    size = np.bincount(own, minlength=len(ids))
    often = size >= min_count
    if not often.any():
        raise ValueError(
            f"No token id occurs {min_count} times; give more prompts or a smaller `min_count`."
        )
    in_sample = (count[often].max(axis=2) / size[often, None]).mean(axis=0)
    held_out = np.full(index.shape[:2], np.nan)
    baseline = np.full(index.shape[:2], np.nan)
    for side in (True, False):
        there, here = half == side, np.flatnonzero(half != side)
        if not there.any() or not len(here):
            continue
        seen = _of_ids(chosen[there], own[there], len(ids))
        known = seen.sum(axis=(1, 2)) > 0
        favourite = seen.argmax(axis=2)[own[here]]
        hit = np.take_along_axis(chosen[here], favourite[..., None], axis=2)[..., 0]
        held_out[here] = np.where(known[own[here], None], hit, np.nan)
        most = chosen[there].sum(axis=0).argmax(axis=1)
        baseline[here] = chosen[here][:, range(len(most)), most]
    return VocabularySpecialisation(in_sample, held_out, baseline, int(often.sum()))


def _of_ids(
    chosen: Float[ndarray, "token layer expert"], own: ndarray, n_ids: int
) -> Float[ndarray, "id layer expert"]:
    count = np.zeros((n_ids, *chosen.shape[1:]))
    np.add.at(count, own, chosen)
    return count


@dataclass(frozen=True)
class StandingCommittee:
    """Experts of one layer that are among the most used in nearly all domains.

    Attributes:
        experts: The committee, in order.
        present: Part of the domains in whose `top_k` most used each expert is.
        mean_rank: Mean over domains of the rank by use; `top_k` + 1 where it is not among them.
        rank_variance: Its variance.
        coverage: The committee's mean use, as a part of that of the domains' most used.
    """

    experts: tuple[int, ...]
    present: Float[ndarray, " expert"]
    mean_rank: Float[ndarray, " expert"]
    rank_variance: Float[ndarray, " expert"]
    coverage: float


def standing_committee(
    use: Float[ndarray, "domain expert"], *, top_k: int, presence: float = 0.8
) -> StandingCommittee:
    """Find experts that all domains use: flag them before naming any expert for a domain.

    Of the experts that are among the `top_k` most used in at least `presence` of the domains,
    those are kept that no other beats in both mean rank and variance of rank.

    Args:
        use: Mean routing weight, or another measure of use, in each domain.
        top_k: How many of a domain's most used experts count.
        presence: Part of the domains, in (0, 1].

    Returns:
        The committee and what it was chosen by.

    Raises:
        ValueError: If an option is out of range.

    References:
        CommitteeAudit (2026), arXiv 2601.03425: read in code.

    Example:
        >>> use = np.array([[0.5, 0.3, 0.2], [0.5, 0.1, 0.4]])
        >>> standing_committee(use, top_k=1).experts
        (0,)
    """
    n_domains, n_experts = use.shape
    if not 1 <= top_k <= n_experts or not 0 < presence <= 1:
        raise ValueError(
            f"`top_k` must lie in 1 to {n_experts} and `presence` in (0, 1], got {top_k} and "
            f"{presence}."
        )
    order = np.argsort(-use, axis=1, kind="stable")
    rank = np.empty_like(order)
    np.put_along_axis(rank, order, np.arange(1, n_experts + 1)[None].repeat(n_domains, 0), axis=1)
    rank = np.minimum(rank, top_k + 1)
    present = (rank <= top_k).mean(axis=0)
    mean, variance = rank.mean(axis=0), rank.var(axis=0)
    able = np.flatnonzero(present >= presence)
    kept = tuple(
        int(one)
        for one in able
        if not any(
            mean[other] <= mean[one]
            and variance[other] <= variance[one]
            and (mean[other] < mean[one] or variance[other] < variance[one])
            for other in able
        )
    )
    most = -np.sort(-use, axis=1)[:, :top_k].sum()
    return StandingCommittee(kept, present, mean, variance, float(use[:, kept].sum() / most))
