"""What the modules of a Hugging Face model receive and return, seen by plain PyTorch hooks.

The oracle of the access tests: it shares no code with `moe_interp.models`, and says for itself
where each family keeps its routers.
"""

from dataclasses import dataclass, field

import torch

# Family -> (block, router, shared expert) as named in the decoder layer and in the block.
PLACES = {
    "mixtral": ("mlp", "gate", None),
    "olmoe": ("mlp", "gate", None),
    "qwen2_moe": ("mlp", "gate", "shared_expert"),
    "qwen3_moe": ("mlp", "gate", None),
    "deepseek_v2": ("mlp", "gate", "shared_experts"),
    "deepseek_v3": ("mlp", "gate", "shared_experts"),
    "gpt_oss": ("mlp", "router", None),
    "granitemoe": ("block_sparse_moe", "router", None),
    "glm4_moe": ("mlp", "gate", "shared_experts"),
    "phimoe": ("mlp", "router", None),
}


@dataclass
class Seen:
    """One call of one MoE layer; tokens are flattened where the model flattens them."""

    hidden: torch.Tensor = None
    index: torch.Tensor = None
    weights: torch.Tensor = None
    routed: torch.Tensor = None
    router_input: torch.Tensor = None
    logits: torch.Tensor = None
    shared: torch.Tensor = None
    block_input: torch.Tensor = None
    block_output: torch.Tensor = None


@dataclass
class Observation:
    """All calls of each MoE layer, in order, and what the model returned."""

    calls: dict[int, list[Seen]] = field(default_factory=dict)
    result: object = None


def observe(model, run) -> Observation:
    """Run ``run(model)`` under hooks on every MoE layer of a plain Hugging Face model."""
    block_name, router_name, shared_name = PLACES[model.config.model_type]
    observation, handles = Observation(), []

    def watch(layer, block):
        calls = observation.calls.setdefault(layer, [])

        def block_enters(_, args, kwargs):
            calls.append(Seen(block_input=(args or tuple(kwargs.values()))[0].clone()))

        def block_leaves(_, args, output):
            calls[-1].block_output = (output[0] if isinstance(output, tuple) else output).clone()

        def router_enters(_, args, kwargs):
            calls[-1].router_input = (args or tuple(kwargs.values()))[0].clone()

        def router_leaves(_, args, output):
            calls[-1].logits = output[0].clone()

        def experts_enter(_, args, kwargs):
            given = [*args, *kwargs.values()]
            calls[-1].hidden, calls[-1].index, calls[-1].weights = [v.clone() for v in given]

        def experts_leave(_, args, output):
            calls[-1].routed = output.clone()

        router = getattr(block, router_name)
        handles.extend(
            (
                block.register_forward_pre_hook(block_enters, with_kwargs=True),
                block.register_forward_hook(block_leaves),
                router.register_forward_pre_hook(router_enters, with_kwargs=True),
                router.register_forward_hook(router_leaves),
                block.experts.register_forward_pre_hook(experts_enter, with_kwargs=True),
                block.experts.register_forward_hook(experts_leave),
            )
        )
        if shared_name is None:
            return

        def shared_leaves(_, args, output):
            calls[-1].shared = output.clone()

        handles.append(getattr(block, shared_name).register_forward_hook(shared_leaves))
        if hasattr(block, "shared_expert_gate"):

            def gate_leaves(_, args, output):
                calls[-1].shared = torch.nn.functional.sigmoid(output) * calls[-1].shared

            handles.append(block.shared_expert_gate.register_forward_hook(gate_leaves))

    for number, layer in enumerate(model.model.layers):
        block = getattr(layer, block_name)
        if hasattr(block, "experts"):
            watch(number, block)
    with torch.no_grad():
        observation.result = run(model)
    for handle in handles:
        handle.remove()
    return observation
