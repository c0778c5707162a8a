import numpy as np
import pytest

from moe_interp.stats import random_router_baseline


def test_chooses_the_largest_logits_highest_first(rng):
    hidden = rng.normal(size=(20, 5))
    chosen = random_router_baseline(
        hidden, n_experts=7, top_k=3, n_draws=2, rng=np.random.default_rng(4)
    )
    same = np.random.default_rng(4)
    for draw in range(2):
        logits = hidden @ same.normal(size=(5, 7))
        picked = np.take_along_axis(logits, chosen[draw], axis=1)
        assert (np.diff(picked, axis=1) <= 0).all()
        assert np.allclose(picked, np.sort(logits, axis=1)[:, ::-1][:, :3])


def test_every_expert_is_as_likely_as_any_other(rng):
    chosen = random_router_baseline(np.ones((1, 3)), n_experts=4, top_k=1, n_draws=4000, rng=rng)
    # Each count has mean 1,000 and standard deviation 27.
    assert (np.abs(np.bincount(chosen.reshape(-1), minlength=4) - 1000) < 4.5 * 27).all()


def test_scale_of_the_hidden_states_does_not_matter(rng):
    hidden = rng.normal(size=(20, 5))
    ours, theirs = (
        random_router_baseline(h, n_experts=6, top_k=2, n_draws=3, rng=np.random.default_rng(1))
        for h in (hidden, 1e-3 * hidden)
    )
    assert np.array_equal(ours, theirs)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"top_k": 5}, r"`top_k` must lie between 1 and `n_experts` .* top_k=5, n_experts=4"),
        ({"top_k": 0}, r"got top_k=0"),
        ({"n_draws": 0}, r"`n_draws` be positive, got .* n_draws=0"),
    ],
)
def test_refuses_options_out_of_range(rng, options, message):
    with pytest.raises(ValueError, match=message):
        random_router_baseline(
            np.ones((3, 2)), **{"n_experts": 4, "top_k": 2, "n_draws": 1, "rng": rng} | options
        )


def test_refuses_nan(rng):
    with pytest.raises(ValueError, match=r"shape \(1, 2\) with 1 bad values"):
        random_router_baseline(np.array([[1.0, np.nan]]), n_experts=4, top_k=2, n_draws=1, rng=rng)
