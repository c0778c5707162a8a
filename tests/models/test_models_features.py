"""What nnsight offers around a trace, gradients of what experts write, and the errors of order."""

import nnsight
import pytest
import tiny_models
import torch
import zoo
from nnsight.intervention.interleaver import OutOfOrderError
from tiny_models import TEXTS, encode
from tiny_models import wrapped as wrap

from moe_interp.errors import UnsupportedQuantityError
from moe_interp.models import load_model


def checked(family, implementation="grouped_mm", **changes):
    """A model that went through the self-check, as users have it."""
    model = tiny_models.build(family, **changes)
    model.set_experts_implementation(implementation)
    return load_model(model, tokenizer=tiny_models.build_tokenizer())


def calls_of(model, layer):
    """Count the calls of a layer's experts while the model is used."""
    experts = model.nnsight._module.get_submodule(model.moe[layer].facts["experts"])
    calls = []
    handle = experts.act_fn.register_forward_hook(lambda *_: calls.append(1))
    return calls, handle


def logits_of(model, batch):
    with torch.no_grad(), model.trace(batch):
        found = model.nnsight.output.logits.save()
    return found.clone()


def test_a_session_carries_values_from_one_trace_to_the_next():
    model, batch = wrap("qwen2_moe"), encode()
    with torch.no_grad(), model.session():
        with model.trace(batch):
            index = model.moe[1].expert_index
            untouched = model.nnsight.output.logits.save()
        with model.trace(batch):
            model.moe[1].expert_index = index
            frozen = model.nnsight.output.logits.save()
    assert torch.equal(frozen, untouched)


def test_an_edit_stays_with_the_edited_model_only():
    model, batch = wrap("qwen2_moe"), encode()
    before = logits_of(model, batch)
    with model.edit() as (_, edited):
        model.moe[1].ban([0])
    with torch.no_grad(), edited.trace(batch):
        found = edited.output.logits.save()
    with torch.no_grad(), model.trace(batch):
        model.moe[1].ban([0])
        expected = model.nnsight.output.logits.save()
    assert torch.equal(found, expected)
    assert torch.equal(logits_of(model, batch), before)
    assert not torch.equal(found, before)


@pytest.mark.filterwarnings("ignore:.*iter.*:UserWarning")
def test_an_edit_reaches_every_step_of_a_generation_and_can_be_read_through():
    model, batch = checked("qwen2_moe"), encode()
    with model.edit() as (tracer, edited):
        for _ in tracer.iter[:]:
            model.moe[1].ban([0, 1])
    options = {"max_new_tokens": 3, "min_new_tokens": 3, "do_sample": False}
    with edited.generate(**options) as tracer:  # noqa: SIM117
        with tracer.invoke(batch):
            seen = nnsight.save([])
            for _ in tracer.iter[:3]:
                seen.append(model.moe[1].read("expert_index", "expert_contributions"))
    assert len(seen) == 3
    for step in seen:
        assert not bool((step["expert_index"] < 2).any())


def test_a_cache_records_what_was_edited():
    model, batch = wrap("qwen2_moe"), encode()
    path = model.moe[1].facts["experts"]
    with torch.no_grad(), model.trace(batch) as tracer:
        cache = tracer.cache().save()
        model.moe[1].zero(range(8))
    assert float(cache[f"model.{path}"].output.abs().max()) == 0.0


def test_scan_tells_shapes_where_the_experts_kernel_has_shapes():
    model = wrap("mixtral", "batched_mm")
    with model.scan(encode()):
        shape = nnsight.save(model.moe[1].expert_outputs.shape)
    assert tuple(shape) == (2, 8, 2, 32)


# Three experts a token, so that the order of additions shows.
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("implementation", ["eager", "batched_mm", "grouped_mm"])
@pytest.mark.parametrize("family", ["mixtral", "deepseek_v3", "olmoe", "qwen2_moe"])
def test_reading_in_one_go_saves_the_experts_own_call(family, implementation, dtype):
    model = checked(family, implementation, dtype=dtype, num_experts_per_tok=3)
    batch = encode([" ".join(TEXTS * 6), TEXTS[0]])
    before = logits_of(model, batch)
    calls, handle = calls_of(model, 1)
    logits_of(model, batch)
    plain = len(calls)
    calls.clear()
    with torch.no_grad(), model.trace(batch):
        model.moe[1].read("expert_contributions")
        after = model.nnsight.output.logits.save()
    handle.remove()
    assert torch.equal(after, before)
    assert len(calls) == plain


@pytest.mark.parametrize("case", ["unchecked", "changed", "two invokes", "property"])
def test_the_experts_run_where_their_slots_are_not_known_to_add_up(case):
    model = wrap("mixtral") if case == "unchecked" else checked("mixtral")
    if case == "changed":
        model.nnsight._module.set_experts_implementation("batched_mm")
    calls, handle = calls_of(model, 1)
    with torch.no_grad(), model.trace() as tracer:
        with tracer.invoke(encode(TEXTS[:1])):
            if case == "property":
                model.moe[1].expert_contributions.save()
            else:
                model.moe[1].read("expert_contributions")
        if case == "two invokes":
            with tracer.invoke(encode(TEXTS[1:])):
                model.nnsight.output.logits.save()
    handle.remove()
    assert len(calls) > 1


@pytest.mark.parametrize("implementation", ["eager", "grouped_mm"])
@pytest.mark.parametrize("family", ["mixtral", "qwen2_moe", "deepseek_v3", "gpt_oss"])
@pytest.mark.parametrize("way", ["properties", "read"])
def test_gradients_of_slots_are_those_of_the_sum(family, implementation, way):
    model, batch = checked(family, implementation), encode()
    before = logits_of(model, batch)
    layer = model.moe[1]
    with model.trace(batch):
        if way == "read":
            found = layer.read("routing_weights", "expert_outputs", "expert_contributions")
            weights, outputs = found["routing_weights"], found["expert_outputs"]
            contributions = found["expert_contributions"]
        else:
            outputs = layer.expert_outputs
            contributions = layer.expert_contributions
            weights = layer.routing_weights
        routed = layer.routed_output
        logits = model.nnsight.output.logits
        with logits[:, -1, 7].sum().backward():
            of_routed = routed.grad.save()
            of_contributions = contributions.grad.save()
            of_outputs = outputs.grad.save()
            of_weights = weights.grad.save()
        weights, outputs, logits = weights.save(), outputs.save(), logits.save()
    assert torch.equal(logits, before)
    assert float(of_routed.abs().max()) > 0
    assert torch.equal(of_contributions, of_routed[:, :, None].expand_as(of_contributions))
    torch.testing.assert_close(of_outputs, of_contributions * weights[..., None])
    torch.testing.assert_close(of_weights, (of_contributions * outputs).sum(-1))


@pytest.mark.parametrize("way", ["nothing", "property", "read"])
def test_reading_slots_leaves_the_gradients_before_them_as_they_are(way):
    model, batch = checked("mixtral", "eager", dtype=torch.float64), encode()
    with model.trace(batch):
        logits = model.moe[0].router_logits.save()
        if way == "property":
            model.moe[1].expert_outputs.save()
        if way == "read":
            model.moe[1].read("expert_outputs", "expert_contributions")
        metric = model.nnsight.output.logits[:, -1, 7].sum().save()
    found = torch.autograd.grad(metric, logits)[0]
    with model.trace(batch):
        logits = model.moe[0].router_logits.save()
        metric = model.nnsight.output.logits[:, -1, 7].sum().save()
    expected = torch.autograd.grad(metric, logits)[0]
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-15)


def test_gradients_of_slots_stay_within_their_invoke():
    model = wrap("mixtral")
    with model.trace() as tracer:
        with tracer.invoke(encode(TEXTS[:1])):
            first = model.moe[1].expert_outputs.save()
            one = model.nnsight.output.logits[:, -1, 7].sum().save()
        with tracer.invoke(encode(TEXTS[1:])):
            second = model.moe[1].expert_outputs.save()
            two = model.nnsight.output.logits[:, -1, 7].sum().save()
    own = torch.autograd.grad(one, [first, second], allow_unused=True, retain_graph=True)
    assert float(own[0].abs().max()) > 0
    assert own[1] is None or float(own[1].abs().max()) == 0
    assert float(torch.autograd.grad(two, second)[0].abs().max()) > 0


def test_a_written_output_has_the_gradient_of_what_it_was_made_of():
    model, batch = wrap("mixtral", "eager", dtype=torch.float64), encode()
    with model.trace(batch):
        routed = model.moe[1].routed_output.save()
        metric = model.nnsight.output.logits[:, -1, 7].sum().save()
    expected = float((torch.autograd.grad(metric, routed)[0] * routed.detach()).sum())
    factor = torch.ones((), dtype=torch.float64, requires_grad=True)
    with model.trace(batch):
        model.moe[1].expert_outputs = model.moe[1].expert_outputs * factor
        metric = model.nnsight.output.logits[:, -1, 7].sum().save()
    slope = float(torch.autograd.grad(metric, factor)[0])
    assert slope == pytest.approx(expected, rel=1e-6)
    assert abs(slope) > 1e-6


@pytest.mark.parametrize(
    ("late", "what"),
    [
        (lambda layer: layer.ban([0]), r"Layer 1: `expert_index` was edited after"),
        (lambda layer: layer.router_logits, r"Layer 1: `router_logits` was asked for after"),
        (lambda layer: layer.read("input"), r"Layer 1: \('input',\) were asked for after"),
    ],
)
def test_what_the_model_has_run_past_is_said_to_be_too_late(late, what):
    model = wrap("mixtral")
    expected = rf"{what} something .*in the order input, router_input, router_logits, expert_index"
    with pytest.raises(OutOfOrderError, match=expected), model.trace(encode()):  # noqa: PT012
        model.moe[1].expert_index.save()
        late(model.moe[1])


def test_a_quantity_that_a_family_has_not_is_refused_by_name():
    model = load_model(
        zoo.build("llama4_text"), tokenizer=tiny_models.build_tokenizer(), check=False
    )
    layer = model.moe[1]
    assert "expert_outputs" not in layer.offered
    assert "expert_contributions" in layer.offered
    expected = (
        r"Layer 1 does not offer `expert_outputs`: its weight multiplies the expert's input, not "
        r"its output\. Read `expert_contributions`"
    )
    with pytest.raises(UnsupportedQuantityError, match=expected), model.trace(encode()):
        layer.expert_outputs.save()
    with pytest.raises(UnsupportedQuantityError, match=expected), model.trace(encode()):
        layer.expert_outputs = torch.zeros(2, 8, 2, 32)


def test_output_from_asks_for_a_shared_expert_that_has_run():
    model, batch = wrap("qwen2_moe"), encode()
    with (  # noqa: PT012
        pytest.raises(OutOfOrderError, match="`shared_output` was asked for after"),
        model.trace(batch),
    ):
        contributions = model.moe[1].expert_contributions
        model.moe[1].output_from(contributions).save()
    with torch.no_grad(), model.trace(batch):
        found = model.moe[1].read("expert_contributions", "shared_output", "output")
        rebuilt = (
            model.moe[1].output_from(found["expert_contributions"], found["shared_output"]).save()
        )
        output = found["output"].save()
    torch.testing.assert_close(rebuilt, output)


@pytest.mark.parametrize("family", ["mixtral", "llama4_text", "jetmoe", "switch_transformers"])
def test_what_was_read_can_be_written_whatever_way_experts_are_called(family):
    model = load_model(zoo.build(family), tokenizer=tiny_models.build_tokenizer(), check=False)
    batch = zoo_batch(model)
    layer = model.moe[1]
    before = logits_of(model, batch)
    for name in [
        name for name in ("expert_outputs", "expert_contributions") if name in layer.offered
    ]:
        with torch.no_grad(), model.trace(batch):
            setattr(layer, name, getattr(layer, name) * 1.0)
            same = model.nnsight.output.logits.save()
        with torch.no_grad(), model.trace(batch):
            setattr(layer, name, getattr(layer, name) * 2.0)
            routed = layer.routed_output.save()
        with torch.no_grad(), model.trace(batch):
            expected = layer.routed_output.save()
        assert torch.equal(same, before)
        torch.testing.assert_close(routed, 2 * expected)


def zoo_batch(model):
    batch = encode()
    if model.config.is_encoder_decoder:
        return {**batch, "decoder_input_ids": batch["input_ids"]}
    return batch


@pytest.mark.parametrize("graded", [False, True])
def test_slots_read_before_their_weights_are_edited_follow_the_edit(graded):
    model, batch = wrap("mixtral"), encode()
    layer = model.moe[1]
    with torch.set_grad_enabled(graded), model.trace(batch):
        outputs = layer.expert_outputs.save()
        layer.routing_weights = layer.routing_weights * 0.5
        weights = layer.routing_weights.save()
        contributions = layer.expert_contributions.save()
        routed = layer.routed_output.save()
        metric = model.nnsight.output.logits[:, -1, 7].sum().save()
    torch.testing.assert_close(contributions, outputs * weights[..., None])
    torch.testing.assert_close(contributions.sum(2), routed)
    if graded:
        of_outputs, of_routed = torch.autograd.grad(metric, [outputs, routed])
        torch.testing.assert_close(of_outputs, of_routed[:, :, None] * weights[..., None])


@pytest.mark.parametrize("graded", [False, True])
def test_slots_of_experts_that_were_replaced_are_not_reused(graded):
    model, batch = wrap("mixtral"), encode()
    layer = model.moe[1]
    with torch.set_grad_enabled(graded), model.trace(batch):
        layer.expert_outputs.save()
        index = (layer.expert_index + 1) % 8
        index = torch.stack([index[..., 0], (index[..., 0] + 3) % 8], -1)
        layer.set_routing(index, layer.routing_weights)
        contributions = layer.expert_contributions.save()
        routed = layer.routed_output.save()
    torch.testing.assert_close(contributions.sum(2), routed)
