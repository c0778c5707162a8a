"""Changes of routing and experts written a second time: PyTorch hooks and loops over tokens."""

from contextlib import contextmanager

import plain_hooks
import torch

ROUTERS = {
    **plain_hooks.ROUTERS,
    "llama4_text": "feed_forward.router",
    "zaya": "mlp.gate",
}


class Change:
    """What happens in one layer of one prompt; by default nothing. Tokens count from 0."""

    def logits(self, logits):
        return logits

    def choose(self, scores, top_k):
        return scores.topk(top_k).indices

    def weigh(self, index, weights):
        return weights

    def contribution(self, token, expert, output, weight):
        return weight * output

    def further(self, token, experts):
        return 0.0

    def output(self, output):
        return output


class Recorder(Change):
    """Changes nothing and remembers everything."""

    def __init__(self):
        self.index, self.weights, self.block = None, None, None
        self.written = {}

    def weigh(self, index, weights):
        self.index, self.weights = index, weights
        return weights

    def contribution(self, token, expert, output, weight):
        self.written[token, expert] = (output.clone(), weight * output)
        return weight * output

    def output(self, output):
        self.block = output.clone()
        return output


@contextmanager
def changed(model, changes):
    """Run with ``{layer: Change}`` while the block lasts; one prompt at a time, no cache."""
    config, places = model.config, []
    path = ROUTERS[config.model_type]
    block = path.rsplit(".", 1)[0]
    for layer, change in changes.items():
        root = f"model.layers.{layer}."
        routed = _llama4_router if config.model_type == "llama4_text" else _router
        summed = _llama4_experts if config.model_type == "llama4_text" else _experts
        experts = model.get_submodule(f"{root}{block}.experts")
        kept = {}
        places += [
            (model.get_submodule(root + path), routed(config, change, kept), False),
            (experts, summed(change, kept), False),
            (model.get_submodule(root + block), _block(change), False),
        ]
    with plain_hooks.hooked(places):
        yield


def _router(config, change, kept):
    def hook(router, args, output):
        logits = change.logits(output[0])
        index, weights = plain_hooks.weigh(
            config, router, logits, lambda scores: change.choose(scores, config.num_experts_per_tok)
        )
        weights = change.weigh(index, weights)
        kept["index"] = index
        if config.model_type == "zaya":
            skips = index == config.num_experts
            index, weights = index.masked_fill(skips, 0), weights.masked_fill(skips, 0.0)
        return (logits, weights.to(output[1].dtype), index, *output[3:])

    return hook


def _experts(change, kept):
    def hook(module, args, output):
        hidden, _, weights = args
        rows, total = hidden.reshape(-1, hidden.shape[-1]), []
        for token, row in enumerate(rows):
            added = torch.zeros_like(row)
            chosen = kept["index"][token].tolist()
            for expert, weight in zip(chosen, weights[token], strict=True):
                alone = torch.tensor([[expert]]), torch.ones(1, 1)
                skips = expert == module.num_experts
                written = torch.zeros_like(row) if skips else module.forward(row[None], *alone)
                written = written.reshape(-1)
                added = added + change.contribution(token, expert, written, weight)
            total.append(added + change.further(token, chosen))
        return torch.stack(total).reshape(output.shape)

    return hook


def _llama4_router(config, change, kept):
    def hook(router, args, output):
        logits = change.logits(output[1])
        index = change.choose(logits, config.num_experts_per_tok)
        weights = change.weigh(index, logits.gather(-1, index).sigmoid())
        kept["index"] = index
        return torch.zeros_like(logits).scatter(-1, index, weights), logits

    return hook


def _llama4_experts(change, kept):
    # What an expert wrote was made of an input that its weight had multiplied already.
    def hook(module, args, output):
        index = kept["index"]
        by_expert = output.reshape(module.num_experts, len(index), -1).clone()
        for token, row in enumerate(index.tolist()):
            for expert in row:
                written = by_expert[expert, token].clone()
                by_expert[expert, token] = change.contribution(token, expert, written, 1.0)
            by_expert[row[0], token] += change.further(token, row)
        return by_expert.reshape(output.shape)

    return hook


def _block(change):
    def hook(module, args, output):
        own = output[0] if isinstance(output, tuple) else output
        new = change.output(own.reshape(-1, own.shape[-1])).reshape(own.shape)
        return (new, *output[1:]) if isinstance(output, tuple) else new

    return hook
