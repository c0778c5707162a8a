"""OLMoE (2024): what experts specialise in, which are chosen together, and how routers saturate."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from einops import rearrange
from jaxtyping import Float
from numpy import ndarray
from numpy.random import Generator
from scipy import stats as distributions

from moe_interp.capture import RoutingRecord, record_routing
from moe_interp.errors import DesignError
from moe_interp.experts import ExpertSet
from moe_interp.models import MoEModel
from moe_interp.prompts import PromptSet, exchange_units
from moe_interp.scores import largest_output, mean_routing_weight, super_experts, write_norm
from moe_interp.stats import (
    DomainSpecialisation,
    coactivation,
    concentration,
    domain_specialisation,
    router_saturation,
    standing_committee,
    vocabulary_specialisation,
)
from moe_interp.studies._result import StudyResult
from moe_interp.studies._study import Study

NAME, PAPER = "olmoe2024", "OLMoE (2024)"
STATUS = {
    "domain specialisation": "read in code",
    "vocabulary specialisation": "read in code",
    "co-activation": "read in code; over all pairs as the paper defines it, where the code counts "
    "neighbours in rank",
    "router saturation": "read in code",
    "standing committee": "read in code (CommitteeAudit, arXiv 2601.03425)",
    "super experts": "read in code (arXiv 2507.23279)",
    "permutation of domains, held-out favourites, use alone": "our reconstruction of a control",
}


def olmoe2024(
    model: MoEModel,
    prompts: PromptSet,
    *,
    rng: Generator,
    other: MoEModel | None = None,
    span: str = "user",
    min_count: int = 10,
    n_pairs: int = 12,
    n_resamples: int = 999,
    n_bootstrap: int = 1000,
    alpha: float = 0.05,
) -> StudyResult:
    r"""Describe what each expert is used for, beside what chance and use alone would give.

    Domain specialisation :math:`N_{D,e} / N_D` with the prompts' topics as domains; vocabulary
    specialisation; co-activation :math:`N_{ij} / N_i` over all pairs; router saturation against
    another model or checkpoint on the same tokens; entropy, effective experts, coverage and Gini;
    the standing committee; super experts. Descriptions only: none says what an expert does.

    Added here: intervals over exchange units; the largest domain difference tested by exchanging
    topics (within wordings, where these repeat); favourites chosen on other prompts than rated.

    Args:
        model: The model.
        prompts: Prompts with topics; harm is not needed.
        rng: Source of randomness.
        other: Another model with the same tokenizer and layers, to compare the routers with.
        span: The tokens that count.
        min_count: Occurrences from which a token id enters the paper's mean over ids, and tokens
            from which an expert enters the list of pairs.
        n_pairs: Co-activated pairs to list.
        n_resamples: Relabellings of domains.
        n_bootstrap: Draws of the intervals.
        alpha: Level of the tests.

    Returns:
        One table each of experts, domains, layers, pairs, and of saturation if there is `other`.

    Raises:
        DesignError: If prompts lack topics or have fewer than two, or the other model has other
            tokens or layers.
        SpanError: If there is no such span.
        ValueError: If a number is out of range, or no token id occurs often enough.

    References:
        Muennighoff et al. (2024), "OLMoE: Open Mixture-of-Experts Language Models",
        arXiv 2409.02060, section 5.

    Example:
        >>> import moe_interp as mi
        >>> model = mi.load_model("organism:topic")
        >>> prompts = mi.load_prompts("organism", per_topic=4)
        >>> result = olmoe2024(model, prompts, rng=np.random.default_rng(0), n_resamples=199)
        >>> pairs = result.tables["pairs"]
        >>> abs(pairs["second"] - pairs["first"]).unique().tolist()
        [8]
    """
    _check_topics(prompts)
    record = _record(model, prompts, span)
    record.check_every_prompt(span)
    domains = _domains(record, prompts, span, n_resamples, n_bootstrap, rng)
    largest = largest_output(model, prompts)
    flagged = super_experts(largest)
    pairs = _pairs(record, span, n_pairs, min_count, n_bootstrap, rng)
    layers, committees = _layers(record, prompts, span, min_count, rng)
    tables = {
        "experts": _expert_table(record, domains, write_norm(model, prompts).mean, largest.mean),
        "domains": _domain_table(record, domains),
        "layers": layers,
        "pairs": pairs,
    }
    if other is not None:
        tables["saturation"] = _saturation(record, _record(other, prompts, span), span)
    return STUDY.result(
        model,
        prompts,
        rng,
        settings={
            "span": span,
            "min_count": min_count,
            "n_resamples": n_resamples,
            "n_bootstrap": n_bootstrap,
            "alpha": alpha,
            "other": None if other is None else other.id,
        },
        answers=tuple(_said(tables, domains, flagged, committees, alpha)),
        numbers={
            "chance_share": record.top_k / record.n_experts,
            "specialised": int((domains.p_adjusted <= alpha).sum()),
            "standing_committees": committees,
            "super_experts": [str(expert) for expert in flagged],
        },
        tables=tables,
        maps={
            "Largest difference between a domain's use and all tokens'": "specialisation",
            "Length of what the expert writes": "write_norm",
        },
    )


def _check_topics(prompts: PromptSet) -> None:
    topics = set(prompts.topics)
    if None in topics or len(topics) < 2:
        raise DesignError(
            f"Domains are the prompts' topics; {sum(t is None for t in prompts.topics)} of "
            f"{len(prompts)} prompts have none and the others have {len(topics - {None})}. Give "
            "every prompt a topic, two or more in all."
        )


def _record(model: MoEModel, prompts: PromptSet, span: str) -> RoutingRecord:
    return record_routing(model, prompts, spans=(span,), n_random_routers=0, progress=False)


def _domains(
    record: RoutingRecord,
    prompts: PromptSet,
    span: str,
    n_resamples: int,
    n_bootstrap: int,
    rng: Generator,
) -> DomainSpecialisation:
    """Pairs are what is exchanged, within wordings where these repeat over topics."""
    topics = np.array(prompts.topics, dtype=str)
    pair = exchange_units(prompts.wordings, prompts.pairs, by="pair")
    # A pair whose prompts differ in topic belongs to no domain as a whole.
    _, unit = np.unique(
        [f"{p} {t}" for p, t in zip(pair, topics, strict=True)], return_inverse=True
    )
    first = [int(np.flatnonzero(unit == one)[0]) for one in range(unit.max() + 1)]
    tokens = record.n_slots(span) / record.top_k
    count = record.shares(span) * record.n_slots(span)[:, None, None]
    summed = np.zeros((len(first), *count.shape[1:]))
    np.add.at(summed, unit, count)
    wording = exchange_units(prompts.wordings, prompts.pairs)
    crossed = len({(wording[row], topics[row]) for row in first}) > len(set(wording[first]))
    return domain_specialisation(
        summed,
        np.bincount(unit, weights=tokens),
        topics[first].tolist(),
        strata=wording[first].tolist() if crossed else None,
        n_resamples=n_resamples,
        n_bootstrap=n_bootstrap,
        rng=rng,
    )


def _expert_table(
    record: RoutingRecord,
    found: DomainSpecialisation,
    written: Float[ndarray, "layer expert"],
    largest: Float[ndarray, "layer expert"],
) -> pd.DataFrame:
    difference = found.share - found.overall
    top = np.abs(difference).argmax(axis=0)
    n_layers, n_experts = found.overall.shape
    return pd.DataFrame(
        {
            "layer": np.repeat(record.layers, n_experts),
            "expert": np.tile(np.arange(n_experts), n_layers),
            "share": found.overall.ravel(),
            "domain": [found.domains[one] for one in top.ravel()],
            "specialisation": np.take_along_axis(difference, top[None], axis=0).ravel(),
            "p": found.p_value.ravel(),
            "p_adjusted": found.p_adjusted.ravel(),
            "write_norm": written.ravel(),
            "largest_output": largest.ravel(),
        }
    )


def _domain_table(record: RoutingRecord, found: DomainSpecialisation) -> pd.DataFrame:
    rows = [
        {
            "domain": domain,
            "layer": layer,
            "expert": expert,
            "share": found.share[d, row, expert],
            "low": found.low[d, row, expert],
            "high": found.high[d, row, expert],
        }
        for d, domain in enumerate(found.domains)
        for row, layer in enumerate(record.layers)
        for expert in range(record.n_experts)
    ]
    return pd.DataFrame(rows)


def _tokens(record: RoutingRecord, span: str) -> tuple[ndarray, ndarray, ndarray]:
    """The experts, the id and the prompt of each token of a span."""
    inside, dataset = record.inside(span), record.dataset
    return tuple(  # type: ignore[return-value]
        dataset[name].values[inside] for name in ("expert_index", "token_id", "prompt_index")
    )


def _pairs(
    record: RoutingRecord,
    span: str,
    n_pairs: int,
    min_count: int,
    n_bootstrap: int,
    rng: Generator,
) -> pd.DataFrame:
    """The pairs that are chosen together most beyond what use alone gives."""
    index, _, owner = _tokens(record, span)
    found = coactivation(index, record.n_experts)
    beyond = found.share - found.expected
    use = np.einsum("lee->le", found.count)[:, :, None]
    beyond = np.where(np.isnan(beyond) | (use < min_count), -np.inf, beyond)
    # Each pair once: by the expert whose tokens share more of their choices; of a tie the first.
    mirrored = rearrange(beyond, "layer first second -> layer second first")
    later = np.tri(record.n_experts, dtype=bool)
    beyond = np.where((beyond < mirrored) | ((beyond == mirrored) & later), -np.inf, beyond)
    order = np.argsort(-beyond.ravel(), kind="stable")[:n_pairs]
    order = order[np.isfinite(beyond.ravel()[order])]
    prompts = record.prompts
    unit = exchange_units(prompts.wordings, prompts.pairs)[owner]
    n_units = int(unit.max()) + 1
    weight = rng.multinomial(n_units, np.full(n_units, 1 / n_units), size=n_bootstrap)
    rows = []
    for row, first, second in zip(*np.unravel_index(order, beyond.shape), strict=True):
        has = (index[:, row] == first).any(axis=-1)
        both = has & (index[:, row] == second).any(axis=-1)
        n_first, n_both = (np.bincount(unit, weights=one, minlength=n_units) for one in (has, both))
        total = weight @ n_first
        share = np.divide(weight @ n_both, total, out=np.full(n_bootstrap, np.nan), where=total > 0)
        low, high = np.nanquantile(share, [0.025, 0.975])
        rows.append(
            {
                "layer": record.layers[row],
                "first": int(first),
                "second": int(second),
                "share": found.share[row, first, second],
                "low": low,
                "high": high,
                "expected": found.expected[row, first, second],
                "tokens": int(found.count[row, first, second]),
            }
        )
    return pd.DataFrame(rows)


def _layers(
    record: RoutingRecord, prompts: PromptSet, span: str, min_count: int, rng: Generator
) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Spread, vocabulary specialisation and the standing committee of each layer."""
    index, token_id, owner = _tokens(record, span)
    unit = exchange_units(prompts.wordings, prompts.pairs)
    half = rng.permutation(int(unit.max()) + 1) % 2 == 0
    words = vocabulary_specialisation(
        index, token_id, half[unit[owner]], record.n_experts, min_count=min_count
    )
    table = concentration(record.shares(span).mean(axis=0), layers=record.layers).to_frame()
    table["vocabulary"] = words.in_sample
    for name, values in (("held_out", words.held_out), ("most_used", words.baseline)):
        table[f"vocabulary_{name}"] = np.nanmean(values, axis=0)
    difference = words.held_out - words.baseline
    table["low"], table["high"] = _unit_interval(difference, unit[owner])
    topics = np.array(prompts.topics, dtype=str)
    weight = mean_routing_weight(record, span=span).array.values
    use = np.stack([weight[topics == one].mean(axis=0) for one in sorted(set(topics.tolist()))])
    committees = {
        str(layer): standing_committee(use[:, row], top_k=record.top_k)
        for row, layer in enumerate(record.layers)
    }
    table["committee_coverage"] = [one.coverage for one in committees.values()]
    return table, {layer: list(one.experts) for layer, one in committees.items()}


def _unit_interval(
    values: Float[ndarray, "token layer"], unit: ndarray
) -> tuple[Float[ndarray, " layer"], Float[ndarray, " layer"]]:
    """The 95 % t interval of a mean, across units."""
    means = np.stack([np.nanmean(values[unit == one], axis=0) for one in np.unique(unit)])
    reach = distributions.t.ppf(0.975, len(means) - 1) * means.std(axis=0, ddof=1)
    return (
        means.mean(axis=0) - reach / np.sqrt(len(means)),
        means.mean(axis=0) + reach / np.sqrt(len(means)),
    )


def _saturation(record: RoutingRecord, other: RoutingRecord, span: str) -> pd.DataFrame:
    mine, theirs = _tokens(record, span), _tokens(other, span)
    same = record.layers == other.layers and mine[0].shape == theirs[0].shape
    if not same or (mine[1] != theirs[1]).any():
        raise DesignError(
            "The other model has other tokens, layers or experts chosen per token, so its router "
            "cannot be compared token by token. Give two checkpoints of one model."
        )
    prompts = record.prompts
    unit = exchange_units(prompts.wordings, prompts.pairs)[mine[2]]
    common = router_saturation(mine[0], theirs[0])
    low, high = _unit_interval(common, unit)
    return pd.DataFrame(
        {
            "layer": record.layers,
            "saturation": common.mean(axis=0),
            "low": low,
            "high": high,
            "chance": record.top_k / record.n_experts,
        }
    )


def _said(
    tables: dict[str, pd.DataFrame],
    domains: DomainSpecialisation,
    flagged: ExpertSet,
    committees: dict[str, Sequence[int]],
    alpha: float,
) -> list[str]:
    experts, pairs, layers = tables["experts"], tables["pairs"], tables["layers"]
    top = experts.loc[experts["specialisation"].abs().idxmax()]
    said = [
        f"{int((domains.p_adjusted <= alpha).sum())} of {len(experts)} experts are used unlike by "
        f"different domains at the {alpha:.0%} level after correction; the largest difference is "
        f"L{top['layer']}E{top['expert']} on {top['domain']} ({top['specialisation']:+.2f}).",
        "Tokens choose their id's favourite expert, learnt from other prompts, in "
        f"{layers['vocabulary_held_out'].mean():.0%} of the cases, the most used expert in "
        f"{layers['vocabulary_most_used'].mean():.0%}.",
    ]
    if len(pairs):
        first = pairs.iloc[0]
        said.append(
            f"Of the tokens that choose L{first['layer']:.0f}E{first['first']:.0f}, "
            f"{first['share']:.0%} choose E{first['second']:.0f} as well [{first['low']:.2f}, "
            f"{first['high']:.2f}]; use alone gives {first['expected']:.0%}."
        )
    standing = [f"L{layer}E{expert}" for layer, kept in committees.items() for expert in kept]
    said.append(f"Used by nearly all domains: {', '.join(standing) or 'none'}.")
    said.append(f"Super experts: {flagged or 'none'}.")
    if "saturation" in tables:
        mean = tables["saturation"]["saturation"].mean()
        said.append(f"The other router chooses {mean:.0%} of the same experts.")
    return said


STUDY = Study(
    name=NAME,
    paper=PAPER,
    arxiv="2409.02060",
    claim="Experts specialise in domains and vocabulary, few pairs are chosen together, and "
    "routers saturate early in training.",
    status=STATUS,
    adds="intervals over exchange units, domains exchanged for a p-value, favourites chosen "
    "on other prompts, co-activation beside use alone, standing committee, super experts",
    run=olmoe2024,
)
