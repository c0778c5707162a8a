"""Simulated prompts whose tokens are routed by topic, word, place, length or harm, as asked."""

import numpy as np

from moe_interp.stats import RoutingProfile, TokenRouting

N_LAYERS, N_EXPERTS, TOP_K, N_WORDS = 2, 6, 2, 12


def confound_world(
    rng,
    *,
    design="within_topic",
    n_topics=4,
    n_pairs=12,
    by_length=0.0,
    by_word=0.0,
    by_place=0.0,
    by_harm=0.0,
    harm_longer=0.0,
    harm_words=0.0,
    harm_later=0.0,
):
    """A profile and its tokens.

    The `by_` numbers say how strongly routing follows a thing, the `harm_` numbers how far harmful
    prompts are longer, use words that harmless ones use less, or have their span at later places.
    """
    n_prompts, shape = 2 * n_topics * n_pairs, (N_LAYERS, N_EXPERTS)
    topic, pair = np.repeat(np.arange(n_topics), 2 * n_pairs), np.arange(n_prompts) // 2
    harm = np.tile([True, False], n_topics * n_pairs)
    topics, words, by_sign, lengths = (
        rng.normal(size=(n, *shape)) for n in (n_topics, N_WORDS, 1, 1)
    )
    places = rng.normal(size=(2, *shape))
    n_words = rng.integers(8, 17, size=n_prompts)
    if design == "pair":
        n_words = n_words[2 * pair]
    n_words = n_words + harm * rng.binomial(8, harm_longer, size=n_prompts)
    chosen, word, pos = [], [], []
    for row, n in enumerate(n_words):
        # The span is a third of the prompt; its last token is the prompt's last.
        likely = np.linspace(1, 1 + 6 * harm_later, 3 * n - 1)
        likely = likely if harm[row] else likely[::-1]
        own_pos = rng.choice(3 * n - 1, size=n - 1, replace=False, p=likely / likely.sum())
        own_pos = np.sort(np.append(own_pos, 3 * n - 1))
        odds = np.ones(N_WORDS)
        odds[: N_WORDS // 2] += 4 * harm_words * harm[row]
        own_word = rng.choice(N_WORDS, size=n, p=odds / odds.sum())
        logits = 0.8 * topics[topic[row]] + 0.4 * rng.normal(size=shape)
        logits = logits + (1 if harm[row] else -1) * by_harm * by_sign[0]
        logits = logits + by_length * (n - 14) / 4 * lengths[0]
        angle = own_pos / 60 * np.pi
        turning = np.stack([np.cos(angle), np.sin(angle)], axis=1)
        logits = logits + by_place * np.einsum("td,dle->tle", turning, places)
        logits = logits + by_word * words[own_word] + rng.gumbel(size=(n, *shape))
        chosen.append(np.argsort(-logits, axis=2)[:, :, :TOP_K])
        word.append(own_word)
        pos.append(own_pos)
    tokens = TokenRouting(
        np.concatenate(chosen),
        N_EXPERTS,
        np.repeat(np.arange(n_prompts), n_words),
        np.concatenate(word),
        np.concatenate(pos),
    )
    profile = RoutingProfile(
        shares=tokens.shares(n_prompts),
        layers=tuple(range(N_LAYERS)),
        span="user",
        topic=[f"topic{t}" for t in topic],
        harm=harm,
        pair=[f"pair{p}" for p in pair] if design == "pair" else None,
        n_slots=n_words * TOP_K,
        top_k=TOP_K,
    )
    return profile, tokens
