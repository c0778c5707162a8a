import base64

import numpy as np

from moe_interp.viz._sample import pack_tokens, sample_prompts


def chosen(record, **options):
    return record.dataset.isel(prompt=sample_prompts(record.dataset, **options))


def test_the_sample_is_balanced_over_topics_and_harm(record):
    sample = chosen(record, most=16)
    topics, counts = np.unique(sample["topic"].values.astype(str), return_counts=True)
    assert len(topics) == 4
    assert set(counts) == {4}
    assert int(sample["harm"].sum()) == 8


def test_pairs_stay_whole(record):
    pairs = chosen(record, most=10)["pair"].values.astype(str)
    assert set(np.unique(pairs, return_counts=True)[1]) == {2}


def test_a_small_record_is_taken_whole(record):
    assert len(sample_prompts(record.dataset, most=1000)) == 48


def test_prompts_without_partners_alternate_in_harm(record):
    dataset = record.dataset.drop_vars("pair")
    harm = dataset["harm"].values[sample_prompts(dataset, most=8)]
    assert harm.sum() == 4


def test_packed_experts_are_those_of_the_record(record):
    pack = pack_tokens(record.dataset, most=6)
    index = np.frombuffer(base64.b64decode(pack["index"]), dtype="uint8").reshape(-1, 4, 2)
    prompts = sample_prompts(record.dataset, most=6)
    owner = record.dataset["prompt_index"].values
    rows = np.concatenate([np.flatnonzero(owner == prompt) for prompt in prompts])
    np.testing.assert_array_equal(index, record.dataset["expert_index"].values[rows])


def test_packed_weights_are_those_of_the_record_within_half_a_step(record):
    pack = pack_tokens(record.dataset, most=48)
    steps = np.frombuffer(base64.b64decode(pack["weights"]), dtype="uint8").reshape(-1, 4, 2)
    prompts = sample_prompts(record.dataset, most=48)
    owner = record.dataset["prompt_index"].values
    rows = np.concatenate([np.flatnonzero(owner == prompt) for prompt in prompts])
    weights = record.dataset["routing_weights"].values[rows]
    # The smallest step is kept for chosen experts of nearly no weight: a whole step there.
    np.testing.assert_allclose(steps / 255 * pack["scale"], weights, atol=pack["scale"] / 255)


def test_more_than_256_experts_take_two_bytes(record):
    dataset = record.dataset.copy()
    dataset["expert_index"] = dataset["expert_index"] + 300
    pack = pack_tokens(dataset, most=2)
    index = np.frombuffer(base64.b64decode(pack["index"]), dtype="<u2")
    assert pack["index_bytes"] == 2
    assert index.min() >= 300


def test_tokens_are_inert_in_the_pack(record):
    tokens = pack_tokens(record.dataset)["prompts"][0]["tokens"]
    assert "<\u2060bos>" in tokens
    assert not any("<b" in token or "<i" in token for token in tokens)


def test_a_prompt_too_large_for_the_report_is_cut_and_says_so(record, monkeypatch):
    monkeypatch.setattr("moe_interp.viz._sample.MAX_BYTES", 10 * 4 * 2 * 2)
    prompts = pack_tokens(record.dataset)["prompts"]
    assert [(len(prompt["tokens"]), prompt["cut"]) for prompt in prompts] == [(10, True)]
