import json
from itertools import product

import numpy as np
import pytest

from moe_interp.stats import RoutingProfile, conditional_mi


def profile_under(simulate, scheme, rng, **effects):
    labels = simulate.labels(scheme, n_wordings=6)
    return simulate.profile(labels, simulate.shares(labels, rng, **effects))


def bits(shares, label, given):
    """I(expert; label | given) cell by cell, from the definition."""
    total = 0.0
    for g in set(given):
        inside = [row for row in range(len(label)) if given[row] == g]
        overall = shares[inside].mean(axis=0)
        for value in set(label):
            own = [row for row in inside if label[row] == value]
            if own:
                part = shares[own].mean(axis=0)
                used = part > 0
                total += len(own) * (part[used] * np.log2(part[used] / overall[used])).sum()
    return total / len(label)


def test_plain_values_are_those_of_the_definition(simulate, scheme, rng):
    profile = profile_under(simulate, scheme, rng, harm=0.5)
    found = conditional_mi(profile, n_resamples=2, rng=rng)
    for layer in range(2):
        shares = profile.shares[:, layer]
        harm, topic = profile.harm.tolist(), profile.topic.tolist()
        assert found.harm_plain[layer] == pytest.approx(bits(shares, harm, topic))
        assert found.topic_plain[layer] == pytest.approx(bits(shares, topic, harm))


def test_what_is_taken_off_is_the_mean_over_every_sign_pattern(simulate, rng):
    profile = profile_under(simulate, "wording_pair", rng, harm=0.3)
    found = conditional_mi(profile, n_resamples=64, rng=rng)
    names = list(dict.fromkeys(profile.wording))
    every = []
    for flips in product((False, True), repeat=len(names)):
        flipped = dict(zip(names, flips, strict=True))
        harm = profile.harm ^ np.array([flipped[name] for name in profile.wording])
        every.append(bits(profile.shares[:, 1], harm.tolist(), profile.topic.tolist()))
    assert found.harm[1] == pytest.approx(found.harm_plain[1] - np.mean(every))


def test_is_about_zero_where_nothing_happens(simulate, scheme, rng):
    found = [
        conditional_mi(profile_under(simulate, scheme, rng, topic=0.0), n_resamples=20, rng=rng)
        for _ in range(30)
    ]
    for name in ("harm", "topic"):
        values = np.array([getattr(own, name).mean() for own in found])
        # Four standard errors: once in 15,000 runs.
        assert abs(values.mean()) < 4 * values.std() / np.sqrt(30), name
        assert np.mean([getattr(own, f"{name}_plain").mean() for own in found]) > values.mean()


def test_finds_harm_and_topic_where_they_are(simulate, scheme, rng):
    harm = conditional_mi(profile_under(simulate, scheme, rng, topic=0.0, harm=1.0), rng=rng)
    topic = conditional_mi(profile_under(simulate, scheme, rng, topic=2.0), rng=rng)
    assert harm.harm.min() > 0.05
    assert harm.topic.max() < 0.03
    assert topic.topic.min() > 0.05
    assert topic.harm.max() < 0.03


def test_one_topic_leaves_topic_undefined(simulate, rng):
    labels = simulate.labels("pair", n_topics=1)
    profile = simulate.profile(labels, simulate.shares(labels, rng))
    found = conditional_mi(profile, rng=rng)
    assert np.isnan(found.topic).all()
    assert np.isfinite(found.harm).all()
    json.dumps(found.to_dict(), allow_nan=False)


def test_table_and_sentence(simulate, rng):
    profile = profile_under(simulate, "pair", rng)
    later = RoutingProfile(**{**vars(profile), "layers": (4, 9)})
    found = conditional_mi(later, n_resamples=5, rng=rng)
    assert found.to_frame()["layer"].tolist() == [4, 9]
    assert "a description, not a test" in found.summary()


def test_refuses_no_resamples(simulate, rng):
    with pytest.raises(ValueError, match=r"`n_resamples` must be positive, got 0"):
        conditional_mi(profile_under(simulate, "pair", rng), n_resamples=0, rng=rng)
