"""Ban and Zero written a second time, with nothing but PyTorch hooks and each router's formula."""

from contextlib import contextmanager

import torch

ROUTERS = {
    "mixtral": "mlp.gate",
    "olmoe": "mlp.gate",
    "qwen2_moe": "mlp.gate",
    "qwen3_moe": "mlp.gate",
    "deepseek_v3": "mlp.gate",
    "gpt_oss": "mlp.router",
    "granitemoe": "block_sparse_moe.router",
}


def weigh(config, router, logits, chosen_by):
    """Index and weights of a router from its logits; `chosen_by` turns scores into an index."""
    family = config.model_type
    if family in ("gpt_oss", "granitemoe"):
        index = chosen_by(logits)
        return index, logits.gather(-1, index).float().softmax(-1)
    if family == "deepseek_v3":
        scores = logits.float().sigmoid()
        biased = scores + router.e_score_correction_bias
        groups = biased.view(len(biased), config.n_group, -1)
        kept = groups.topk(2, dim=-1).values.sum(-1).topk(config.topk_group, dim=-1).indices
        allowed = torch.zeros(groups.shape[:2], dtype=torch.bool).scatter(1, kept, True)
        index = chosen_by(biased.masked_fill(~allowed.repeat_interleave(groups.shape[2], 1), 0.0))
        weights = scores.gather(-1, index)
        return index, config.routed_scaling_factor * weights / (weights.sum(-1, True) + 1e-20)
    scores = logits.float().softmax(-1)
    if family == "zaya":
        index = chosen_by(scores + router.balancing_biases)
        # The last class is no expert: it skips them.
        return index, scores.gather(-1, index).masked_fill(index == config.num_experts, 0.0)
    index = chosen_by(scores)
    weights = scores.gather(-1, index)
    if family == "mixtral" or config.norm_topk_prob:
        weights = weights / weights.sum(-1, True)
    return index, weights


@contextmanager
def banned(model, experts):
    """Ban experts ({layer: ids}) at every token while the block lasts."""
    top_k = model.config.num_experts_per_tok

    def hook_of(ids):
        def hook(router, args, output):
            logits = output[0]
            taken = torch.zeros(logits.shape[-1], dtype=torch.bool)
            taken[list(ids)] = True
            index, weights = weigh(
                model.config,
                router,
                logits,
                lambda scores: scores.masked_fill(taken, float("-inf")).topk(top_k).indices,
            )
            return (logits, weights.to(output[1].dtype), index, *output[3:])

        return hook

    path = ROUTERS[model.config.model_type]
    with hooked(
        (model.get_submodule(f"model.layers.{layer}.{path}"), hook_of(ids), False)
        for layer, ids in experts.items()
    ):
        yield


@contextmanager
def zeroed(model, experts):
    """Give experts ({layer: ids}) weight 0 at every token while the block lasts."""

    def hook_of(ids):
        def hook(module, args):
            hidden, index, weights = args
            hit = torch.isin(index, torch.tensor(list(ids)))
            return hidden, index, torch.where(hit, torch.zeros_like(weights), weights)

        return hook

    block = ROUTERS[model.config.model_type].rsplit(".", 1)[0]
    with hooked(
        (model.get_submodule(f"model.layers.{layer}.{block}.experts"), hook_of(ids), True)
        for layer, ids in experts.items()
    ):
        yield


@contextmanager
def hooked(places):
    handles = [
        module.register_forward_pre_hook(hook) if before else module.register_forward_hook(hook)
        for module, hook, before in places
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def next_logits(model, ids):
    """Next-token logits of one prompt, alone and without padding."""
    with torch.no_grad():
        return model(input_ids=torch.tensor([ids])).logits[0, -1]


def greedy(model, ids, n_tokens, ends):
    """Greedy continuation of one prompt, alone, without a cache, up to and with an end token."""
    ids = list(ids)
    for step in range(n_tokens):
        ids.append(int(next_logits(model, ids).argmax()))
        if ids[-1] in ends:
            return tuple(ids[-step - 1 :])
    return tuple(ids[-n_tokens:])
