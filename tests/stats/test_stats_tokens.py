from dataclasses import replace

import numpy as np
import pytest
from confound_world import N_EXPERTS, N_LAYERS, TOP_K, confound_world

from moe_interp.stats import TokenRouting
from moe_interp.stats._tokens import residual, residual_from


@pytest.fixture
def world(rng):
    profile, tokens = confound_world(rng, n_topics=3, n_pairs=3, by_word=1.0, harm_words=0.5)
    return profile, replace(tokens, token_id=tokens.token_id % 7)


def one_hot(tokens):
    slots = np.zeros((tokens.n_tokens, N_LAYERS, tokens.n_experts))
    for token, layers in enumerate(tokens.expert_index):
        for layer, experts in enumerate(layers):
            slots[token, layer, experts] = 1 / tokens.top_k
    return slots


def topic_codes(profile):
    return np.unique(profile.topic.astype(str), return_inverse=True)[1]


def fitted_topics(slots, kind, topic):
    """Shifts of topics beside kinds by ordinary least squares, as contrasts of topics."""
    columns = np.concatenate([np.eye(kind.max() + 1)[kind], np.eye(topic.max() + 1)[topic]], 1)
    found = np.linalg.lstsq(columns, slots.reshape(len(slots), -1), rcond=None)[0]
    return found[kind.max() + 1 :].reshape(-1, *slots.shape[1:])


def by_hand(tokens, kind, unit, topic, least):
    """Residuals, token by token."""
    slots, own_topic = one_hot(tokens), topic[tokens.prompt]
    shift = fitted_topics(slots, kind, own_topic)[own_topic]
    n_prompts = len(unit)
    points, covered = np.zeros((n_prompts, *slots.shape[1:])), np.zeros(n_prompts, dtype=int)
    for token, prompt in enumerate(tokens.prompt):
        others = (kind == kind[token]) & (unit[tokens.prompt] != unit[prompt])
        if others.sum() >= least:
            points[prompt] += slots[token] - (slots - shift)[others].mean(axis=0)
            covered[prompt] += 1
    return points / np.maximum(covered, 1)[:, None, None], covered


@pytest.mark.parametrize("least", [1, 4, 40])
def test_a_residual_is_the_slots_less_their_mean_in_other_units(world, least):
    profile, tokens = world
    kind = np.unique(tokens.token_id, return_inverse=True)[1]
    topic, unit = topic_codes(profile), np.arange(profile.n_prompts) // 2
    found = residual(tokens, kind, unit=unit, topic=topic, least=least)
    points, covered = by_hand(tokens, kind, unit, topic, least)
    assert found.covered.tolist() == covered.tolist()
    # Topic shifts are known up to a constant that all topics share, and so are the points.
    difference = (found.points - points)[covered > 0]
    assert np.abs(difference - difference[0]).max() < 1e-6
    if least == 40:
        assert 0 < covered.sum() < tokens.n_tokens


def test_a_background_of_other_prompts_is_their_mean(world, rng):
    profile, tokens = world
    _, other = confound_world(rng, n_topics=2, n_pairs=2, by_word=1.0)
    kind, other_kind = tokens.token_id, other.token_id % 5
    found = residual_from(tokens, kind, other, other_kind, n_prompts=profile.n_prompts, least=2)
    slots, background = one_hot(tokens), one_hot(other)
    for prompt in range(profile.n_prompts):
        kept = [
            slots[token] - background[other_kind == kind[token]].mean(axis=0)
            for token in np.flatnonzero(tokens.prompt == prompt)
            if (other_kind == kind[token]).sum() >= 2
        ]
        assert found.covered[prompt] == len(kept)
        if kept:
            assert found.points[prompt] == pytest.approx(np.mean(kept, axis=0))
    assert 0 < found.covered.sum() < tokens.n_tokens


def test_routing_that_words_alone_decide_leaves_nothing(rng):
    profile, tokens = confound_world(rng, n_topics=2, n_pairs=4, harm_words=1.0)
    table = rng.permuted(np.tile(np.arange(N_EXPERTS), (40, N_LAYERS, 1)), axis=2)[..., :TOP_K]
    tokens = replace(tokens, expert_index=table[tokens.token_id])
    unit, topic = np.arange(profile.n_prompts), topic_codes(profile)
    left = residual(tokens, tokens.token_id, unit=unit, topic=topic, least=1)
    assert np.abs(left.points).max() < 1e-9
    assert tokens.shares(profile.n_prompts).std(axis=0).max() > 0.02


def test_a_topics_routing_does_not_get_into_the_background_of_its_words(rng):
    """Word 0 is rare in topic 0 and frequent in topic 1, whose tokens all go elsewhere."""
    n_prompts, n_tokens = 40, 20
    topic = np.repeat([0, 1], n_prompts // 2)
    prompt = np.repeat(np.arange(n_prompts), n_tokens)
    word = (rng.random(len(prompt)) > np.array([0.1, 0.9])[topic[prompt]]).astype(int)
    chosen = rng.random((len(prompt), 1, 1)) < np.array([0.2, 0.8])[topic[prompt], None, None]
    tokens = TokenRouting(chosen.astype(int), 2, prompt, word, np.tile(np.arange(n_tokens), 40))
    found = residual(tokens, word, unit=np.arange(n_prompts), topic=topic, least=1)
    by_topic = [found.points[topic == number, 0, 1].mean() for number in (0, 1)]
    # The topics differ by 0.6, none of which is due to words.
    assert by_topic[1] - by_topic[0] == pytest.approx(0.6, abs=0.06)


def test_the_order_of_tokens_and_the_names_of_kinds_do_not_matter(world, rng):
    profile, tokens = world
    unit, topic = np.arange(profile.n_prompts) // 2, topic_codes(profile)
    order = rng.permutation(tokens.n_tokens)
    shuffled = TokenRouting(
        tokens.expert_index[order], N_EXPERTS, tokens.prompt[order], tokens.token_id[order],
        tokens.pos[order],
    )  # fmt: skip
    names = rng.permutation(tokens.token_id.max() + 1)
    ours = residual(tokens, tokens.token_id, unit=unit, topic=topic, least=2)
    theirs = residual(shuffled, names[shuffled.token_id], unit=unit, topic=topic, least=2)
    assert ours.points == pytest.approx(theirs.points)


def test_shares_and_first_choices_are_counted_by_prompt(world):
    profile, tokens = world
    slots = one_hot(tokens)
    for prompt in range(profile.n_prompts):
        own = tokens.prompt == prompt
        assert tokens.shares(profile.n_prompts)[prompt] == pytest.approx(slots[own].mean(axis=0))
        first = tokens.expert_index[own, :, 0]
        counts = (first[..., None] == np.arange(N_EXPERTS)).mean(axis=0)
        assert tokens.first_choice().shares(profile.n_prompts)[prompt] == pytest.approx(counts)
    assert (
        tokens.select(tokens.pos < 3).n_in_prompt(profile.n_prompts).sum() == (tokens.pos < 3).sum()
    )


def test_refuses_experts_that_do_not_exist():
    three = np.arange(3)
    with pytest.raises(ValueError, match=r"`expert_index` must lie between 0 and 3, got 4 to 4"):
        TokenRouting(np.full((3, 1, 1), 4), 4, three, three, three)
