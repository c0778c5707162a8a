"""Two token sequences side by side, against enumeration of every way to lay them so."""

import itertools

import numpy as np
import pytest

from moe_interp.prompts import align_tokens


def subsequences(tokens):
    return {
        tuple(tokens[n] for n in chosen)
        for size in range(len(tokens) + 1)
        for chosen in itertools.combinations(range(len(tokens)), size)
    }


def drawn(seed):
    rng = np.random.default_rng(seed)
    return [rng.integers(0, 3, size=rng.integers(1, 8)).tolist() for _ in range(2)]


@pytest.mark.parametrize("seed", range(100))
def test_prefix_and_suffix_are_as_long_as_can_be_and_do_not_overlap(seed):
    first, second = drawn(seed)
    found = align_tokens(first, second)
    prefix = max(n for n in range(min(map(len, (first, second))) + 1) if first[:n] == second[:n])
    assert found.n_prefix == prefix
    rest = [tokens[prefix:] for tokens in (first, second)]
    suffix = max(
        n
        for n in range(min(map(len, rest)) + 1)
        if rest[0][len(rest[0]) - n :] == rest[1][len(rest[1]) - n :]
    )
    assert found.n_suffix == suffix
    assert found.is_same == (first == second)


@pytest.mark.parametrize("seed", range(100))
def test_matches_are_the_same_tokens_in_order_and_as_many_as_can_be(seed):
    first, second = drawn(seed)
    found = align_tokens(first, second)
    assert all(first[a] == second[b] for a, b in found.matches)
    for side in (0, 1):
        places = [match[side] for match in found.matches]
        assert places == sorted(set(places))
        assert all(place >= found.n_prefix for place in places)
    rest = [tokens[found.n_prefix :] for tokens in (first, second)]
    longest = max(map(len, subsequences(rest[0]) & subsequences(rest[1])))
    assert len(found.matches) == longest
    if found.n_suffix:
        ends = [(len(first) - n, len(second) - n) for n in range(found.n_suffix, 0, -1)]
        assert list(found.matches[-found.n_suffix :]) == ends


@pytest.mark.parametrize("seed", range(30))
def test_the_divergence_is_what_lies_between(seed):
    first, second = drawn(seed)
    found = align_tokens(first, second)
    for tokens, inside in zip((first, second), found.divergence, strict=True):
        kept = tokens[: found.n_prefix] + tokens[len(tokens) - found.n_suffix :]
        assert tokens[: inside.start] + tokens[inside.stop :] == kept
        assert len(kept) + len(tokens[inside]) == len(tokens)


@pytest.mark.parametrize("seed", range(30))
def test_the_order_of_the_two_does_not_change_how_much_they_share(seed):
    first, second = drawn(seed)
    one, other = align_tokens(first, second), align_tokens(second, first)
    assert (one.n_prefix, one.n_suffix) == (other.n_prefix, other.n_suffix)
    assert len(one.matches) == len(other.matches)


@pytest.mark.parametrize(
    ("first", "second", "n_prefix", "n_suffix", "matches"),
    [
        ([1, 2, 3], [1, 2, 3], 3, 0, ()),
        ([1, 2, 3], [4, 5], 0, 0, ()),
        ([1, 2], [1, 2, 3], 2, 0, ()),
        ([1, 3], [1, 2, 3], 1, 1, ((1, 2),)),
        ([1, 1, 1], [1, 1], 2, 0, ()),
        ([5, 1, 6, 2], [7, 1, 8, 9, 2], 0, 1, ((1, 1), (3, 4))),
    ],
)
def test_what_is_shared_in_small_cases(first, second, n_prefix, n_suffix, matches):
    found = align_tokens(first, second)
    assert (found.n_prefix, found.n_suffix, found.matches) == (n_prefix, n_suffix, matches)
