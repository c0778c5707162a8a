import numpy as np
import pytest

from moe_interp.stats import RoutingProfile


def build(shares, **labels):
    n_prompts = len(shares)
    given = {"topic": ["a"] * n_prompts, "harm": [True] * n_prompts, "layers": (3,)} | labels
    return RoutingProfile(shares=np.asarray(shares, dtype=float), span="user", **given)


def test_squared_distance_of_the_embedding_is_squared_hellinger_distance():
    p, q = np.array([0.1, 0.2, 0.7]), np.array([0.5, 0.25, 0.25])
    points = build([[p], [q]]).embedding
    assert np.isclose(((points[0] - points[1]) ** 2).sum(), 1 - np.sqrt(p * q).sum())


def test_disjoint_routing_is_at_distance_one():
    points = build([[[1.0, 0.0]], [[0.0, 1.0]]]).embedding
    assert np.isclose(((points[0] - points[1]) ** 2).sum(), 1)


def test_missing_labels_become_none():
    profile = build([[[1.0]]] * 3, pair=[None, "", float("nan")])
    assert list(profile.pair) == [None, None, None]
    assert list(profile.wording) == [None, None, None]


def test_harm_may_be_zeros_and_ones():
    assert build([[[1.0]]] * 2, harm=[0, 1]).harm.tolist() == [False, True]


def test_selects_prompts_by_mask_and_by_row():
    profile = build([[[1.0, 0.0]], [[0.0, 1.0]], [[0.5, 0.5]]], topic=["a", "b", "c"])
    assert list(profile.select(np.array([True, False, True])).topic) == ["a", "c"]
    chosen = profile.select(np.array([2, 0]))
    assert list(chosen.topic) == ["c", "a"]
    assert chosen.shares[:, 0, 0].tolist() == [0.5, 1.0]


def test_names_the_first_nan():
    with pytest.raises(ValueError, match=r"1 NaN .* prompt 1, layer 3, expert 0"):
        build([[[1.0, 0.0]], [[np.nan, 1.0]]])


def test_names_a_prompt_without_slots_by_its_id():
    with pytest.raises(ValueError, match=r"1 prompts have no routed slot .* prompt 'x', layer 3"):
        build([[[1.0, 0.0]], [[0.0, 0.0]]], id=["y", "x"])


def test_refuses_shares_that_do_not_sum_to_one():
    with pytest.raises(ValueError, match=r"must sum to 1 over experts, got 2 at prompt 0"):
        build([[[1.0, 1.0]]])


def test_refuses_negative_shares():
    with pytest.raises(ValueError, match=r"must not be negative, got -0.5 at prompt 0"):
        build([[[1.5, -0.5]]])


def test_accepts_half_precision_shares():
    shares = np.full((2, 1, 3), 1 / 3, dtype=np.float16)
    profile = RoutingProfile(
        shares=shares, layers=(0,), span="user", topic=["a", "a"], harm=[True, False]
    )
    assert profile.embedding.dtype == np.float64


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ({"topic": ["a"]}, r"`topic` has 1 values for 2 prompts"),
        ({"harm": [True]}, r"`harm` has 1 values for 2 prompts"),
        ({"harm": [2, 0]}, r"`harm` must hold True or False"),
        ({"pair": ["a"]}, r"`pair` has 1 values for 2 prompts"),
        ({"layers": (0, 1)}, r"`layers` names 2 layers but `shares` has 1"),
    ],
)
def test_refuses_labels_that_do_not_fit(labels, message):
    with pytest.raises(ValueError, match=message):
        build([[[1.0]]] * 2, **labels)


def test_refuses_repeated_layers():
    with pytest.raises(ValueError, match=r"`layers` must not repeat, got \(1, 1\)"):
        build([[[1.0], [1.0]]], layers=(1, 1))


def test_refuses_an_empty_profile():
    with pytest.raises(ValueError, match=r"non-empty array \(prompt, layer, expert\)"):
        build(np.empty((0, 1, 2)))
