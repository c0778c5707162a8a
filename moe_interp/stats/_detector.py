r"""A calibrated detector of harm, tested on whole groups of prompts that it has not seen.

Idea: a monitor that is trained on some data sets (or topics, or wordings) is worth what it does
on others. What is left out decides what the number means: a detector tested on a new topic whose
wordings it knows may have learnt the wordings. So the same folds are given to other features, such
as a bag of tokens, and it is said which part of the tested prompts' topics and wordings was seen.

Beside each AUC stands that of relabellings which exchange the harm of whole units. Where wordings
are seen, words that were relabelled alike everywhere are still learnt: such a split has an AUC far
above 0.5 under exchanged labels, and then says nothing about harm.

Cost: for each fold and features one eigenvalue problem of the size of the training prompts.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int, Shaped
from numpy import ndarray
from numpy.random import Generator

from moe_interp.stats._design import Design, make_design
from moe_interp.stats._detector_folds import (
    Folds,
    deal_folds,
    group_names,
    inner_parts,
    require_both_levels,
    seen,
    wordings_seen,
)
from moe_interp.stats._detector_result import Detected, Detection
from moe_interp.stats._jackknife import interval_factor
from moe_interp.stats._logistic import coordinates, logistic_scores, platt_probabilities
from moe_interp.stats._profile import RoutingProfile
from moe_interp.stats._relabel import (
    check_resamples,
    draw_labels,
    is_exhaustive,
    max_p_values,
)
from moe_interp.stats._schemes import Labels, wording_units
from moe_interp.stats._transfer_calibration import Calibration
from moe_interp.stats._transfer_curve import grouped_auc
from moe_interp.stats._transfer_decode import auc_interval, standard_error


@dataclass(frozen=True, eq=False)
class _Scored:
    """AUCs of one set of features: with all units, with each left out, and under relabelling."""

    auc: float
    by_fold: Float[ndarray, " fold"]
    left_out: Float[ndarray, "2 group"]
    null: Float[ndarray, " relabelling"]
    calibration: Calibration | None


def detect_harm(
    profile: RoutingProfile,
    features: Mapping[str, Float[ndarray, "..."]],
    *,
    held_out: Sequence[object] | Shaped[ndarray, " prompt"],
    name: str,
    n_folds: int = 8,
    penalty: float = 1.0,
    n_resamples: int = 199,
    rng: Generator,
    scheme: str = "auto",
    alpha: float = 0.05,
) -> Detection:
    """Train detectors of harm with whole groups of prompts left out, and test them on these.

    Each detector is a logistic regression on standardised features, calibrated by Platt's method
    on scores of training prompts that it had not seen. The AUC compares prompts of one fold and
    topic. Nothing but the named groups is held out: see `transfer_auc` for splits that keep
    wordings apart too.

    Args:
        profile: Profile of the prompts; gives their labels and exchange units.
        features: Name to ``[prompt feature]``, or ``[draw prompt feature]`` if they are random.
            The first are those in question, the others what they have to beat.
        held_out: The group of each prompt: its data set, topic or wording.
        name: What the groups are, in a word.
        n_folds: Largest number of folds; more groups than that are held out several at a time.
        penalty: Strength of the L2 penalty, in units of the mean squared norm of the features.
        n_resamples: Relabellings.
        rng: Source of randomness.
        scheme: What is exchangeable, as in `harm_test`.
        alpha: Level that the scheme must be able to reach.

    Returns:
        AUC, interval, what relabelling gives and probabilities, for each set of features.

    Raises:
        ValueError: If an option is out of range or features do not fit the prompts.
        DesignError: If prompts have no group, there are fewer than two, a group cuts a pair, or
            the labels do not allow the question.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> harm = np.arange(64) % 2
        >>> logits = rng.normal(size=(64, 1, 6))
        >>> logits[:, 0, 0] += 2 * harm
        >>> profile = RoutingProfile(
        ...     shares=np.exp(logits) / np.exp(logits).sum(axis=2, keepdims=True), layers=(0,),
        ...     span="user", topic=np.arange(64) // 16, harm=harm == 1, pair=np.arange(64) // 2)
        >>> found = detect_harm(
        ...     profile, {"load": profile.shares[:, 0]}, held_out=profile.topic, name="topic",
        ...     rng=rng)
        >>> found["load"].auc > 0.7, found.topics_seen
        (True, 0.0)
    """
    if n_folds < 2:
        raise ValueError(f"`n_folds` must be at least 2, got {n_folds!r}.")
    if not 0 < penalty < np.inf:
        raise ValueError(f"`penalty` must be positive and finite, got {penalty!r}.")
    check_resamples(n_resamples, alpha)
    checked = _checked(features, profile.n_prompts)
    design = make_design(profile, scheme, need_topics=False)
    design.exchange.require(alpha, "harm")
    groups = group_names(held_out, name, profile, design)
    folds = deal_folds(groups, design, n_folds, rng)
    require_both_levels(folds, design, name)
    labels = _relabelled(design, n_resamples, rng)
    units = wording_units(_labels(profile, design))
    inner = [inner_parts(groups, units, fold.train, rng) for fold in folds.folds]
    scored = {
        own: [
            _score(
                draw[design.rows],
                folds,
                design,
                penalty,
                labels if len(draws) == 1 else None,
                inner,
            )
            for draw in draws
        ]
        for own, draws in checked.items()
    }
    exhaustive = is_exhaustive(design.exchange, n_resamples)
    first = next(iter(scored.values()))
    return Detection(
        held_out=name,
        span=profile.span,
        detectors={
            own: _detected(own, found, first, folds, design, exhaustive=exhaustive)
            for own, found in scored.items()
        },
        topics_seen=seen(design.topic, folds),
        wordings_seen=wordings_seen(profile, design, folds),
        n_folds=len(folds.folds),
        n_tested=len(folds.tested),
        words=design.exchange.words,
        n_units=design.exchange.n_units,
        n_resamples=len(labels),
        exhaustive=exhaustive,
    )


def _checked(
    features: Mapping[str, Float[ndarray, "..."]], n_prompts: int
) -> dict[str, Float[ndarray, "draw prompt feature"]]:
    if not features:
        raise ValueError("`features` is empty; give at least one set, such as the loads.")
    checked = {}
    for name, given in features.items():
        values = np.asarray(given, dtype=np.float64)
        if values.ndim not in (2, 3) or values.shape[-2] != n_prompts or not values.size:
            raise ValueError(
                f"Features {name!r} must be an array (prompt, feature) or (draw, prompt, feature) "
                f"with the profile's {n_prompts} prompts in their order, got shape {values.shape}."
            )
        if not np.isfinite(values).all():
            raise ValueError(f"Features {name!r} hold NaN or infinite values.")
        checked[name] = values if values.ndim == 3 else values[None]
    if len(next(iter(checked.values()))) > 1:
        raise ValueError(
            "The first of `features` are those in question and must not be drawn at random: give "
            "an array (prompt, feature)."
        )
    return checked


def _labels(profile: RoutingProfile, design: Design) -> Labels:
    pair, wording = profile.pair[design.rows], profile.wording[design.rows]
    return Labels(design.topic, design.harm > 0, pair, wording)


def _relabelled(design: Design, n_resamples: int, rng: Generator) -> Float[ndarray, "draw prompt"]:
    exchange = design.exchange
    chunks = []
    for drawn in draw_labels(exchange, n_resamples, rng, width=design.n_prompts):
        own = drawn[:, exchange.unit].astype(float)
        chunks.append(design.harm * own if exchange.kind == "flip" else 2 * own - 1)
    return np.concatenate(chunks)


def _score(
    features: Float[ndarray, "prompt feature"],
    folds: Folds,
    design: Design,
    penalty: float,
    relabelled: Float[ndarray, "draw prompt"] | None,
    inner: list[Int[ndarray, " train"] | None],
) -> _Scored:
    """Fit the detectors to the labels, without each unit, and to every relabelling."""
    null_labels = np.empty((0, design.n_prompts)) if relabelled is None else relabelled
    n_groups = design.n_groups
    every = np.concatenate([np.tile(design.harm, (1 + n_groups, 1)), null_labels])
    weights = np.ones_like(every)
    weights[1 : 1 + n_groups] = design.group != np.arange(n_groups)[:, None]
    scores = []
    for fold in folds.folds:
        place = coordinates(features[fold.train], features[fold.test], penalty=penalty)
        scores.append(logistic_scores(place, every[:, fold.train], weights[:, fold.train]))
    found = np.concatenate(scores, axis=1)
    harmful = every[:, folds.tested] > 0
    own = grouped_auc(found[:1], harmful[:1], folds.group)
    kept = weights[1 : 1 + n_groups, folds.tested] > 0
    again = slice(1, 1 + n_groups)
    left_out = [
        grouped_auc(values, harmful[again], folds.group, kept=kept).mean
        for values in (np.repeat(found[:1], n_groups, axis=0), found[again])
    ]
    null = found[1 + n_groups :]
    calibration = None
    if relabelled is not None:
        calibration = _calibrate(features, folds, design, penalty, found[0], inner)
    return _Scored(
        auc=float(own.mean[0]),
        by_fold=own.by_topic(folds.group_fold, len(folds.folds)),
        left_out=np.stack(left_out),
        null=grouped_auc(null, harmful[1 + n_groups :], folds.group).mean
        if len(null)
        else np.empty(0),
        calibration=calibration,
    )


def _calibrate(
    features: Float[ndarray, "prompt feature"],
    folds: Folds,
    design: Design,
    penalty: float,
    scores: Float[ndarray, " tested"],
    inner: list[Int[ndarray, " train"] | None],
) -> Calibration | None:
    """Platt's curve for each fold, from training prompts that inner detectors had not seen."""
    harmful = design.harm > 0
    probability, rates, start = [], [], 0
    for fold, part in zip(folds.folds, inner, strict=True):
        if part is None:
            return None
        unseen, level = [], []
        for number in range(part.max() + 1):
            learn, judge = fold.train[part != number], fold.train[part == number]
            place = coordinates(features[learn], features[judge], penalty=penalty)
            labels = design.harm[learn][None]
            unseen.append(logistic_scores(place, labels, np.ones_like(labels))[0])
            level.append(harmful[judge])
        stop = start + len(fold.test)
        seen = np.concatenate(unseen), np.concatenate(level)
        probability.append(platt_probabilities(*seen, scores[start:stop]))
        rates.append(np.full(len(fold.test), harmful[fold.train].mean()))
        start = stop
    found, tested = np.concatenate(probability), harmful[folds.tested]
    return Calibration(
        method="platt",
        brier=float(np.mean((found - tested) ** 2)),
        brier_reference=float(np.mean((np.concatenate(rates) - tested) ** 2)),
        harmful=tested,
        probability=found,
    )


def _detected(
    name: str,
    scored: list[_Scored],
    first: list[_Scored],
    folds: Folds,
    design: Design,
    *,
    exhaustive: bool,
) -> Detected:
    draws = np.array([one.auc for one in scored])
    auc = float(draws.mean())
    left_out = np.mean([one.left_out for one in scored], axis=0)
    low, high = auc_interval(auc, left_out)
    difference = first[0].auc - auc
    reach = interval_factor(design.n_groups) * standard_error(first[0].left_out - left_out)
    by_fold = np.mean([one.by_fold for one in scored], axis=0)
    null = scored[0].null
    tested = len(null) > 0
    p_value = max_p_values(draws, null, exhaustive=exhaustive)[0] if tested else np.nan
    return Detected(
        features=name,
        auc=auc,
        low=low,
        high=high,
        chance=float(null.mean()) if tested else float("nan"),
        p_value=float(p_value),
        difference=difference,
        difference_low=difference - reach,
        difference_high=difference + reach,
        by_fold={own: float(value) for own, value in zip(folds.names, by_fold, strict=True)},
        calibration=scored[0].calibration,
        null=null,
        draws=draws,
    )
