"""Reading: every quantity against what plain Hugging Face modules received and returned."""

import nnsight
import pytest
import tiny_models
import torch
from plain_forward import observe
from tiny_models import TEXTS, encode
from tiny_models import wrapped as wrap

from moe_interp.models import read_layers

QUANTITIES = (
    "input",
    "router_input",
    "router_logits",
    "router_probs",
    "expert_index",
    "routing_weights",
    "expert_outputs",
    "expert_contributions",
    "routed_output",
    "output",
)
families = pytest.mark.parametrize("family", tiny_models.FAMILIES)


def positioned(batch, side):
    """The batch with the positions that a left-padded row needs."""
    if side == "right":
        return batch
    positions = (batch["attention_mask"].cumsum(-1) - 1).clamp(min=0)
    return {**batch, "position_ids": positions}


def read_all(model, batch, names=QUANTITIES):
    layers = tuple(model.moe.values())
    if model.architecture.has_shared and names is QUANTITIES:
        names = (*names, "shared_output")
    with torch.no_grad(), model.nnsight.trace(batch):
        found = nnsight.save(read_layers(layers, names))
        logits = nnsight.save(model.nnsight.output.logits)
    return found, logits


def assert_close(found, expected, tolerance=1e-5):
    scale = expected.abs().max()
    assert float((found - expected).abs().max() / scale) <= tolerance


@families
@pytest.mark.parametrize("side", ["left", "right"])
def test_what_is_read_is_what_the_modules_received(family, side):
    batch = encode(side=side)
    plain = observe(tiny_models.build(family), lambda model: model(**positioned(batch, side)))
    found, logits = read_all(wrap(family), batch)
    assert torch.equal(logits, plain.result.logits)
    assert list(found) == list(plain.calls)
    for layer, (seen,) in plain.calls.items():
        read = found[layer]
        n_pos = batch["input_ids"].shape[1]
        grid = {
            "expert_index": seen.index,
            "routing_weights": seen.weights,
            "router_logits": seen.logits,
            "routed_output": seen.routed,
            "router_input": seen.router_input,
            "input": seen.block_input,
            "output": seen.block_output,
            "shared_output": seen.shared,
        }
        for name, expected in grid.items():
            if expected is None:
                continue
            if expected.dim() == 2:
                expected = expected.unflatten(0, (2, n_pos))
            assert torch.equal(read[name], expected), (layer, name)


@families
def test_expert_outputs_are_what_one_slot_alone_adds(family):
    batch = encode()
    hf = tiny_models.build(family)
    plain = observe(hf, lambda model: model(**positioned(batch, "left")))
    found, _ = read_all(wrap(family), batch)
    for layer, (seen,) in plain.calls.items():
        experts = next(
            module
            for name, module in hf.model.layers[layer].named_modules()
            if name.endswith(".experts")
        )
        for slot in range(2):
            only = torch.zeros_like(seen.weights)
            only[:, slot] = 1.0
            with torch.no_grad():
                output = experts(seen.hidden, seen.index, only).unflatten(0, (2, -1))
                weighted = experts(seen.hidden, seen.index, only * seen.weights)
            assert_close(found[layer]["expert_outputs"][:, :, slot], output)
            assert_close(
                found[layer]["expert_contributions"][:, :, slot], weighted.unflatten(0, (2, -1))
            )


@families
@pytest.mark.parametrize("experts_implementation", ["eager", "batched_mm", "grouped_mm"])
def test_contributions_and_shared_rebuild_the_block(family, experts_implementation):
    model = wrap(family, experts_implementation)
    found, _ = read_all(model, encode())
    for read in found.values():
        total = read["expert_contributions"].sum(2)
        assert_close(total, read["routed_output"], 1e-6)
        if "shared_output" in read:
            total = total + read["shared_output"]
        assert_close(total, read["output"])


@families
def test_router_probs_are_the_models_scores_of_all_experts(family):
    model = wrap(family)
    found, _ = read_all(model, encode())
    sigmoid = family in ("deepseek_v3", "glm4_moe")
    for read in found.values():
        logits = read["router_logits"].float()
        expected = torch.sigmoid(logits) if sigmoid else torch.softmax(logits, -1)
        assert torch.equal(read["router_probs"], expected)
    assert model.architecture.score_function == ("sigmoid" if sigmoid else "softmax")


@families
def test_bfloat16_contributions_rebuild_the_block(family):
    found, _ = read_all(wrap(family, dtype=torch.bfloat16), encode())
    for read in found.values():
        total = read["expert_contributions"].float().sum(2)
        if "shared_output" in read:
            total = total + read["shared_output"].float()
        assert_close(total, read["output"].float(), 1e-2)


@families
def test_each_invoke_sees_its_own_tokens_only(family):
    long, short = encode(TEXTS[:1]), encode(TEXTS[1:])
    together = encode()
    model = wrap(family)
    layers = tuple(model.moe.values())
    whole, _ = read_all(model, together)
    names = (*QUANTITIES, "shared_output") if model.architecture.has_shared else QUANTITIES
    with torch.no_grad(), model.nnsight.trace() as tracer:
        with tracer.invoke(long):
            first = nnsight.save(read_layers(layers, names))
        with tracer.invoke(short):
            second = nnsight.save(read_layers(layers, names))
    for row, found in enumerate((first, second)):
        for layer, read in found.items():
            for name, value in read.items():
                expected = whole[layer][name][row : row + 1]
                assert value.shape == expected.shape
                if name == "expert_index":
                    assert torch.equal(value, expected)
                else:
                    assert_close(value, expected)


def test_invokes_of_single_tokens_stay_apart():
    model = wrap("qwen2_moe")
    layers = tuple(model.moe.values())
    names = ("router_logits", "expert_index", "expert_contributions", "shared_output", "output")
    cake, bomb = encode(["cake"]), encode(["bomb"])
    with torch.no_grad(), model.nnsight.trace() as tracer:
        with tracer.invoke(cake):
            first = nnsight.save(read_layers(layers, names))
        with tracer.invoke(bomb):
            second = nnsight.save(read_layers(layers, names))
    for found, alone in ((first, cake), (second, bomb)):
        expected, _ = read_all(model, alone, names)
        for layer, read in found.items():
            for name, value in read.items():
                assert value.shape == expected[layer][name].shape
                assert_close(value.float(), expected[layer][name].float())


@families
def test_every_step_of_a_generation_is_read(family):
    batch, n_new = encode(), 4
    hf = tiny_models.build(family)
    plain = observe(hf, lambda m: m.generate(**batch, max_new_tokens=n_new, do_sample=False))
    model = wrap(family)
    layers = tuple(model.moe.values())
    names = ("router_logits", "expert_index", "routing_weights", "routed_output")
    n_steps = len(plain.calls[layers[0].layer])
    with model.generate(max_new_tokens=n_new, do_sample=False) as tracer:
        with tracer.invoke(batch):
            steps = nnsight.save([])
            for _ in tracer.iter[:n_steps]:
                steps.append(read_layers(layers, names))
        with tracer.invoke():
            tokens = nnsight.save(tracer.result)
    assert torch.equal(tokens, plain.result)
    assert len(steps) == n_steps
    for layer, calls in plain.calls.items():
        for seen, step in zip(calls, steps, strict=True):
            n_pos = seen.block_input.shape[1]
            assert torch.equal(step[layer]["expert_index"], seen.index.unflatten(0, (2, n_pos)))
            assert torch.equal(
                step[layer]["routing_weights"], seen.weights.unflatten(0, (2, n_pos))
            )
            assert torch.equal(step[layer]["router_logits"], seen.logits.unflatten(0, (2, n_pos)))
            assert torch.equal(step[layer]["routed_output"], seen.routed.unflatten(0, (2, n_pos)))


def test_invokes_of_a_generation_stay_apart_at_every_step():
    model = wrap("deepseek_v3")
    layers = tuple(model.moe.values())
    seen = {}
    for name, texts in (("alone", TEXTS[1:]), ("beside", TEXTS[:1])):
        batch = encode(texts)
        with model.generate(max_new_tokens=3, min_new_tokens=3, do_sample=False) as tracer:
            with tracer.invoke(encode(TEXTS[1:])):
                steps = nnsight.save([])
                for _ in tracer.iter[:3]:
                    steps.append(read_layers(layers, ("expert_index",)))
            if name == "beside":
                with tracer.invoke(batch):
                    others = nnsight.save([])
                    for _ in tracer.iter[:3]:
                        others.append(read_layers(layers, ("expert_index",)))
        seen[name] = steps
    n_pos = encode(TEXTS[1:])["input_ids"].shape[1]
    for alone, beside, other in zip(seen["alone"], seen["beside"], others, strict=True):
        for layer in model.moe:
            expected = alone[layer]["expert_index"]
            assert torch.equal(beside[layer]["expert_index"][:, -expected.shape[1] :], expected)
            assert other[layer]["expert_index"].shape == beside[layer]["expert_index"].shape
    assert n_pos < encode()["input_ids"].shape[1]


@families
def test_reading_takes_any_order_and_answers_in_the_order_asked(family):
    model = wrap(family)
    names = tuple(reversed(QUANTITIES))
    if model.architecture.has_shared:
        names = ("output", "shared_output", "router_logits", "expert_index")
    expected, _ = read_all(model, encode())
    layer = model.moe[1]
    with model.trace(encode()):
        found = layer.read(*names).save()
    assert tuple(found) == names
    for name in names:
        assert torch.equal(found[name], expected[1][name])


@families
def test_properties_give_what_read_gives(family):
    model = wrap(family)
    expected, _ = read_all(model, encode())
    with model.trace(encode()):
        layer = model.moe[1]
        router_input = layer.router_input.save()
        logits = layer.router_logits.save()
        probs = layer.router_probs.save()
        index = layer.expert_index.save()
        weights = layer.routing_weights.save()
        outputs = layer.expert_outputs.save()
        contributions = layer.expert_contributions.save()
        routed = layer.routed_output.save()
        output = layer.output.save()
    found = [router_input, logits, probs, index, weights, outputs, contributions, routed, output]
    for value, name in zip(found, QUANTITIES[1:], strict=True):
        assert torch.equal(value, expected[1][name]), name


@pytest.mark.parametrize("family", ["qwen2_moe", "deepseek_v2", "deepseek_v3", "glm4_moe"])
def test_the_shared_expert_is_a_property(family):
    model = wrap(family)
    expected, _ = read_all(model, encode())
    with model.trace(encode()):
        shared = model.moe[2].shared_output.save()
    assert model.moe[2].has_shared
    assert torch.equal(shared, expected[2]["shared_output"])


def test_a_layer_without_shared_expert_says_so():
    model = wrap("mixtral")
    with (
        pytest.raises(
            ValueError,
            match=r"Layer 1 does not offer `shared_output`: it has no shared expert; see",
        ),
        model.trace(encode()),
    ):
        model.moe[1].shared_output.save()


def test_an_unknown_quantity_is_refused_with_the_known_ones():
    model = wrap("mixtral")
    with (
        pytest.raises(ValueError, match=r"`gate` is no quantity of a MoE layer. Known: .*'input'"),
        model.trace(encode()),
    ):
        model.moe[1].read("gate").save()


@families
def test_gradients_reach_the_weights_that_were_read(family):
    batch = encode()
    model = wrap(family, "eager", dtype=torch.float64)
    layers = tuple(model.moe.values())
    with model.trace(batch):
        weights = nnsight.save({layer.layer: layer.routing_weights for layer in layers})
        metric = nnsight.save(model.nnsight.output.logits[:, -1, 7].sum())
    grads = dict(zip(weights, torch.autograd.grad(metric, list(weights.values())), strict=True))
    layer = layers[-2]
    with model.trace(batch):
        own = layer.routing_weights
        inside = model.nnsight.output.logits[:, -1, 7].sum()
        with inside.backward():
            gradient = own.grad.save()
    assert_close(gradient, grads[layer.layer], 1e-12)
    step = torch.zeros_like(weights[layer.layer])
    step[0, -1, 1] = 1e-3
    ends = []
    for sign in (1, -1):
        with torch.no_grad(), model.trace(batch):
            layer.routing_weights = layer.routing_weights + sign * step
            ends.append(nnsight.save(model.nnsight.output.logits[:, -1, 7].sum()))
    slope = float(ends[0] - ends[1]) / 2e-3
    expected = float(grads[layer.layer][0, -1, 1])
    assert abs(expected) > 1e-7
    assert slope == pytest.approx(expected, rel=1e-2)  # some routers round to float32


def test_gradients_reach_the_logits_and_each_invoke():
    model = wrap("mixtral")
    layer = model.moe[1]
    with model.trace(encode()):
        logits = layer.router_logits.save()
        metric = model.nnsight.output.logits[:, -1, 7].sum().save()
    whole = torch.autograd.grad(metric, logits)[0]
    with model.trace() as tracer:
        with tracer.invoke(encode(TEXTS[:1])):
            first = layer.router_logits.save()
            one = model.nnsight.output.logits[:, -1, 7].sum().save()
        with tracer.invoke(encode(TEXTS[1:])):
            second = layer.router_logits.save()
            two = model.nnsight.output.logits[:, -1, 7].sum().save()
    found = torch.autograd.grad(one + two, [first, second])
    assert float(whole.abs().max()) > 0
    assert_close(found[0], whole[:1], 1e-4)
    assert_close(found[1], whole[1:], 1e-4)
