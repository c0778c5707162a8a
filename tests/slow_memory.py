"""Mixed and shifted routing written out in plain torch, token by token, for OLMoE models."""

from contextlib import contextmanager

import torch


def mixed_weights(seen, own, memory, layer, n_neighbours, half, floor):
    """The routing of one token as a dense vector, by the formula."""
    keys = memory.keys[layer].double()
    distances = [float(((seen.double() - key) ** 2).sum()) for key in keys]
    nearest = sorted(range(len(keys)), key=lambda j: (distances[j], j))[:n_neighbours]
    reach = (half * memory.spacing(layer)) ** 2
    alike = [2 ** (-distances[j] / reach) for j in nearest]
    alike = [one if one >= floor else 0.0 for one in alike]
    share = sum(alike) / len(alike)
    if share == 0:
        return own
    mixed = (1 - share) * own
    for one, j in zip(alike, nearest, strict=True):
        value = torch.zeros_like(own)
        value[memory.index[layer][j]] = memory.weights[layer][j].to(own.dtype)
        mixed = mixed + share * one / sum(alike) * value
    return mixed


def expert(experts, number, hidden):
    gate, up = (experts.gate_up_proj[number] @ hidden).chunk(2)
    return experts.down_proj[number] @ (torch.nn.functional.silu(gate) * up)


@contextmanager
def routed_by(model, change):
    """Let every block of an OLMoE model route each token by `change(layer, token, seen, logits)`.

    It gives the weight of every expert.
    """
    layers = model.model.layers
    before = [layer.mlp.forward for layer in layers]

    def forward_of(number, block):
        def forward(hidden_states):
            out = []
            for place, hidden in enumerate(hidden_states[0]):
                dense = change(number, place, hidden, block.gate.weight @ hidden)
                chosen = [e for e in range(len(dense)) if dense[e] != 0]
                out.append(sum(dense[e] * expert(block.experts, e, hidden) for e in chosen))
            return torch.stack(out)[None]

        return forward

    for number, layer in enumerate(layers):
        layer.mlp.forward = forward_of(number, layer.mlp)
    try:
        yield
    finally:
        for layer, forward in zip(layers, before, strict=True):
            layer.mlp.forward = forward


def chosen_weights(logits, top_k):
    """What the router of an organism gives: a softmax over the chosen experts."""
    values, index = logits.topk(top_k)
    return torch.zeros_like(logits).scatter(0, index, values.softmax(0))
