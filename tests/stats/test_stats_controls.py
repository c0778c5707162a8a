import numpy as np
import pytest
from confound_world import confound_world
from scipy.linalg import null_space

from moe_interp.stats import routing_shares
from moe_interp.stats._controls import (
    adjusted,
    length_basis,
    lexical_basis,
    position_kinds,
    with_points,
)


@pytest.fixture
def world(rng):
    return confound_world(rng, n_topics=3, n_pairs=6, harm_longer=0.5, by_word=0.5)


def dummies(names):
    names = np.asarray(names).astype(str)
    return (names[:, None] == np.unique(names)).astype(float)


def test_adjusted_points_are_those_of_a_regression_with_topics(world, rng):
    profile, _ = world
    given = rng.normal(size=(profile.n_prompts, 2)) + dummies(profile.topic)[:, :2]
    rows = np.arange(profile.n_prompts)
    points = profile.points(rows)
    columns = np.concatenate([given, dummies(profile.topic)], axis=1)
    flat = points.reshape(len(points), -1)
    slopes = np.linalg.lstsq(columns, flat, rcond=None)[0][:2]
    wanted = flat - (given - given.mean(axis=0)) @ slopes
    assert adjusted(profile, given).points(rows) == pytest.approx(wanted.reshape(points.shape))


def test_random_routers_are_adjusted_like_the_profile(world, rng):
    profile, _ = world
    changed = adjusted(profile, rng.normal(size=(profile.n_prompts, 2)))
    rows = np.arange(profile.n_prompts)
    assert changed.points(rows, profile.shares) == pytest.approx(changed.points(rows))


def test_a_topics_effect_stays_where_a_covariate_goes_with_topic(world, rng):
    """Without topic in the regression, the covariate would take topic's effect along."""
    profile, _ = world
    given = dummies(profile.topic)[:, :1] + 0.1 * rng.normal(size=(profile.n_prompts, 1))
    before, after = (
        routing_shares(p).pooled("topic")[0] for p in (profile, adjusted(profile, given))
    )
    assert after > 0.5 * before > 0.05


def test_nothing_to_adjust_for_changes_nothing(world):
    profile, _ = world
    same = adjusted(profile, length_basis(np.full(profile.n_prompts, 12)))
    rows = np.arange(profile.n_prompts)
    assert length_basis(np.full(4, 12)).shape == (4, 0)
    assert np.array_equal(same.points(rows), profile.points(rows))


def test_selecting_prompts_selects_covariates_and_points(world, rng):
    profile, _ = world
    given = rng.normal(size=(profile.n_prompts, 1))
    chosen = profile.topic != "topic0"
    assert np.array_equal(adjusted(profile, given).select(chosen).covariates, given[chosen])
    other = with_points(profile, profile.shares - 0.5).select(chosen)
    assert np.array_equal(other.points(np.arange(2)), profile.shares[chosen][:2] - 0.5)


@pytest.mark.parametrize("bend", [6, 14, 25])
def test_length_may_act_by_any_line_with_bends_at_quartiles(bend, rng):
    length = rng.integers(3, 40, size=200)
    basis = length_basis(length)
    quartile = np.quantile(length, [0.25, 0.5, 0.75])
    effect = np.maximum(length - quartile[np.abs(quartile - bend).argmin()], 0.0)
    columns = np.concatenate([np.ones((200, 1)), basis], axis=1)
    left = null_space(columns.T)
    assert np.abs(left.T @ effect).max() < 1e-6
    assert basis.mean(axis=0) == pytest.approx(np.zeros(4))


def test_few_positions_are_kept_apart_and_many_are_joined_with_neighbours(rng):
    assert position_kinds(np.array([3, 9, 3, 4])).tolist() == [0, 2, 0, 1]
    pos = rng.integers(0, 300, size=6000)
    kind = position_kinds(pos)
    assert len(set(kind)) == 32
    order = np.argsort(pos)
    assert (np.diff(kind[order]) >= 0).all()
    assert np.bincount(kind).min() > 100


def test_the_harm_of_words_is_predicted_from_other_groups_alone(world):
    profile, tokens = world
    unit = np.arange(profile.n_prompts) // 4
    basis = lexical_basis(tokens, profile, unit)
    counts = np.zeros((profile.n_prompts, 12))
    np.add.at(counts, (tokens.prompt, tokens.token_id), 1)
    bag = np.sqrt(counts / counts.sum(axis=1, keepdims=True))
    bag -= bag.mean(axis=0)
    harm = np.where(profile.harm, 1.0, -1.0)
    harm -= dummies(profile.topic) @ (dummies(profile.topic).T @ harm / 12)
    ridge = (bag**2).sum() / len(bag)
    score = np.empty(len(bag))
    # Three units in each topic, so that three folds are filled, one unit of each topic.
    for out in (unit % 3 == number for number in range(3)):
        kept = bag[~out]
        weights = np.linalg.solve(kept.T @ kept + ridge * np.eye(12), kept.T @ harm[~out])
        score[out] = bag[out] @ weights
    assert np.corrcoef(score, basis[:, -1])[0, 1] == pytest.approx(1.0)
    # One component for each five units, and the score.
    assert basis.shape[1] == 1 + 1


def test_words_without_a_bearing_on_harm_do_not_seem_to_have_one(rng):
    correlations = []
    for _ in range(40):
        profile, tokens = confound_world(rng, n_topics=3, n_pairs=10)
        score = lexical_basis(tokens, profile, np.arange(profile.n_prompts))[:, -1]
        correlations.append(np.corrcoef(score, profile.harm)[0, 1])
    # The standard error is about 0.21 / sqrt(40) = 0.03; a score fitted on the prompts themselves
    # goes along with harm.
    assert abs(np.mean(correlations)) < 0.1


def test_components_are_those_of_the_words(world):
    profile, tokens = world
    basis = lexical_basis(tokens, profile, np.arange(profile.n_prompts))
    assert basis.shape[1] == 7 + 1
    across = basis[:, :-1].T @ basis[:, :-1] / profile.n_prompts
    assert across == pytest.approx(np.eye(7), abs=1e-9)
