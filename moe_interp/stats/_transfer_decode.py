"""Decoding in the folds of a split: the AUC, its spread over units, and that of relabellings.

Interval: each exchange unit is left out in turn, once of the tested prompts alone and once of the
decoders too, which are then fitted anew. The first spread is too small, for it takes the decoders
as given; the second too large, for a unit that is tested by a decoder learnt from another counts
in both (of a purely bilinear statistic it is twice the variance, and the first half of it). Their
geometric mean is right in that case, and also where the decoders are good as they are.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from numpy import ndarray
from numpy.random import Generator

from moe_interp.errors import DesignError
from moe_interp.stats._design import Design
from moe_interp.stats._jackknife import interval_factor, jackknife_error
from moe_interp.stats._relabel import draw_labels
from moe_interp.stats._transfer_curve import grouped_auc
from moe_interp.stats._transfer_folds import Split
from moe_interp.stats._transfer_ridge import smoother


@dataclass(frozen=True, eq=False)
class Decoded:
    """Decoding from one set of features in the folds of one split.

    Attributes:
        split: The split.
        auc: The AUC.
        by_topic: AUC inside each topic; NaN where nothing could be compared.
        decoders: What makes scores of each fold's test prompts from its training labels.
        left_out: AUC with each jackknife group left out of the tested prompts, and of the
            decoders too.
    """

    split: Split
    auc: float
    by_topic: Float[ndarray, " topic"]
    decoders: list[Float[ndarray, "_ _"]]
    left_out: Float[ndarray, "2 group"]


def decode(
    gram: Float[ndarray, "prompt prompt"], split: Split, design: Design, penalty: float
) -> Decoded:
    """Fit a decoder in every fold and compare the prompts it was not fitted to.

    Args:
        gram: Products of the prompts' features.
        split: The split.
        design: Labels and jackknife groups.
        penalty: Ridge penalty.

    Returns:
        The AUC and what it is without each unit.

    Raises:
        DesignError: If no held-out group has both harm levels.
    """
    n_groups = design.n_groups
    decoders, scores, again = [], [], []
    for fold in split.folds:
        decoder = smoother(gram, fold, design.topic, penalty=penalty)
        labels = design.harm[fold.train]
        decoders.append(decoder.scores)
        scores.append(decoder.scores @ labels)
        again.append(decoder.deleted(labels, design.group[fold.train], n_groups).T)
    harmful = (design.harm[split.tested] > 0)[None]
    own = np.concatenate(scores)[None]
    full = grouped_auc(own, harmful, split.group)
    if not full.weight.any():
        raise DesignError(
            "No held-out prompts of one topic have both harm levels, so none can be compared: "
            "more prompts, or fewer folds, are needed."
        )
    kept = design.group[split.tested] != np.arange(n_groups)[:, None]
    every = np.repeat(harmful, n_groups, axis=0)
    left_out = [
        grouped_auc(values, every, split.group, kept=kept).mean
        for values in (np.repeat(own, n_groups, axis=0), np.concatenate(again, axis=1))
    ]
    return Decoded(
        split=split,
        auc=float(full.mean[0]),
        by_topic=full.by_topic(split.group_topic, len(design.topics)),
        decoders=decoders,
        left_out=np.stack(left_out),
    )


def standard_error(left_out: Float[ndarray, "2 group"]) -> float:
    """Find the standard error of an AUC, or of a difference of two.

    Args:
        left_out: The estimate with each group left out, as `Decoded` has it.

    Returns:
        The geometric mean of both jackknife errors.
    """
    return float(np.sqrt(jackknife_error(left_out.T).prod()))


def auc_interval(auc: float, left_out: Float[ndarray, "2 group"]) -> tuple[float, float]:
    r"""Find the 95 % interval of an AUC, on a scale on which its spread is about constant.

    That is :math:`\arcsin \sqrt{AUC}`, as for a proportion; the interval stays in [0, 1].

    Args:
        auc: The AUC.
        left_out: The AUC with each group left out.

    Returns:
        Both ends. Where all prompts are told apart there is no spread to be seen: the end is that
        of as many successes as there are groups.
    """
    n_groups = left_out.shape[1]
    if auc in (0.0, 1.0):
        few = 0.025 ** (1 / n_groups)
        return (few, 1.0) if auc == 1 else (0.0, 1 - few)
    reach = interval_factor(n_groups) * standard_error(left_out)
    wide = reach / (2 * np.sqrt(auc * (1 - auc)))
    ends = np.clip(np.arcsin(np.sqrt(auc)) + np.array([-wide, wide]), 0, np.pi / 2)
    low, high = np.sin(ends) ** 2
    return float(low), float(high)


def relabelled(
    decoded: list[Decoded], design: Design, n_resamples: int, rng: Generator
) -> Float[ndarray, "draw split"]:
    """Find the AUC of every split under the same relabellings.

    Args:
        decoded: What was decoded in each split.
        design: What is exchanged.
        n_resamples: Number of relabellings.
        rng: Source of randomness.

    Returns:
        The AUCs.
    """
    exchange = design.exchange
    chunks = []
    for drawn in draw_labels(exchange, n_resamples, rng, width=design.n_prompts):
        own = drawn[:, exchange.unit].astype(float)
        labels = design.harm * own if exchange.kind == "flip" else 2 * own - 1
        chunks.append(np.stack([_auc(one, labels) for one in decoded], axis=1))
    return np.concatenate(chunks)


def _auc(decoded: Decoded, labels: Float[ndarray, "draw prompt"]) -> Float[ndarray, " draw"]:
    split = decoded.split
    scores = np.concatenate(
        [
            labels[:, fold.train] @ decoder.T
            for fold, decoder in zip(split.folds, decoded.decoders, strict=True)
        ],
        axis=1,
    )
    return grouped_auc(scores, labels[:, split.tested] > 0, split.group).mean
