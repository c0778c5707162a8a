"""What interventions refuse, and what they say."""

import re

import numpy as np
import pytest

from moe_interp import Ban, Zero, record_routing, run
from moe_interp.errors import UnsupportedQuantityError
from moe_interp.interventions import (
    AddVector,
    Force,
    Mean,
    PatchBlock,
    PatchOutput,
    Renormalise,
    Resample,
    Scale,
    Steer,
    Transplant,
    edited,
    mean_outputs,
    outputs_of,
    patch,
    routing_of,
)


@pytest.fixture(scope="module")
def model(tiny_model):
    return tiny_model("olmoe")


@pytest.fixture(scope="module")
def routing(model, texts):
    return routing_of(model, texts)


@pytest.fixture(scope="module")
def outputs(model, texts):
    return outputs_of(model, texts, [1])


def refused(kind, said):
    return pytest.raises(kind, match=re.escape(said))


def test_a_mean_needs_a_reference_with_the_expert(model, texts):
    with refused(ValueError, "Mean needs a `reference`: mean_outputs(model, prompts, experts)"):
        Mean("L1E0")
    reference = mean_outputs(model, ["help"], [1])
    never = int((reference.counts[1] == 0).nonzero()[0])
    with refused(ValueError, f"Expert L1E{never} was never chosen in the reference, so it has no"):
        Mean([(1, never)], reference)
    with refused(ValueError, "The reference does not hold layer 2; it holds layers 1."):
        Mean("L2E0", reference)
    with refused(ValueError, "must give every expert of a layer one vector (d_model), got shapes"):
        Mean("L1E0", {"L1E0": [0.0] * 32, "L1E1": [0.0] * 31})
    with refused(
        ValueError,
        "Layer 1: the vectors given for its experts have 31 numbers, but its experts write 32.",
    ):
        run(model, texts, Mean("L1E0", {"L1E0": [0.0] * 31}))
    with refused(
        ValueError, "`quantity` must be one of ('expert_outputs', 'expert_contributions')"
    ):
        mean_outputs(model, texts, quantity="output")


def test_resampling_needs_outputs_of_the_expert(model, texts, routing):
    rng = np.random.default_rng(0)
    with refused(ValueError, "`reference` of Resample must hold one of ('expert_outputs', 'expert"):
        Resample("L1E0", routing, rng=rng)
    few = outputs_of(model, ["help"], [1])
    chosen = few.values[1]["expert_index"][0].flatten().tolist()
    never = next(expert for expert in range(8) if expert not in chosen)
    with refused(ValueError, f"Expert L1E{never} was never chosen in the reference"):
        Resample([(1, never)], few, rng=rng)


def test_a_transplant_goes_token_by_token(model, texts, routing):
    longer = [*texts[:2], "help me now", texts[3]]
    said = (
        "Prompt 2 has 3 tokens, but prompt 'p0002' of the source has 2. What is taken from another"
    )
    with refused(ValueError, said):
        run(model, longer, Transplant(routing))
    with refused(ValueError, "The source holds 4 prompts, but prompt 4 (counted from 0) runs."):
        run(model, [*texts, "help"], Transplant(routing))
    with refused(ValueError, "The source does not hold layer 7; it holds layers 0, 1, 2."):
        Transplant(routing, [7])
    with refused(ValueError, "`part` must be one of ('both', 'index'), got 'weights'."):
        Transplant(routing, part="weights")
    with refused(ValueError, "`phase` of Transplant must be 'prefill', got 'both': its source"):
        Transplant(routing, phase="both")
    record = record_routing(model, texts, quantities=("expert_index",))
    with refused(ValueError, "The source holds expert_index, not `routing_weights`."):
        Transplant(record)


def test_a_transplant_needs_the_same_routing(tiny_model, texts, routing):
    other = tiny_model("olmoe-top1")
    layers = [layer for layer in other.moe if layer in routing.layers]
    with refused(ValueError, "The source chooses 2 experts, up to number 7, in layer"):
        run(other, texts, Transplant(routing, layers))


def test_a_patch_needs_what_it_takes(model, texts, routing, outputs):
    with refused(ValueError, "The source holds expert_index, expert_contributions, output, not"):
        PatchOutput("L1E0", outputs, quantity="expert_outputs")
    with refused(
        ValueError, "`quantity` must be one of ('expert_outputs', 'expert_contributions')"
    ):
        PatchOutput("L1E0", outputs, quantity="output")
    with refused(ValueError, "The source does not hold layer 2; it holds layers 1."):
        PatchBlock([2], outputs)
    with refused(ValueError, "Prompt 0 has 1 tokens, but prompt 'p0000' of the source has 6."):
        run(model, ["help"], PatchOutput("L1E0", outputs))
    with refused(ValueError, "`quantities` must be some of ('expert_outputs', 'expert_contrib"):
        outputs_of(model, texts, quantities=["input"])
    with refused(ValueError, "There is no layer 9 in 'OlmoeForCausalLM', whose MoE layers are 0–2"):
        outputs_of(model, texts, [9])
    metric = {"metric": lambda logits: logits[:, 0]}
    with refused(ValueError, "Give either `experts` or `layers` to patch"):
        patch(model, texts, texts, **metric)
    with refused(ValueError, "`direction` must be one of ('denoise', 'noise'), got 'up'."):
        patch(model, texts, texts, layers=[1], direction="up", **metric)
    with refused(ValueError, "`clean` has 4 prompts and `corrupted` 1."):
        patch(model, texts, ["help"], layers=[1], **metric)


def test_llama_4_has_no_unweighted_outputs(tiny_model, texts):
    model = tiny_model("llama4_text")
    with pytest.raises(UnsupportedQuantityError, match=r"Layer 1 does not offer `expert_outputs`"):
        mean_outputs(model, texts, [1])
    with pytest.raises(UnsupportedQuantityError, match=r"Layer 1 does not offer `expert_outputs`"):
        outputs_of(model, texts, [1], quantities=["expert_outputs"])
    given = Mean("L1E0", {"L1E0": [0.0] * 32})
    with pytest.raises(UnsupportedQuantityError, match=r"Average `expert_contributions` instead"):
        run(model, texts, given)


def test_numbers_that_make_no_sense_are_refused(model, texts):
    with refused(ValueError, "`factor` must be a finite number, got nan."):
        Scale("L1E0", float("nan"))
    with refused(ValueError, "`margin` must be 'max', 'min' or None, got 'most'."):
        Steer("L1E0", margin="most")
    with refused(TypeError, "`shifts` must say by how much, as in {'L3E8': 2.0}, got 'L1E0'."):
        Steer("L1E0")
    with refused(ValueError, "`shifts` of L1E0 is not a number (NaN)."):
        Steer({"L1E0": float("nan")})
    with refused(ValueError, "`shifts` gives layer 1 7 numbers, but it has 8 experts."):
        run(model, texts, Steer({1: [0.0] * 7}))
    with refused(ValueError, "There is no layer 5 in 'OlmoeForCausalLM'"):
        run(model, texts, Steer({5: [0.0] * 8}))
    with refused(ValueError, "Layer 1 of 'OlmoeForCausalLM' has experts 0–7, got 9."):
        run(model, texts, Steer({"L1E9": 1.0}))
    with refused(ValueError, "`vector` has 31 numbers, but 'OlmoeForCausalLM' has 32 dimensions."):
        run(model, texts, AddVector(1, [0.0] * 31))
    with refused(ValueError, "`vector` must hold finite numbers, but some are not."):
        AddVector(1, [float("inf")] * 32)
    with refused(ValueError, "There is no layer -1 in 'OlmoeForCausalLM'"):
        run(model, texts, AddVector(-1, [0.0] * 32))
    with refused(ValueError, "Forcing 3 experts of layer 1, which chooses 2 for each token."):
        run(model, texts, Force("L1E0,L1E1,L1E2"))
    with refused(ValueError, "Layer 1: more experts are forced than the 2 that it chooses"):
        run(model, texts, [Force("L1E0,L1E1"), Force("L1E2")])
    with refused(ValueError, "`phase` must be one of ('prefill', 'decode', 'both'), got 'now'."):
        AddVector(1, [0.0] * 32, phase="now")


OF_EXPERTS = {
    "ban": Ban,
    "zero": Zero,
    "renormalise": Renormalise,
    "scale": lambda experts: Scale(experts, 2.0),
    "force": Force,
    "steer": lambda experts: Steer(experts, margin="max"),
    "mean": lambda experts: Mean(experts, dict.fromkeys(experts, [0.0] * 32)),
}


@pytest.mark.parametrize("kind", OF_EXPERTS)
def test_every_intervention_names_the_experts_and_layers_there_are(kind, tiny_model, texts):
    model = tiny_model("deepseek_v3")
    for place, said in (
        ((1, 8), "Layer 1 of 'DeepseekV3ForCausalLM' has experts 0–7, got 8."),
        ((3, 0), "There is no layer 3 in 'DeepseekV3ForCausalLM', whose MoE layers are 1–2."),
        (
            (0, 0),
            "Layer 0 of 'DeepseekV3ForCausalLM' is dense, it has no experts. MoE layers: 1–2.",
        ),
    ):
        with refused(ValueError, said):
            run(model, texts, OF_EXPERTS[kind]([place]))
        with refused(ValueError, said):
            edited(model, OF_EXPERTS[kind]([place]))


def test_a_dense_layer_has_nothing_to_take_or_add(tiny_model, texts):
    model = tiny_model("deepseek_v3")
    said = "Layer 0 of 'DeepseekV3ForCausalLM' is dense, it has no experts. MoE layers: 1–2."
    for attempt in (
        lambda: run(model, texts, AddVector(0, [0.0] * 32)),
        lambda: routing_of(model, texts, [0]),
        lambda: outputs_of(model, texts, [0]),
        lambda: mean_outputs(model, texts, [0]),
    ):
        with refused(ValueError, said):
            attempt()
    elsewhere = tiny_model("olmoe")
    for change in (
        Transplant(routing_of(elsewhere, texts)),
        PatchBlock([0], outputs_of(elsewhere, texts, [0])),
        PatchOutput("L0E1", outputs_of(elsewhere, texts, [0])),
    ):
        with refused(ValueError, said):
            run(model, texts, change)
