"""Rankings by use, over prompts drawn anew: how often they meet the planted experts."""

import numpy as np
import pytest
from scipy.stats import binomtest

import moe_interp as mi
from moe_interp.organism import factorial_prompts

pytestmark = [pytest.mark.long, pytest.mark.xdist_group("study-rankings")]

N_DRAWS = 30


def risk_difference(record):
    return mi.risk_difference(record, span="user"), mi.selection_frequency(record, span="user")


def stability_contrast(record):
    """SAFEx's ranking: how stably harmful prompts use an expert most, less how harmless ones do."""
    rows = np.flatnonzero(record.prompts.harm).tolist()
    others = np.flatnonzero(~record.prompts.harm).tolist()
    units = np.unique(record.prompts.wordings, return_inverse=True)[1]
    found = mi.stability_selection(
        mi.selection_frequency(record.select(rows), span="prompt"),
        n=8,
        n_resamples=100,
        threshold=0.9,
        exclude=mi.selection_frequency(record.select(others), span="prompt"),
        units=units[rows].tolist(),
        exclude_units=units[others].tolist(),
        rng=np.random.default_rng(1),
    )
    use = mi.selection_frequency(record, span="prompt")
    contrast = found.probability.mean - found.excluded.mean
    return mi.Scores.of_array("contrast", "fraction", contrast, layers=use.layers), use


@pytest.fixture(scope="module")
def p_values(organism):
    """p-values of the planted experts' ranks, for prompts drawn with each seed."""
    done = {}

    def find(name, ranking, n_draws):
        if (name, ranking) not in done:
            model = organism(name)
            planted = model.card["truth"]["safety_experts"]
            found = []
            for seed in range(n_draws):
                prompts = factorial_prompts(per_topic=16, seed=seed)
                record = mi.record_routing(
                    model, prompts, spans=("user", "prompt"), n_random_routers=0, progress=False
                )
                scores, use = ranking(record)
                rng = np.random.default_rng(seed)
                found.append(mi.matched_ranks(scores, planted, match=use, rng=rng).p_value)
            done[name, ranking] = np.array(found)
        return done[name, ranking]

    return find


@pytest.mark.parametrize("ranking", [risk_difference, stability_contrast])
def test_on_topic_a_ranking_meets_the_planted_experts_as_often_as_chance(p_values, ranking):
    found = p_values("topic", ranking, N_DRAWS)
    hits = int((found <= 0.05).sum())
    assert binomtest(hits, N_DRAWS, 0.05, alternative="greater").pvalue > 0.05
    assert np.median(found) > 0.3


@pytest.mark.parametrize("ranking", [risk_difference, stability_contrast])
def test_on_harm_a_ranking_meets_the_planted_experts_every_time(p_values, ranking):
    assert (p_values("harm", ranking, 5) <= 0.02).all()
