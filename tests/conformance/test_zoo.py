"""The zoo is complete: it builds all routed experts of transformers, or says why not."""

import re
from pathlib import Path

import pytest
import torch
import transformers
import zoo
import zoo_runs

pytestmark = pytest.mark.conformance

MODELS = Path(transformers.__file__).parent / "models"
# Experts as transformers marks them: by name, by the decorator that lets it choose how to run them,
# and by what it records router logits of.
EXPERTS = re.compile(
    r"^class (\w*Experts)\(|^@use_experts_implementation[^\n]*\nclass (\w+)\(", re.MULTILINE
)
RECORDED = re.compile(r"^ +\"router_logits\": (.*)$", re.MULTILINE)


def declared():
    """Every class that holds or routes to experts, and the file that declares it."""
    found = {}
    for file in sorted(MODELS.glob("*/modeling_*.py")):
        text = file.read_text(encoding="utf-8")
        names = {name for pair in EXPERTS.findall(text) for name in pair if name}
        for line in RECORDED.findall(text):
            names |= set(re.findall(r"OutputRecorder\((\w+)", line))
            names |= set(re.findall(r"^(\w+),$", line))
        found |= dict.fromkeys(names, file.parent.name)
    return found


def test_every_class_of_experts_is_built_or_has_a_reason():
    built = set()
    for name in zoo.FAMILIES:
        built |= {type(module).__name__ for module in zoo.build(name).modules()}
    missing = {name: file for name, file in declared().items() if name not in built}
    assert missing.keys() == zoo.UNBUILT.keys()


def test_the_walk_finds_what_is_known_to_be_there():
    found = declared()
    assert len(set(found.values())) >= 70
    assert {"MixtralExperts", "MixtralTopKRouter", "JetMoeTopKGating", "DogeCDMoE"} <= found.keys()


@pytest.mark.parametrize("family", zoo_runs.FAMILIES)
def test_a_family_routes_in_earnest(family):
    plain = zoo_runs.plain_prefill(family, zoo_runs.implementations(family)[-1])
    assert torch.isfinite(plain.result.logits).all()
    for (call,) in plain.all_calls().values():
        index, weights = call.values["expert_index"], call.values["routing_weights"]
        assert len(index.unique()) > 2
        assert len(weights.unique()) > 1


@pytest.mark.parametrize("family", zoo_runs.FAMILIES)
def test_the_implementations_of_a_family_are_those_of_transformers(family):
    model = zoo.build(family)
    experts = [
        module
        for module in model.modules()
        if type(module).__name__.endswith("Experts")
        and hasattr(type(module).forward, "__wrapped__")
    ]
    assert bool(experts) == (family not in zoo_runs.NATIVE)
