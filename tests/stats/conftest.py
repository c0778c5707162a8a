from dataclasses import dataclass

import numpy as np
import pytest

from moe_interp.stats import RoutingProfile


@dataclass(frozen=True)
class Labels:
    topic: list
    harm: list
    pair: list | None
    wording: list | None

    @property
    def n(self):
        return len(self.topic)


def factorial_labels(scheme, *, n_topics=3, n_wordings=4, per_cell=1):
    """Labels for which "auto" chooses `scheme`."""
    rows = []
    for topic in range(n_topics):
        for wording in range(n_wordings):
            for repeat in range(per_cell):
                for harm in (True, False):
                    name = f"{topic}-{wording}-{repeat}"
                    rows.append((f"topic{topic}", harm, name, wording))
    topic, harm, pair, wording = (list(column) for column in zip(*rows, strict=True))
    wordings = {
        "wording_pair": [f"w{w}" for w in wording],
        "wording": [f"w{w}{h}" for w, h in zip(wording, harm, strict=True)],
        "pair": None,
        "within_topic": None,
    }[scheme]
    return Labels(topic, harm, pair if scheme in ("pair", "wording_pair") else None, wordings)


def softmax(logits):
    odds = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return odds / odds.sum(axis=-1, keepdims=True)


def effects_of(names, rng, shape, size):
    """One random shift for every name, looked up prompt by prompt."""
    if names is None or size == 0:
        return 0.0
    distinct = {name: size * rng.normal(size=shape) for name in dict.fromkeys(names)}
    return np.stack([distinct[name] for name in names])


def simulated_shares(
    labels,
    rng,
    *,
    n_layers=2,
    n_experts=6,
    topic=1.0,
    harm=0.0,
    by_topic=0.0,
    wording=0.0,
    pair=0.5,
    noise=0.5,
    n_slots=40,
):
    """Shares of multinomial slots; `wording` shifts both sides of a wording differently."""
    shape = (n_layers, n_experts)
    sign = np.where(labels.harm, 1.0, -1.0)[:, None, None]
    logits = effects_of(labels.topic, rng, shape, topic)
    logits = logits + effects_of(labels.pair, rng, shape, pair)
    logits = logits + effects_of(labels.wording, rng, shape, wording)
    if wording and labels.pair is not None:
        logits = logits + sign * effects_of(labels.wording, rng, shape, wording)
    logits = logits + sign * harm * rng.normal(size=shape)
    logits = logits + sign * effects_of(labels.topic, rng, shape, by_topic)
    logits = logits + noise * rng.normal(size=(labels.n, *shape))
    return rng.multinomial(n_slots, softmax(logits)) / n_slots


def profile_of(labels, shares):
    return RoutingProfile(
        shares=shares,
        layers=tuple(range(shares.shape[1])),
        span="user",
        topic=labels.topic,
        harm=labels.harm,
        pair=labels.pair,
        wording=labels.wording,
    )


def unbalanced_labels(rng, *, n_topics=4, low=8, high=24):
    """Unpaired prompts whose harm rate differs by topic, so that topic and harm are confounded."""
    topic, harm = [], []
    for number in range(n_topics):
        size = int(rng.integers(low, high))
        n_harmful = int(np.clip(round(size * (number + 1) / (n_topics + 1)), 2, size - 2))
        topic += [f"topic{number}"] * size
        harm += [True] * n_harmful + [False] * (size - n_harmful)
    return Labels(topic, harm, None, None)


SCHEMES = ("wording_pair", "wording", "pair", "within_topic")


@pytest.fixture(params=SCHEMES)
def scheme(request):
    return request.param


@pytest.fixture
def rng():
    return np.random.default_rng(7)


@pytest.fixture
def simulate():
    """The builders above, for tests cannot import from a conftest by name."""
    return Simulate


class Simulate:
    labels = staticmethod(factorial_labels)
    unbalanced = staticmethod(unbalanced_labels)
    shares = staticmethod(simulated_shares)
    profile = staticmethod(profile_of)
