"""RouteScan (2026): harm detected from the load of experts, on prompts of another kind."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float
from numpy import ndarray
from numpy.random import Generator

from moe_interp.capture import RoutingRecord, decoding_baselines, record_routing
from moe_interp.errors import DesignError
from moe_interp.models import MoEModel
from moe_interp.prompts import PromptSet
from moe_interp.stats import (
    Detection,
    LoadFeatures,
    RoutingProfile,
    detect_harm,
    load_features,
    paired_permutation_test,
)
from moe_interp.studies._causal import planted_experts, unit_means
from moe_interp.studies._result import StudyResult
from moe_interp.studies._study import Study

NAME, PAPER = "routescan2026", "RouteScan (2026)"
ROUTING, BAG = "routing", "bag_of_tokens"
STATISTICS = ("coverage", "effective_rate", "gap", "concentration")
STATUS = {
    "load of an expert": "abstract and secondary notes; shares of the routed slots stand in for "
    "the GPU threads that the paper counts",
    "coverage, effective rate, gap, concentration": "our reconstruction (names only were at hand)",
    "logistic regression with Platt scaling": "abstract",
    "regularisation": "our reconstruction (L2, as strong as the features are large)",
    "hybrid feature scoring": "secondary notes; left out, for its formula was not at hand: all "
    "features are kept",
    "leave one data set out": "abstract",
    "leave topics, wordings or pairs out; relabelling of units": "our reconstruction of a control",
}


def routescan2026(
    model: MoEModel,
    prompts: PromptSet,
    *,
    rng: Generator,
    datasets: Sequence[str] | None = None,
    span: str = "prompt",
    n_top: int | None = None,
    n_folds: int = 8,
    penalty: float = 1.0,
    n_resamples: int = 199,
    n_random_routers: int = 3,
    alpha: float = 0.05,
) -> StudyResult:
    r"""Detect harm from how a prompt loads the experts, on prompts unlike those learnt from.

    The detector reads, layer by layer, the share :math:`q_e` of routed slots that each expert
    got and four statistics of it (see `load_features`). It is a logistic regression with Platt's
    calibration, trained with whole data sets, topics and wordings left out in turn.

    Added here: the same folds are given to a bag of tokens, to hidden states and to the loads of
    random routers; intervals are over exchange units; and beside each AUC stands what it is when
    the harm labels of whole units are exchanged. Twins that were made by swapping words carry
    their label in words; where the tested wordings were seen in training, a bag of tokens detects
    them just as well, with true labels as with exchanged ones.

    Args:
        model: The model.
        prompts: Harmful and harmless prompts.
        rng: Source of randomness.
        datasets: The data set of each prompt, to leave these out too.
        span: The tokens whose load counts; the paper's are all tokens of the prompt.
        n_top: Experts that enter the concentration; those that one token chooses if None.
        n_folds: Largest number of folds.
        penalty: Strength of the penalty, in units of the features' mean squared norm.
        n_resamples: Relabellings.
        n_random_routers: Random routers beside the model's own.
        alpha: Level of the tests.

    Returns:
        AUCs of each way of holding out, the loads of each expert and the statistics by layer.

    Raises:
        PromptError: If prompts lack harm.
        DesignError: If no way of holding out is possible, or the labels do not allow the
            question.
        SpanError: If there is no such span.
        ValueError: If a number is out of range.

    References:
        Lv et al. (2026), "RouteScan", arXiv 2605.24817.

    Example:
        >>> import moe_interp as mi
        >>> model = mi.load_model("organism:harm")
        >>> prompts = mi.load_prompts("organism", per_topic=8).select(range(64))
        >>> result = routescan2026(model, prompts, rng=np.random.default_rng(0), n_folds=4)
        >>> table = result.tables["detection"].set_index(["held_out", "features"])["auc"]
        >>> bool(table["wording", "routing"] > table["wording", "bag_of_tokens"] + 0.3)
        True
        >>> float(table["topic", "bag_of_tokens"])
        1.0
    """
    harm = prompts.harm
    if n_random_routers < 1:
        raise ValueError(f"`n_random_routers` must be at least 1, got {n_random_routers!r}.")
    record = _record(model, prompts, span, n_random_routers, rng)
    load = load_features(record.profile(span), n_top=n_top)
    features = _features(record, span, load)
    options = {"n_folds": n_folds, "penalty": penalty, "n_resamples": n_resamples, "alpha": alpha}
    held_out = _groups(prompts, datasets)
    detections, refused = _detect(record.profile(span), features, held_out, rng, options)
    layers, tested = _layer_table(load, prompts, n_resamples, rng)
    return STUDY.result(
        model,
        prompts,
        rng,
        settings={
            "span": span,
            "n_top": load.n_top,
            **options,
            "n_random_routers": n_random_routers,
        },
        answers=(
            *(said for found in detections.values() for said in _said(found, alpha)),
            *(f"Not tested with a {name} left out: {why}" for name, why in refused.items()),
            *_said_of_layers(layers, alpha, tested=tested),
        ),
        numbers={
            "detection": {name: found.to_dict() for name, found in detections.items()},
            "beats": {name: _beaten(found) for name, found in detections.items()},
            "refused": refused,
        },
        tables={
            "experts": _expert_table(load, harm),
            "detection": pd.concat(
                [found.to_frame() for found in detections.values()], ignore_index=True
            ),
            "folds": _fold_table(detections),
            "reliability": _reliability(detections),
            "layers": layers,
        },
        maps={"Load: harmful less harmless prompts": "difference"},
        truth=tuple(map(str, planted_experts(model))),
    )


def _record(
    model: MoEModel, prompts: PromptSet, span: str, n_random_routers: int, rng: Generator
) -> RoutingRecord:
    record = record_routing(
        model,
        prompts,
        quantities=("expert_index", "mean_router_input"),
        spans=(span,),
        n_random_routers=n_random_routers,
        rng=rng,
        progress=False,
    )
    record.check_every_prompt(span)
    return record


def _features(
    record: RoutingRecord, span: str, load: LoadFeatures
) -> dict[str, Float[ndarray, "..."]]:
    """The detector's own features first, then what they have to beat."""
    profile, beside = record.profile(span), decoding_baselines(record, span)
    random = [
        load_features(replace(profile, shares=shares.astype(np.float64)), n_top=load.n_top).features
        for shares in record.random_profiles(span)
    ]
    return {
        ROUTING: load.features,
        "statistics": load.statistics,
        BAG: beside[BAG],
        "hidden_state": beside["hidden_state"],
        "random_router": np.stack(random),
    }


def _groups(prompts: PromptSet, datasets: Sequence[str] | None) -> dict[str, Sequence[str | None]]:
    """What can be left out; pairs where there are no wordings."""
    found = {} if datasets is None else {"dataset": tuple(datasets)}
    words = "wording" if any(prompts.wordings) else "pair"
    return {**found, "topic": prompts.topics, words: getattr(prompts, f"{words}s")}


def _detect(
    profile: RoutingProfile,
    features: dict[str, Float[ndarray, "..."]],
    held_out: dict[str, Sequence[str | None]],
    rng: Generator,
    options: dict[str, Any],
) -> tuple[dict[str, Detection], dict[str, str]]:
    """What each way of holding out finds, and why the others cannot be tested."""
    detections, refused = {}, {}
    for name, groups in held_out.items():
        try:
            detections[name] = detect_harm(
                profile, features, held_out=groups, name=name, rng=rng, **options
            )
        except DesignError as error:
            refused[name] = str(error)
    if not detections:
        reasons = " ".join(f"{name}: {reason}" for name, reason in refused.items())
        raise DesignError(f"No way of holding out is possible. {reasons}")
    return detections, refused


def _beaten(found: Detection) -> dict[str, bool]:
    """Which other features the detector beats, by the paired interval."""
    return {
        name: own.difference_low > 0 for name, own in found.detectors.items() if name != ROUTING
    }


def _expert_table(load: LoadFeatures, harm: ndarray) -> pd.DataFrame:
    n_experts = load.load.shape[2]
    means = {level: load.load[harm == level].mean(axis=0).ravel() for level in (True, False)}
    return pd.DataFrame(
        {
            "layer": np.repeat(load.layers, n_experts),
            "expert": np.tile(np.arange(n_experts), len(load.layers)),
            "load_harmful": means[True],
            "load_harmless": means[False],
            "difference": means[True] - means[False],
        }
    )


def _layer_table(
    load: LoadFeatures, prompts: PromptSet, n_resamples: int, rng: Generator
) -> tuple[pd.DataFrame, bool]:
    """The four statistics by layer and group; tested over units where these have both groups."""
    harm, n_layers = prompts.harm, len(load.layers)
    table = pd.DataFrame(
        {
            "statistic": np.repeat(STATISTICS, n_layers),
            "layer": np.tile(load.layers, len(STATISTICS)),
            "harmful": load.statistics[harm].mean(axis=0),
            "harmless": load.statistics[~harm].mean(axis=0),
            "p": np.nan,
            "p_adjusted": np.nan,
        }
    )
    try:
        harmful, harmless = unit_means(load.statistics, prompts)
    except DesignError:
        return table, False
    test = paired_permutation_test(harmful, harmless, n_resamples=n_resamples, rng=rng)
    return table.assign(p=test.p_value, p_adjusted=test.p_adjusted), True


def _fold_table(detections: dict[str, Detection]) -> pd.DataFrame:
    """AUC by what was held out: the paper's table, one column for each set of features."""
    rows: list[dict[str, Any]] = []
    for name, found in detections.items():
        for fold in found[ROUTING].by_fold:
            aucs = {own: one.by_fold[fold] for own, one in found.detectors.items()}
            rows.append({"held_out": name, "fold": fold, **aucs})
    return pd.DataFrame(rows)


def _reliability(detections: dict[str, Detection]) -> pd.DataFrame:
    found = [
        one[ROUTING].calibration.to_frame().assign(held_out=name)
        for name, one in detections.items()
        if one[ROUTING].calibration is not None
    ]
    return pd.concat(found, ignore_index=True) if found else pd.DataFrame()


def _said(found: Detection, alpha: float) -> list[str]:
    routing, bag, drawn = found[ROUTING], found[BAG], found["random_router"]
    verb = "beats" if bag.difference_low > 0 else "does not beat"
    said = [
        f"With a {found.held_out} left out, the detector has AUC {routing.auc:.3f} "
        f"[{routing.low:.3f}, {routing.high:.3f}] and {verb} a bag of tokens ({bag.auc:.3f}, "
        f"difference {bag.difference:+.3f} [{bag.difference_low:+.3f}, "
        f"{bag.difference_high:+.3f}]); random routers give {drawn.auc:.3f}, hidden states "
        f"{found['hidden_state'].auc:.3f}."
    ]
    if found.wordings_seen:
        learnt = "learns" if bag.auc > 0.5 and bag.p_value > alpha else "may learn"
        said.append(
            f"{found.wordings_seen:.0%} of the wordings tested with a {found.held_out} left out "
            f"were seen in training: a bag of tokens {learnt} whichever labels the wordings have "
            f"(AUC {bag.auc:.3f}, with exchanged labels {bag.chance:.3f}; the detector "
            f"{routing.chance:.3f}), so this split does not show that harm is detected."
        )
    return said


def _said_of_layers(layers: pd.DataFrame, alpha: float, *, tested: bool) -> list[str]:
    if not tested:
        return ["No unit has harmful and harmless prompts, so the statistics were not tested."]
    n = int((layers["p_adjusted"] <= alpha).sum())
    return [
        f"{n} of {len(layers)} load statistics differ between harmful and harmless prompts at the "
        f"{alpha:.0%} level after correction."
    ]


STUDY = Study(
    name=NAME,
    paper=PAPER,
    arxiv="2605.24817",
    claim="The load of experts while a prompt is read detects harmful prompts, across data sets "
    "and jailbreaks, with an AUC above 0.91.",
    status=STATUS,
    adds="a bag of tokens, hidden states and random routers in the same folds, topics and "
    "wordings left out, intervals over exchange units, exchanged labels",
    run=routescan2026,
)
