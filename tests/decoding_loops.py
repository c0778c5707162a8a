"""Decoding harm by slow loops over folds and topics, to compare `transfer_auc` with."""

import numpy as np
from sklearn.linear_model import Ridge
from sklearn.metrics import roc_auc_score

from moe_interp.errors import DesignError
from moe_interp.stats._design import make_design
from moe_interp.stats._transfer import _hold_out
from moe_interp.stats._transfer_folds import SPLITS, make_split


def profile_under(simulate, scheme, rng, *, n_topics=3, n_wordings=6, **effects):
    labels = simulate.labels(scheme, n_topics=n_topics, n_wordings=n_wordings)
    return simulate.profile(labels, simulate.shares(labels, rng, **effects))


def splits_of(profile, seed):
    """The splits that `transfer_auc` deals with the same seed, and the generator after them."""
    design = make_design(profile, "auto", need_topics=False)
    rng, dealt = np.random.default_rng(seed), {}
    for name in SPLITS:
        try:
            dealt[name] = make_split(name, _hold_out(profile, design), n_folds=5, rng=rng)
        except DesignError:
            continue
    return design, dealt, rng


def by_scikit_learn(rows, labels, strength, test):
    return Ridge(alpha=strength, fit_intercept=False).fit(rows, labels).predict(test)


def by_normal_equations(rows, labels, strength, test):
    ridge = strength * np.eye(rows.shape[1])
    return test @ np.linalg.solve(rows.T @ rows + ridge, rows.T @ labels)


def pairwise_auc(level, scores):
    above = scores[level][:, None] - scores[~level]
    return np.mean((above > 0) + 0.5 * (above == 0))


def looped_auc(features, harm, topic, folds, *, penalty=1.0, kept=None, quick=False):
    """AUC fold by fold and topic by topic; features and labels centred by topic in training."""
    found, weights = [], []
    kept = np.ones(len(harm), dtype=bool) if kept is None else kept
    predict = by_normal_equations if quick else by_scikit_learn
    auc = pairwise_auc if quick else roc_auc_score
    for fold in folds:
        rows, labels = features[fold.train].copy(), harm[fold.train].copy()
        for code in np.unique(topic[fold.train]):
            own = topic[fold.train] == code
            rows[own] -= rows[own].mean(axis=0)
            labels[own] -= labels[own].mean()
        strength = penalty * (rows**2).sum() / len(rows)
        # Rounded, because scores that are equal on paper must tie.
        scores = np.round(predict(rows, labels, strength, features[fold.test]), 9)
        for code in np.unique(topic[fold.test]):
            own = (topic[fold.test] == code) & kept[fold.test]
            level = harm[fold.test][own] > 0
            if level.any() and not level.all():
                found.append(auc(level, scores[own]))
                weights.append(level.sum() * (~level).sum() / len(level))
    return np.average(found, weights=weights)
