"""Routing made small before it travels: compact integers, half precision, one tensor a quantity.

Plain code, for the reasons given in ``_traced_parts``.
"""

import torch
from torch import Tensor

# What is kept at half precision: a router's choice does not hang on it any more.
HALVES = ("routing_weights", "router_probs")


def pack(recorded: "dict[int, dict[str, Tensor]]", n_experts: "int") -> "dict[str, Tensor]":
    """Stack what layers recorded, layer by layer, in the smallest format that holds it.

    Indices become bytes, or two bytes each where there are more than 256 experts. Routing weights
    and probabilities become half precision, unless they were double. Logits stay as they are.
    """
    packed = {}
    for name in next(iter(recorded.values())):
        stacked = torch.stack([found[name].detach().cpu() for found in recorded.values()])
        if name == "expert_index":
            stacked = stacked.to(torch.uint8 if n_experts <= 256 else torch.int16)
        elif name in HALVES and stacked.dtype != torch.float64:
            stacked = stacked.to(torch.float16)
        elif name == "random_slots":
            stacked = stacked.to(torch.float32)
        packed[name] = stacked
    return packed
