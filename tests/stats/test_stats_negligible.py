import json
from dataclasses import replace

import numpy as np
import pytest

from moe_interp.stats import negligible, routing_shares


def profile_under(simulate, rng, **effects):
    labels = simulate.labels("pair", n_wordings=16)
    return simulate.profile(labels, simulate.shares(labels, rng, **effects))


def test_no_harm_beside_a_strong_topic_is_negligible(simulate, rng):
    found = negligible(profile_under(simulate, rng, topic=2.0))
    assert found.negligible
    assert found.p_value < 0.01
    assert found.upper < 0


def test_harm_beside_topic_is_not_negligible(simulate, rng):
    found = negligible(profile_under(simulate, rng, topic=1.0, harm=0.7))
    assert not found.negligible
    assert found.difference > 0


def test_harm_that_differs_by_topic_is_not_negligible(simulate, rng):
    found = negligible(profile_under(simulate, rng, topic=1.0, by_topic=1.0))
    assert not found.negligible
    assert found.difference > 0


def test_few_prompts_show_nothing_to_be_negligible(simulate, rng):
    labels = simulate.labels("pair", n_wordings=2)
    profile = simulate.profile(labels, simulate.shares(labels, rng, topic=0.3))
    assert not negligible(profile).negligible


def test_limit_is_difference_and_jackknife_error_with_students_t(simulate, rng):
    shares = routing_shares(profile_under(simulate, rng, harm=0.2))
    found = negligible(shares, margin=0.25)
    replicates = (shares.replicates["harm_total"] - 0.25 * shares.replicates["topic"])[:, -1]
    n_groups = len(replicates)
    # Pairs are compared within the 3 topics.
    topics = replicates.reshape(3, 16)
    error = np.sqrt(((topics - topics.mean(axis=1, keepdims=True)) ** 2).sum())
    difference = shares.pooled("harm_total")[0] - 0.25 * shares.pooled("topic")[0]
    assert n_groups == 48
    assert found.difference == pytest.approx(difference)
    # 1.679427 is the 95 % quantile of Student's t with 45 degrees of freedom.
    assert found.upper == pytest.approx(difference + 1.679427 * error)
    assert (found.p_value < 0.05) == (found.upper < 0)


def test_topic_can_be_negligible_beside_harm(simulate, rng):
    profile = profile_under(simulate, rng, topic=0.0, harm=1.0)
    assert negligible(profile, factor="topic", beside="harm").negligible
    assert not negligible(profile).negligible


def test_is_seldom_wrong_at_the_boundary(simulate, rng):
    labels = simulate.labels("pair", n_topics=4, n_wordings=100)
    population = simulate.profile(
        labels, simulate.shares(labels, rng, n_layers=1, topic=0.7, harm=0.2)
    )
    whole = routing_shares(population)
    # At this margin harm is, in the population, exactly as large as allowed.
    margin = whole.pooled("harm_total")[0] / whole.pooled("topic")[0]
    names = [np.unique(population.pair[population.topic == t]) for t in ("topic0", "topic1")]
    names += [np.unique(population.pair[population.topic == t]) for t in ("topic2", "topic3")]
    wrong = 0
    for _ in range(50):
        chosen = np.concatenate([rng.choice(own, 8, replace=False) for own in names])
        part = population.select(np.isin(population.pair.astype(str), chosen.astype(str)))
        wrong += negligible(part, margin=margin).negligible
    # At a level of 5 % more than 8 of 50 happen about once in 1,000 runs.
    assert wrong <= 8


def test_undefined_shares_are_never_negligible(simulate, rng):
    shares = routing_shares(profile_under(simulate, rng))
    undefined = {name: np.full_like(values, np.nan) for name, values in shares.shares.items()}
    found = negligible(replace(shares, shares=undefined))
    assert not found.negligible
    json.dumps(found.to_dict(), allow_nan=False)


def test_says_what_it_found(simulate, rng):
    found = negligible(profile_under(simulate, rng, topic=2.0))
    assert found.summary().startswith("The share of harm is negligible beside 10% of the share")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"margin": 0.0}, r"`margin` must lie between 0 and 1 .* got 0.0 and 0.05"),
        ({"alpha": 0.7}, r"`alpha` between 0 and 0.5, got 0.1 and 0.7"),
        ({"factor": "topic"}, r"'harm' and 'topic' in either order, got 'topic' and 'topic'"),
    ],
)
def test_refuses_options_out_of_range(simulate, rng, options, message):
    with pytest.raises(ValueError, match=message):
        negligible(profile_under(simulate, rng), **options)
