"""Writing what experts and blocks put out, against plain PyTorch hooks that do the same."""

import nnsight
import pytest
import tiny_models
import torch
from tiny_models import encode
from tiny_models import wrapped as wrap

families = pytest.mark.parametrize("family", tiny_models.FAMILIES)


def positioned(batch):
    return {**batch, "position_ids": (batch["attention_mask"].cumsum(-1) - 1).clamp(min=0)}


def relative(found, expected):
    return float((found - expected).abs().max() / expected.abs().max())


def block_of(model, layer):
    path = model.moe[layer].facts["block"]
    return model.nnsight._module.get_submodule(path)


def plain_with(module, replace):
    """Logits of the plain model while `replace` changes what a module returns."""

    def hook(_, args, kwargs, output):
        return replace([*args, *kwargs.values()], output)

    def run(model, batch):
        handle = module.register_forward_hook(hook, with_kwargs=True)
        try:
            with torch.no_grad():
                return model.nnsight._module(**positioned(batch)).logits
        finally:
            handle.remove()

    return run


def drawn(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(3))


@families
def test_written_expert_outputs_are_weighted_and_added_up_by_the_model(family):
    model, batch = wrap(family), encode()
    new = drawn(2, 8, 2, 32)

    def add_up(given, _):
        return (new.flatten(0, 1) * given[2][..., None]).sum(1)

    expected = plain_with(block_of(model, 1).experts, add_up)(model, batch)
    with torch.no_grad(), model.trace(batch):
        model.moe[1].expert_outputs = new
        routed = model.moe[1].routed_output.save()
        logits = model.nnsight.output.logits.save()
    assert relative(logits, expected) <= 1e-6
    assert float(routed.abs().max()) > 0


@families
def test_written_contributions_are_added_up_by_the_model(family):
    model, batch = wrap(family), encode()
    new = drawn(2, 8, 2, 32)
    experts = block_of(model, 1).experts
    expected = plain_with(experts, lambda *_: new.sum(2).flatten(0, 1))(model, batch)
    with torch.no_grad(), model.trace(batch):
        model.moe[1].expert_contributions = new
        logits = model.nnsight.output.logits.save()
    assert relative(logits, expected) <= 1e-6


@families
def test_the_sum_and_the_output_of_the_block_can_be_written(family):
    model, batch = wrap(family), encode()
    new = drawn(2, 8, 32)
    block = block_of(model, 1)
    expected = plain_with(block.experts, lambda *_: new.flatten(0, 1))(model, batch)
    with torch.no_grad(), model.trace(batch):
        model.moe[1].routed_output = new
        logits = model.nnsight.output.logits.save()
    assert torch.equal(logits, expected)

    def leave(_, output):
        return (new, *output[1:]) if isinstance(output, tuple) else new

    expected = plain_with(block, leave)(model, batch)
    with torch.no_grad(), model.trace(batch):
        model.moe[1].output = new
        logits = model.nnsight.output.logits.save()
    assert torch.equal(logits, expected)


@families
@pytest.mark.parametrize("implementation", ["eager", "grouped_mm"])
def test_a_token_whose_outputs_stand_keeps_its_bits(family, implementation):
    # Of three additions the order shows.
    model, batch = wrap(family, implementation, num_experts_per_tok=3), encode()
    with torch.no_grad(), model.trace(batch):
        before = model.moe[1].routed_output.save()
    with torch.no_grad(), model.trace(batch):
        outputs = model.moe[1].expert_outputs
        outputs = outputs.clone()
        outputs[1, 5, 0] += 1.0
        model.moe[1].expert_outputs = outputs
        after = model.moe[1].routed_output.save()
    changed = (before != after).any(-1)
    assert changed.nonzero().tolist() == [[1, 5]]


@families
def test_a_written_index_is_weighed_by_the_model_itself(family):
    if "n_group" in tiny_models.FAMILIES[family] or family == "phimoe":
        return  # their weights are told by their own tests
    model, batch = wrap(family), encode()
    with torch.no_grad(), model.trace(batch):
        logits = model.moe[1].router_logits.save()
    lowest = logits.topk(2, -1, largest=False).indices
    with torch.no_grad(), model.trace(batch):
        model.moe[1].expert_index = lowest
        index = model.moe[1].expert_index.save()
        weights = model.moe[1].routing_weights.save()
    assert torch.equal(index, lowest)
    scores = logits.float().softmax(-1).gather(-1, lowest)
    if family in ("mixtral", "qwen3_moe", "gpt_oss", "granitemoe"):
        scores = scores / scores.sum(-1, keepdim=True)
    assert relative(weights, scores) <= 1e-6


@pytest.mark.parametrize("family", ["deepseek_v2", "deepseek_v3"])
def test_an_index_outside_the_kept_groups_has_its_own_score(family):
    model, batch = wrap(family), encode()
    with torch.no_grad(), model.trace(batch):
        logits = model.moe[1].router_logits.save()
    lowest = logits.topk(2, -1, largest=False).indices
    with torch.no_grad(), model.trace(batch):
        model.moe[1].expert_index = lowest
        weights = model.moe[1].routing_weights.save()
    scores = logits.float().softmax(-1) if family == "deepseek_v2" else logits.float().sigmoid()
    scores = scores.gather(-1, lowest)
    if family == "deepseek_v3":
        scores = scores / scores.sum(-1, keepdim=True)
    assert relative(weights, 2.5 * scores) <= 1e-6


WRONG_INDEX = [
    (torch.tensor([0, 8]).expand(2, 8, 2), r"`expert_index` of layer 1 names experts 0–7, got 0–8"),
    (torch.tensor([-1, 3]).expand(2, 8, 2), r"names experts 0–7, got -1–3"),
    (torch.ones(2, 8, 2, dtype=torch.long), r"`expert_index` of layer 1 names an expert twice"),
    (torch.zeros(3, 8, 2, dtype=torch.long), r"has shape \(2, 8, 2\) here .* got \(3, 8, 2\)"),
]


@pytest.mark.parametrize(("index", "message"), WRONG_INDEX)
@pytest.mark.parametrize("verb", ["assign", "set_routing"])
def test_an_index_that_is_none_is_refused(index, message, verb):
    model = wrap("mixtral")
    with pytest.raises(ValueError, match=message), model.trace(encode()):  # noqa: PT012
        if verb == "assign":
            model.moe[1].expert_index = index
        else:
            model.moe[1].set_routing(index, torch.ones(index.shape))


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("expert_outputs", (2, 8, 2, 32)),
        ("expert_contributions", (2, 8, 2, 32)),
        ("routed_output", (2, 8, 32)),
        ("output", (2, 8, 32)),
    ],
)
def test_a_value_of_another_shape_is_refused(name, shape):
    model = wrap("mixtral")
    wrong = torch.zeros(3, *shape[1:])
    expected = rf"`{name}` of layer 1 has shape {str(shape)[:-1]}\) here".replace("(", r"\(", 1)
    with pytest.raises(ValueError, match=expected), model.trace(encode()):
        setattr(model.moe[1], name, wrong)


def test_an_edit_holds_at_the_decode_step_it_is_made_in():
    model, batch = wrap("mixtral"), encode()
    index = torch.tensor([6, 7]).expand(2, 1, 2)
    options = {"max_new_tokens": 3, "min_new_tokens": 3, "do_sample": False}
    with model.generate(**options) as tracer:  # noqa: SIM117
        with tracer.invoke(batch):
            seen = nnsight.save([])
            for step in tracer.iter[:3]:
                if step == 1:
                    model.moe[1].expert_index = index
                seen.append(model.moe[1].expert_index)
    assert torch.equal(seen[1], index)
    assert not torch.equal(seen[2], index)
    assert seen[0].shape == (2, 8, 2)
