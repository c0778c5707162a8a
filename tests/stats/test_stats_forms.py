"""Closed forms against least squares and against going through every relabelling."""

from itertools import permutations, product

import numpy as np
import pytest

from moe_interp.stats._design import make_design
from moe_interp.stats._forms import SumsOfSquares, contrasts


def residual(points, design_matrix):
    fit = design_matrix @ np.linalg.lstsq(design_matrix, points, rcond=None)[0]
    return ((points - fit) ** 2).sum()


def naive_sums(points, topic, harm):
    """Differences of residual sums of squares of nested linear models."""
    points = points.reshape(len(points), -1)
    ones, harm = np.ones((len(points), 1)), harm[:, None]
    topics = np.eye(topic.max() + 1)[topic]
    both = residual(points, np.hstack([topics, harm]))
    return {
        "total": residual(points, ones),
        "topic": residual(points, np.hstack([ones, harm])) - both,
        "harm": residual(points, topics) - both,
        "nested": residual(points, topics) - residual(points, np.hstack([topics, topics * harm])),
    }


def small_case(simulate, scheme, rng):
    """So few units that every relabelling can be gone through, and topics of different size."""
    if scheme == "within_topic":
        labels = simulate.labels(scheme, n_topics=2, n_wordings=2)
        labels.harm[0] = False
        labels.topic.append("topic0")
        labels.harm.append(True)
    else:
        labels = simulate.labels(scheme, n_topics=2, n_wordings=3)
        # Without its last prompt a wording is used in one topic only, a stratum of its own.
        n_left_out = 1 if scheme == "wording" else 2
        kept = {k: v and v[:-n_left_out] for k, v in vars(labels).items()}
        labels = type(labels)(**kept)
    profile = simulate.profile(labels, simulate.shares(labels, rng, harm=0.5))
    design = make_design(profile, scheme, need_topics=True)
    return design, design.embed(profile)


def every_relabelling(exchange):
    if exchange.kind == "flip":
        yield from (np.array(signs) for signs in product((-1, 1), repeat=exchange.n_units))
        return
    strata = [np.flatnonzero(exchange.stratum == s) for s in set(exchange.stratum.tolist())]
    for orders in product(*(permutations(exchange.label[units]) for units in strata)):
        label = exchange.label.copy()
        for units, order in zip(strata, orders, strict=True):
            label[units] = order
        yield label


def relabelled_harm(design, label):
    own = label[design.exchange.unit]
    return design.harm * own if design.exchange.kind == "flip" else 2.0 * own - 1


def halves(design):
    """Everyone, and all but the first jackknife group."""
    return [np.ones(design.n_prompts, dtype=bool), design.group != 0]


@pytest.mark.parametrize("part", [0, 1])
def test_sums_of_squares_are_those_of_linear_models(simulate, scheme, rng, part):
    design, points = small_case(simulate, scheme, rng)
    keep = halves(design)[part]
    found = SumsOfSquares(design, points)(contrasts(design, keep))
    expected = naive_sums(points[keep], design.topic[keep], design.harm[keep])
    for name, value in expected.items():
        assert np.isclose(found[name].sum(), value), name


def test_sums_of_squares_of_confounded_labels_are_adjusted_for_each_other(simulate, rng):
    labels = simulate.unbalanced(rng)
    profile = simulate.profile(labels, simulate.shares(labels, rng, harm=0.5))
    design = make_design(profile, "auto", need_topics=True)
    points = design.embed(profile)
    found = SumsOfSquares(design, points)()
    for name, value in naive_sums(points, design.topic, design.harm).items():
        assert np.isclose(found[name].sum(), value), name


def test_layers_are_summed_apart(simulate, rng):
    design, points = small_case(simulate, "pair", rng)
    both = SumsOfSquares(design, points)()
    for layer in (0, 1):
        alone = SumsOfSquares(design, points[:, [layer]])()
        for name in both:
            assert np.isclose(both[name][layer], alone[name][0]), name


def test_harm_expectation_is_the_mean_over_every_relabelling(simulate, scheme, rng):
    design, points = small_case(simulate, scheme, rng)
    found = SumsOfSquares(design, points)()
    every = [
        naive_sums(points, design.topic, relabelled_harm(design, label))
        for label in every_relabelling(design.exchange)
    ]
    for name in ("harm", "nested"):
        assert np.isclose(found[f"null_{name}"].sum(), np.mean([s[name] for s in every])), name


def test_topic_expectation_is_the_mean_over_every_relabelling(simulate, scheme, rng):
    design, points = small_case(simulate, scheme, rng)
    found = SumsOfSquares(design, points)()
    distinct = {tuple(label) for label in every_relabelling(design.topic_exchange)}
    values = [
        naive_sums(points, np.array(label)[design.topic_exchange.unit], design.harm)["topic"]
        for label in distinct
    ]
    assert np.isclose(found["null_topic"].sum(), np.mean(values))


def test_signals_of_pairs_are_differences_less_their_own_scatter(simulate, rng):
    """Unbiased whatever harm does: the scatter is that within topics."""
    labels = simulate.labels("pair", n_topics=3, n_wordings=5)
    profile = simulate.profile(labels, simulate.shares(labels, rng, harm=0.7, by_topic=0.7))
    design = make_design(profile, "pair", need_topics=True)
    points = design.embed(profile)
    found = SumsOfSquares(design, points)()
    apart = np.zeros((15, *points.shape[1:]))
    np.add.at(apart, design.exchange.unit, design.harm[:, None, None] * points / np.sqrt(2))
    topic = design.topic[np.unique(design.exchange.unit, return_index=True)[1]]
    nested, noise = 0.0, 0.0
    for own in (apart[topic == t] for t in range(3)):
        scatter = own.var(axis=0, ddof=1).sum(axis=-1)
        nested += 5 * (own.mean(axis=0) ** 2).sum(axis=-1) - scatter
        noise += scatter / 3
    assert found["signal_nested"] == pytest.approx(nested)
    main = 15 * (apart.mean(axis=0) ** 2).sum(axis=-1)
    assert found["signal_harm"] == pytest.approx(main - noise)


def test_no_signal_is_defined_where_relabelling_takes_everything(simulate, rng):
    labels = simulate.labels("pair", n_topics=3, n_wordings=1)
    profile = simulate.profile(labels, simulate.shares(labels, rng, harm=0.7))
    design = make_design(profile, "pair", need_topics=True)
    found = SumsOfSquares(design, design.embed(profile))()
    assert np.isnan(found["signal_nested"]).all()


def test_expectations_of_a_part_are_those_of_that_part_alone(simulate, scheme, rng):
    labels = simulate.labels(scheme, n_wordings=6)
    profile = simulate.profile(labels, simulate.shares(labels, rng))
    design = make_design(profile, scheme, need_topics=True)
    keep = design.group % 3 != 0
    found = SumsOfSquares(design, design.embed(profile))(contrasts(design, keep))
    part = profile.select(keep)
    alone = make_design(part, scheme, need_topics=True)
    expected = SumsOfSquares(alone, alone.embed(part))()
    for name in expected:
        assert np.allclose(found[name], expected[name]), name
