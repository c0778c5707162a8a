r"""How well harm is decoded from routing, in topics and in words the decoder has not seen.

Idea: a share of variance says how much of the routing harm moves; a decoder says whether one
direction of routing tells harmful from harmless prompts *elsewhere*. What it finds inside topics
may be a topic's own; what it finds in another topic may be a wording that both topics use. So
each split holds out more than one way of knowing, and pairs and wordings never stand on both
sides.

Only prompts of one fold and one topic are compared. Scores pooled over folds would be biased:
each fold has its own intercept, which is low where the held-out prompts happen to be harmful, so
that pooled cross-validation lies below 0.5 when nothing can be decoded [1]; and scores pooled
over topics would count an offset between topics as knowledge of harm where harm is not as
frequent in each. Equal scores count half.

The decoder is linear in the labels and its penalty does not look at them, so that the null
distribution of the whole procedure costs one matrix product a fold.

Cost: a matrix inverse a fold, and the square of the number of prompts in memory.

References:
    [1] Parker, Günter and Bedo (2007), "Stratification bias in low signal microarray studies".
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import numpy as np
from einops import rearrange
from jaxtyping import Float
from numpy import ndarray
from numpy.random import Generator

from moe_interp.errors import DesignError
from moe_interp.experts import ExpertSet
from moe_interp.stats._design import Design, make_design
from moe_interp.stats._features import expert_columns
from moe_interp.stats._jackknife import interval_factor
from moe_interp.stats._profile import RoutingProfile
from moe_interp.stats._relabel import check_resamples, is_exhaustive, max_p_values
from moe_interp.stats._schemes import Labels, wording_units
from moe_interp.stats._transfer_calibration import (
    METHODS,
    Calibration,
    Calibrator,
    averaged,
    calibrate,
    make_calibrator,
)
from moe_interp.stats._transfer_decode import (
    Decoded,
    auc_interval,
    decode,
    relabelled,
    standard_error,
)
from moe_interp.stats._transfer_folds import SPLITS, HoldOut, Split, make_split
from moe_interp.stats._transfer_result import ROUTING, BaselineAUC, SplitAUC, TransferAUC
from moe_interp.stats._transfer_ridge import gram_matrix

# A spread of AUCs below this is rounding: nothing that was decoded depends on labels.
_CONSTANT = 1e-12
_WORDS = {
    "within_topic": "other prompts of the same topic",
    "leave_topic_out": "whole topics",
    "leave_wording_out": "whole wordings, decoders learn from all topics",
}


def transfer_auc(
    profile: RoutingProfile,
    *,
    splits: Sequence[str] = SPLITS,
    baselines: Mapping[str, Float[ndarray, "..."]] | None = None,
    experts: ExpertSet | None = None,
    n_resamples: int = 999,
    n_folds: int = 5,
    penalty: float = 1.0,
    calibration: str | None = None,
    rng: Generator,
    scheme: str = "auto",
    alpha: float = 0.05,
) -> TransferAUC:
    """Decode harm from routing within topics, in topics left out and in wordings left out.

    A ridge decoder reads the Hellinger-embedded profile of all layers and experts. It learns
    what harm does inside topics; the AUC compares prompts of one topic that were held out
    together, and is averaged. In ``"within_topic"`` each topic has decoders of its own; in
    ``"leave_topic_out"`` a topic's prompts are tested by decoders of the other topics, and of
    other wordings where topics share them; in ``"leave_wording_out"`` by decoders of all topics
    that have not seen the wording. What can be wrong: prompts of one text in two pairs are not
    known to be the same unless they have a `wording`, and then lift every split.

    Args:
        profile: Profile of one span.
        splits: What to hold out: some of the three above.
        baselines: Name to other features of the same prompts, ``[prompt feature]``, or
            ``[draw prompt feature]`` if they are random. They are decoded in the same folds.
        experts: The experts to decode from; all if None. If they were selected by harm, then on
            other prompts than these.
        n_resamples: Number of relabellings; if fewer sign patterns exist, all are taken.
        n_folds: Largest number of parts that units are dealt into.
        penalty: Ridge penalty, in units of the mean squared norm of the centred features.
        calibration: ``"platt"`` or ``"isotonic"`` to have probabilities too, from routing and
            from each baseline; they change no other number.
        rng: Source of randomness; the same state gives the same result.
        scheme: What is exchangeable, as in `harm_test`.
        alpha: Level that the scheme must be able to reach.

    Returns:
        AUC, interval, p-values and baselines of each split, and the splits that were refused.

    Raises:
        ValueError: If an option is out of range or a baseline does not fit the prompts.
        DesignError: If the labels do not allow the question, the scheme has too few units, no
            split is possible, or a training fold cannot be calibrated.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> harm = np.arange(64) % 2
        >>> logits = rng.normal(size=(64, 1, 6))
        >>> logits[:, 0, 0] += 2 * harm
        >>> found = transfer_auc(RoutingProfile(
        ...     shares=np.exp(logits) / np.exp(logits).sum(axis=2, keepdims=True), layers=(0,),
        ...     span="user", topic=np.arange(64) // 16, harm=harm == 1, pair=np.arange(64) // 2,
        ... ), rng=rng)
        >>> found["leave_topic_out"].auc > 0.7, list(found.refused)
        (True, ['leave_wording_out'])
    """
    _check_options(splits, n_folds, penalty, calibration)
    check_resamples(n_resamples, alpha)
    baselines = _checked_baselines(baselines, profile.n_prompts)
    design = make_design(profile, scheme, need_topics=False)
    design.exchange.require(alpha, "harm")
    columns = expert_columns(profile, experts)
    features = rearrange(design.embed(profile), "prompt layer expert -> prompt (layer expert)")
    gram = gram_matrix(features[:, columns])
    hold_out = _hold_out(profile, design)
    makers = {
        name: partial(make_split, name, hold_out, n_folds=n_folds, rng=rng) for name in splits
    }
    decoded, refused = _decode_possible(makers, gram, design, penalty)
    calibrators = _calibrators(decoded, hold_out, design, calibration, rng)
    beside = [
        _compare(decoded, calibrators, name, own, design, penalty)
        for name, own in baselines.items()
    ]
    null = relabelled(decoded, design, n_resamples, rng)
    exhaustive = is_exhaustive(design.exchange, n_resamples)
    calibrations = [
        plan and calibrate(own, gram, plan, design, penalty)
        for own, plan in zip(decoded, calibrators, strict=True)
    ]
    results = _results(decoded, null, beside, calibrations, design, exhaustive=exhaustive)
    return TransferAUC(
        span=profile.span,
        layers=profile.layers if experts is None else experts.layers,
        n_features=len(columns),
        splits={own.split: own for own in results},
        refused=refused,
        scheme=design.scheme,
        words=design.exchange.words,
        n_prompts=design.n_prompts,
        n_units=design.exchange.n_units,
        n_resamples=len(null),
        exhaustive=exhaustive,
    )


def _check_options(
    splits: Sequence[str], n_folds: int, penalty: float, calibration: str | None
) -> None:
    unknown = [split for split in splits if split not in SPLITS]
    if unknown or isinstance(splits, str) or not splits:
        raise ValueError(f"`splits` must be some of {SPLITS}, got {splits!r}.")
    if n_folds < 2:
        raise ValueError(f"`n_folds` must be at least 2, got {n_folds!r}.")
    if not 0 < penalty < np.inf:
        raise ValueError(f"`penalty` must be positive and finite, got {penalty!r}.")
    if calibration not in (None, *METHODS):
        raise ValueError(f"`calibration` must be None or one of {METHODS}, got {calibration!r}.")


def _checked_baselines(
    baselines: Mapping[str, Float[ndarray, "..."]] | None, n_prompts: int
) -> dict[str, Float[ndarray, "draw prompt feature"]]:
    checked = {}
    for name, given in (baselines or {}).items():
        values = np.asarray(given)
        if name == ROUTING:
            raise ValueError(f"A baseline must not be called {ROUTING!r}: give it another name.")
        if values.ndim not in (2, 3) or values.shape[-2] != n_prompts or not values.size:
            raise ValueError(
                f"Baseline {name!r} must be an array (prompt, feature) or (draw, prompt, feature) "
                f"with the profile's {n_prompts} prompts in their order, got shape {values.shape}."
            )
        if not np.isfinite(values).all():
            raise ValueError(f"Baseline {name!r} holds NaN or infinite values.")
        checked[name] = values if values.ndim == 3 else values[None]
    return checked


def _hold_out(profile: RoutingProfile, design: Design) -> HoldOut:
    wording = profile.wording[design.rows]
    labels = Labels(design.topic, design.harm > 0, profile.pair[design.rows], wording)
    return HoldOut(
        topics=design.topics,
        topic=design.topic,
        unit=wording_units(labels),
        has_wording=any(own is not None for own in wording),
        pure=design.exchange.kind == "permute",
    )


def _decode_possible(
    makers: Mapping[str, Callable[[], Split]],
    gram: Float[ndarray, "prompt prompt"],
    design: Design,
    penalty: float,
) -> tuple[list[Decoded], dict[str, str]]:
    """Decode in every split that the prompts allow, and say why they do not allow the others."""
    decoded, refused = [], {}
    for name, make in makers.items():
        try:
            decoded.append(decode(gram, make(), design, penalty))
        except DesignError as error:
            refused[name] = str(error)
    if not decoded:
        reasons = " ".join(f"{name}: {reason}" for name, reason in refused.items())
        raise DesignError(f"No split is possible. {reasons}")
    return decoded, refused


def _calibrators(
    decoded: list[Decoded],
    hold_out: HoldOut,
    design: Design,
    method: str | None,
    rng: Generator,
) -> list[Calibrator | None]:
    if method is None:
        return [None] * len(decoded)
    # A stream of its own, so that p-values do not depend on whether probabilities are wanted.
    (stream,) = rng.spawn(1)
    return [
        make_calibrator(own.split, hold_out, design, method=method, rng=stream) for own in decoded
    ]


def _compare(
    decoded: list[Decoded],
    calibrators: list[Calibrator | None],
    name: str,
    draws: Float[ndarray, "draw prompt feature"],
    design: Design,
    penalty: float,
) -> list[BaselineAUC]:
    """Decode a baseline in the folds of each split."""
    auc = np.empty((len(draws), len(decoded)))
    left_out = np.zeros((len(decoded), 2, design.n_groups))
    believed: list[list[Calibration]] = [[] for _ in decoded]
    for row, features in enumerate(draws):
        gram = gram_matrix(features[design.rows])
        for column, routing in enumerate(decoded):
            own = decode(gram, routing.split, design, penalty)
            auc[row, column] = own.auc
            left_out[column] += own.left_out / len(draws)
            plan = calibrators[column]
            if plan is not None:
                believed[column].append(calibrate(own, gram, plan, design, penalty))
    compared = []
    for column, routing in enumerate(decoded):
        mean = float(auc[:, column].mean())
        low, high = auc_interval(mean, left_out[column])
        error = standard_error(routing.left_out - left_out[column])
        apart = interval_factor(design.n_groups) * error
        compared.append(
            BaselineAUC(
                name=name,
                auc=mean,
                low=low,
                high=high,
                difference=routing.auc - mean,
                difference_low=routing.auc - mean - apart,
                difference_high=routing.auc - mean + apart,
                calibration=averaged(believed[column]) if believed[column] else None,
                draws=auc[:, column],
            )
        )
    return compared


def _results(
    decoded: list[Decoded],
    null: Float[ndarray, "draw split"],
    beside: list[list[BaselineAUC]],
    calibrations: list[Calibration | None],
    design: Design,
    *,
    exhaustive: bool,
) -> list[SplitAUC]:
    observed = np.array([own.auc for own in decoded])
    adjusted = _adjusted(observed, null, exhaustive=exhaustive)
    results = []
    for row, own in enumerate(decoded):
        low, high = auc_interval(own.auc, own.left_out)
        known = ~np.isnan(own.by_topic)
        p_value = max_p_values(observed[row : row + 1], null[:, row], exhaustive=exhaustive)
        results.append(
            SplitAUC(
                split=own.split.name,
                words=_words(own, design),
                auc=own.auc,
                low=low,
                high=high,
                chance=float(null[:, row].mean()),
                p_value=float(p_value[0]),
                p_adjusted=float(adjusted[row]),
                by_topic={
                    name: float(auc)
                    for name, auc in zip(design.topics, own.by_topic, strict=True)
                    if not np.isnan(auc)
                },
                left_out=tuple(np.array(design.topics, dtype=object)[~known]),
                n_folds=len(own.split.folds),
                n_tested=len(own.split.tested),
                baselines=tuple(compared[row] for compared in beside),
                calibration=calibrations[row],
                null=null[:, row],
            )
        )
    return results


def _adjusted(
    observed: Float[ndarray, " split"], null: Float[ndarray, "draw split"], *, exhaustive: bool
) -> Float[ndarray, " split"]:
    """p-values against the largest of all splits, each in units of its own null spread."""
    every = np.concatenate([observed[None], null])
    # All relabellings together hold the observed one already.
    reference = null if exhaustive else every
    spread = reference.std(axis=0)
    scaled = np.divide(
        every - reference.mean(axis=0), spread, out=np.zeros_like(every), where=spread > _CONSTANT
    )
    # Shifted to be positive, as ties of `max_p_values` are meant for.
    scaled -= scaled.min()
    return max_p_values(scaled[0], scaled[1:].max(axis=1), exhaustive=exhaustive)


def _words(own: Decoded, design: Design) -> str:
    words = _WORDS[own.split.name]
    if own.split.name != "leave_topic_out":
        return words
    bundles = {tuple(np.unique(design.topic[fold.test])) for fold in own.split.folds}
    divided = len(bundles) < len(own.split.folds)
    return words + (", part by part with their wordings" if divided else "")
