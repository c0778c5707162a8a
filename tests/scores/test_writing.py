import numpy as np
import pytest
import torch

from moe_interp.prompts import encode
from moe_interp.scores import Scores, largest_output, super_experts, write_norm

TEXTS = ["how do i open the lock to start an attack ?", "how do i bake bread ?"]


@pytest.fixture(scope="module")
def written(topic_model):
    """Outputs and weights of every token, one prompt at a time, with no padding."""
    found = []
    for text in TEXTS:
        with torch.no_grad(), topic_model.trace(encode(topic_model.tokenizer, [text]).inputs):
            layer = topic_model.moe[2]
            index = layer.expert_index.save()
            weights = layer.routing_weights.save()
            outputs = layer.expert_outputs.save()
        found.append((index[0], weights[0], outputs[0]))
    return found


def test_write_norm_is_the_mean_length_over_tokens(topic_model, written):
    scores = write_norm(topic_model, TEXTS)
    for prompt, (index, weights, outputs) in enumerate(written):
        for expert in range(16):
            total = 0.0
            for token in range(len(index)):
                for slot in range(2):
                    if index[token, slot] == expert:
                        total += float((weights[token, slot] * outputs[token, slot]).norm())
            value = scores.array.values[prompt, 2, expert]
            assert value == pytest.approx(total / len(index), rel=1e-4, abs=1e-7)


def test_the_largest_output_is_over_all_tokens_of_all_prompts(topic_model, written):
    scores = largest_output(topic_model, TEXTS)
    for expert in range(16):
        seen = [
            float(outputs[token, slot].abs().max())
            for index, _, outputs in written
            for token in range(len(index))
            for slot in range(2)
            if index[token, slot] == expert
        ]
        assert scores.of(2, expert) == pytest.approx(max(seen, default=0.0), rel=1e-4)


def test_super_experts_are_far_above_the_rest_and_not_late():
    values = np.random.default_rng(0).uniform(1, 2, (8, 128))
    values[1, 7], values[3, 100], values[7, 5] = 500, 400, 900
    values[2, 3] = 80
    found = super_experts(Scores.of_array("largest", "", values, layers=tuple(range(8))))
    # L2E3 is above the percentile but below a tenth of the largest, L7E5 is in the last quarter.
    assert str(found) == "L1E7,L3E100"
