"""Selection by transport of routing: equal to the formulas, written out slowly."""

import json

import numpy as np
import pytest

from moe_interp import mean_router_prob, mesa_select, record_routing
from moe_interp.errors import DesignError
from moe_interp.experts import ExpertSet


@pytest.fixture(scope="module")
def record(topic_model, organism_prompts):
    return record_routing(topic_model, organism_prompts, n_random_routers=0, progress=False)


@pytest.fixture(scope="module")
def selection(record):
    return mesa_select(record, n=12, epsilon=0.4, shift=5.0, column_weight=0.6)


def slow_selection(record, *, n, epsilon, shift, weight):
    """Ranks by counting, the plan by scaling prompt by prompt, in more digits."""
    owner = record.dataset["prompt_index"].values
    index, logits = (record.dataset[q].values for q in ("expert_index", "router_logits"))
    inside, harm = record.inside("prompt"), record.prompts.harm
    use = np.zeros((4, 16))
    probs = np.zeros((len(harm), 4, 16))
    for prompt in range(len(harm)):
        tokens = np.flatnonzero((owner == prompt) & inside)
        for layer in range(4):
            for token in tokens:
                odds = np.exp(logits[token, layer].astype(float))
                probs[prompt, layer] += odds / odds.sum() / len(tokens)
                group = harm.sum() if harm[prompt] else (~harm).sum()
                for expert in index[token, layer]:
                    use[layer, expert] += 0.5 / group / len(tokens)
    flat = use.ravel()
    below = np.array([(flat < one - 1e-12).sum() for one in flat])
    same = np.array([(abs(flat - one) <= 1e-12).sum() for one in flat])
    percentile = (100 * (below + same / 2) / 64).reshape(4, 16)
    cost = 1 / ((percentile + shift) * (100 - percentile) ** 2)
    cost = cost / cost.min()
    plan, n_harmful = np.zeros((4, 16)), int(harm.sum())
    for layer in range(4):
        kernel = probs[harm, layer] * np.exp(-cost[layer].astype(np.longdouble) / epsilon)
        v = np.ones(16)
        for _ in range(300):
            u = 1 / n_harmful / (kernel @ v)
            v = (1 / 16 / (kernel.T @ u)) ** (weight / (weight + epsilon))
        u = 1 / n_harmful / (kernel @ v)
        plan[layer] = (u[:, None] * kernel * v).sum(axis=0)
    order = np.argsort(-plan.ravel())[:n]
    return percentile, cost, plan, {(int(i) // 16, int(i) % 16) for i in order}


def test_it_is_the_formulas(record, selection):
    percentile, cost, plan, chosen = slow_selection(
        record, n=12, epsilon=0.4, shift=5.0, weight=0.6
    )
    np.testing.assert_allclose(selection.percentile.mean, percentile, rtol=1e-6)
    np.testing.assert_allclose(selection.cost.mean, cost, rtol=1e-6)
    np.testing.assert_allclose(selection.plan.mean, plan, rtol=1e-4, atol=1e-12)
    assert {(e.layer, e.expert) for e in selection.experts} == chosen
    np.testing.assert_allclose(selection.plan.mean.sum(axis=1), 1)
    np.testing.assert_allclose(selection.tilt.mean, cost / 0.4, rtol=1e-6)


def test_neither_the_most_used_nor_the_idle_are_cheap(selection):
    """The shape has its mode where (100 - f) = 2 (f + a)."""
    by_percentile = np.argsort(selection.percentile.mean.ravel())
    cost = selection.cost.mean.ravel()[by_percentile]
    cheapest = selection.percentile.mean.ravel()[by_percentile][cost.argmin()]
    assert cheapest == pytest.approx((100 - 2 * 5.0) / 3, abs=3)
    assert cost[0] > 1.5
    assert cost[-1] > 100


def test_the_planted_experts_are_too_busy_to_be_selected(selection, topic_model):
    planted = ExpertSet(topic_model.card["truth"]["safety_experts"])
    assert not planted & selection.experts
    assert all(selection.percentile.of(e.layer, e.expert) > 80 for e in planted)
    frame = selection.to_frame()
    assert set(zip(frame["layer"], frame["expert"], strict=True)) >= {(3, 8), (3, 9)}
    chosen = frame[frame["selected"]]
    assert len(chosen) == 12
    assert chosen["plan"].sum() > 1.5 * chosen["prior"].sum()


def test_free_columns_leave_each_prompt_to_itself(record):
    found = mesa_select(record, n=4, epsilon=0.4, column_weight=0.0)
    harm, cost = record.prompts.harm, found.cost.mean
    tilted = mean_router_prob(record).array.values[harm] * np.exp(-cost / 0.4)
    expected = (tilted / tilted.sum(-1, keepdims=True)).mean(axis=0)
    np.testing.assert_allclose(found.plan.mean, expected, rtol=1e-6)


def test_it_says_what_it_found(selection):
    said = selection.summary()
    assert said.startswith(f"12 experts selected: {selection.experts}. The plan gives them ")
    written = json.loads(json.dumps(selection.to_dict(), allow_nan=False))
    assert written["experts"] == [str(expert) for expert in selection.experts]
    assert written["epsilon"] == 0.4


def test_what_it_cannot_select_from_is_refused(record):
    harm = record.prompts.harm
    with pytest.raises(DesignError, match=r"All \d+ prompts are harmful; the mixture needs"):
        mesa_select(record.select(harm), n=4)
    with pytest.raises(ValueError, match=r"`shift` must be above 0 and `column_weight` a finite"):
        mesa_select(record, n=4, shift=0.0)
    with pytest.raises(ValueError, match="totals of experts would decide the selection"):
        mesa_select(record, n=4, column_weight=np.inf)
    with pytest.raises(ValueError, match="`epsilon` must be above 0"):
        mesa_select(record, n=4, epsilon=0.0)
    with pytest.raises(ValueError, match="`n` must lie between 1 and the 64 experts"):
        mesa_select(record, n=65)
