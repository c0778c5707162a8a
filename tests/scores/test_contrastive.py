"""Contrastive sensitivity: against its formula pair by pair, and against planted truth."""

import itertools

import numpy as np
import pytest

import moe_interp as mi
from moe_interp.errors import DesignError
from moe_interp.scores import contrast_parts, contrastive_sensitivity, selection_frequency


def recorded(name, **options):
    model = mi.load_model(f"organism:{name}", check=False)
    return mi.record_routing(model, mi.load_prompts("organism", **options), progress=False)


@pytest.fixture(scope="module")
def topic_record():
    return recorded("topic", per_topic=4)


@pytest.fixture(scope="module")
def harm_record():
    return recorded("harm", per_topic=4)


@pytest.fixture(scope="module")
def all_wordings():
    """The harm organism on all 16 purposes: with few, experts that know one of them stand out."""
    return recorded("harm", per_topic=16)


def literal(record, span, use):
    """Mean difference, t and topic change, with every pair written out."""
    values = use(record, span=span).array.values
    prompts = list(record.prompts)
    n_layers, n_experts = values.shape[1:]
    mean, t, topic = np.zeros((3, n_layers, n_experts))
    by_pair = {}
    for row, prompt in enumerate(prompts):
        by_pair.setdefault(prompt.pair, {})[prompt.harm] = row
    for layer, expert in itertools.product(range(n_layers), range(n_experts)):
        a = values[:, layer, expert].tolist()
        d = [a[rows[True]] - a[rows[False]] for rows in by_pair.values()]
        centre = sum(d) / len(d)
        variance = sum((one - centre) ** 2 for one in d) / (len(d) - 1)
        mean[layer, expert] = centre
        if variance > 1e-24:
            t[layer, expert] = centre / (variance / len(d)) ** 0.5
        squares = [
            (a[i] - a[j]) ** 2
            for i, j in itertools.combinations(range(len(prompts)), 2)
            if prompts[i].harm == prompts[j].harm and prompts[i].topic != prompts[j].topic
        ]
        topic[layer, expert] = (sum(squares) / len(squares)) ** 0.5
    return mean, t, topic


@pytest.mark.parametrize("span", ["user", "last"])
def test_parts_and_scores_are_the_formula_written_out(harm_record, span):
    mean, t, topic = literal(harm_record, span, selection_frequency)
    parts = contrast_parts(harm_record, span=span)
    np.testing.assert_allclose(parts.mean_difference, mean, atol=1e-12)
    np.testing.assert_allclose(parts.topic_change, topic, atol=1e-12)
    finite = np.isfinite(parts.paired_t)
    np.testing.assert_allclose(parts.paired_t[finite], t[finite], rtol=1e-6)
    ratio = contrastive_sensitivity(harm_record, span=span, floor=0.02)
    np.testing.assert_allclose(ratio.mean, np.abs(mean) / (topic + 0.02), atol=1e-12)
    if span == "user":
        assert finite.all()
        found = contrastive_sensitivity(harm_record, span=span, kind="difference", topic_weight=0.5)
        z = [(one - one.mean()) / one.std() for one in (abs(t), topic)]
        np.testing.assert_allclose(found.mean, z[0] - 0.5 * z[1], rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("kind", ["ratio", "difference"])
def test_directions_are_signs_of_the_mean_difference(harm_record, kind):
    """Of the difference itself, so that one direction is the other turned round."""
    found = {
        direction: contrastive_sensitivity(
            harm_record, kind=kind, direction=direction, topic_weight=0.0
        ).mean
        for direction in ("either", "harmful", "harmless")
    }
    np.testing.assert_allclose(found["harmful"], -found["harmless"], atol=1e-9)
    harmful = contrast_parts(harm_record).mean_difference > 0
    if kind == "ratio":
        assert ((found["harmful"] > 0) == harmful).all()
        np.testing.assert_allclose(np.abs(found["harmful"]), found["either"])
    else:
        assert found["harmful"][harmful].min() > found["harmful"][~harmful].max()


def test_all_kinds_of_use_are_those_of_their_scores(harm_record):
    for name in ("mean_router_prob", "mean_routing_weight"):
        record = harm_record
        if name == "mean_router_prob":
            model = mi.load_model("organism:harm", check=False)
            record = mi.record_routing(
                model, harm_record.prompts, quantities=("router_logits",), progress=False
            )
        mean, _, topic = literal(record, "user", getattr(mi, name))
        parts = contrast_parts(record, use=name)
        np.testing.assert_allclose(parts.mean_difference, mean, atol=1e-12)
        np.testing.assert_allclose(parts.topic_change, topic, atol=1e-12)


@pytest.mark.parametrize("use", ["selection_frequency", "mean_routing_weight"])
def test_the_planted_experts_of_harm_come_first(all_wordings, use):
    scores = contrastive_sensitivity(all_wordings, use=use, direction="harmful")
    found = {str(expert) for expert, _ in scores.top(4)}
    assert found == {"L2E14", "L2E15", "L3E14", "L3E15"}


def test_without_a_direction_come_those_that_harmless_prompts_use_in_their_place(all_wordings):
    found = {str(expert) for expert, _ in contrastive_sensitivity(all_wordings).top(8)}
    assert found == {f"L{layer}E{e}" for layer in (2, 3) for e in (12, 13, 14, 15)}


def test_experts_that_every_prompt_uses_alike_have_no_score(topic_record):
    """The safety experts of `topic` read the last token of every prompt: nothing is to be seen."""
    for span in ("user", "last"):
        scores = contrastive_sensitivity(topic_record, span=span)
        assert scores.of(3, 8) < 0.1
        assert scores.of(3, 9) < 0.1
        others = np.delete(scores.of_layer(3), [8, 9])
        assert np.isfinite(others).all()


def test_experts_that_follow_the_topic_score_low_however_often_they_are_used(topic_record):
    parts = contrast_parts(topic_record)
    assert (parts.topic_change[1, :8] > 0.2).all()
    assert (contrastive_sensitivity(topic_record).mean[1, :8] < 0.2).all()


def test_a_difference_without_any_spread_is_surer_than_all_others(harm_record):
    parts = contrast_parts(harm_record, span="last")
    assert np.isinf(parts.paired_t).any()
    scores = contrastive_sensitivity(harm_record, span="last", kind="difference", topic_weight=0.0)
    assert np.isfinite(scores.mean).all()
    assert scores.mean[np.isinf(parts.paired_t)].min() == scores.mean.max()


def test_experts_hardly_used_may_be_left_out(harm_record):
    use = selection_frequency(harm_record, span="user").mean
    scores = contrastive_sensitivity(harm_record, least_use=0.1)
    assert np.array_equal(np.isnan(scores.mean), use < 0.1)


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ({"kind": "sum"}, r"`kind` must be one of \('ratio', 'difference'\), got 'sum'"),
        ({"use": "load"}, r"`use` must be one of \('selection_frequency', .*, got 'load'"),
        ({"direction": "up"}, r"`direction` must be one of \('either', .*, got 'up'"),
        ({"floor": 0.0}, r"`floor` must be above 0, .* got 0.0, 1.0 and 0.0"),
    ],
)
def test_options_that_do_not_exist_are_refused(harm_record, option, said):
    with pytest.raises(ValueError, match=said):
        contrastive_sensitivity(harm_record, **option)


def test_prompts_without_pairs_or_topics_are_refused(harm_record):
    harmless = np.flatnonzero(~harm_record.prompts.harm)
    with pytest.raises(DesignError, match=r"0 pairs of a harmful and a harmless prompt"):
        contrastive_sensitivity(harm_record.select(harmless))
    one_topic = np.array([topic == "cooking" for topic in harm_record.prompts.topics])
    with pytest.raises(DesignError, match=r"No two prompts of one harm level have different"):
        contrastive_sensitivity(harm_record.select(one_topic))
