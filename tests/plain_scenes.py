"""What interventions should do, written a second time: scenes, and changes of plain code.

A `Scene` holds a model twice, and what other prompts compute in its plain half. Each entry of
`CASES` is an intervention beside a `Change` (see `plain_changes`) that should do the same.
"""

import functools

import numpy as np
import plain_hooks
import torch
from plain_changes import Change, Recorder, changed

from moe_interp import Ban, Zero
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
    mean_outputs,
    outputs_of,
    routing_of,
)

LAYERS = (1, 2)
EXPERTS = {1: (0, 2, 5), 2: (1, 5, 6)}
NAMED = [(layer, expert) for layer, ids in EXPERTS.items() for expert in ids]
FORCED = {1: 6, 2: 3}
VECTOR = torch.linspace(-1, 1, 32)
SEED = 7


class Scene:
    """A model twice, prompts, and other prompts with as many words that values are taken from."""

    def __init__(self, family, model, plain, texts):
        self.family, self.model, self.plain, self.texts = family, model, plain, texts
        self.others = [" ".join(reversed(text.split())) for text in texts]
        self.weighs_input = family == "llama4_text"
        self.quantity = "expert_contributions" if self.weighs_input else "expert_outputs"
        self.recorded = [self.record(text) for text in self.others]
        self.pool = functools.cache(self.pool)
        self.chosen_by_others = functools.cache(self.chosen_by_others)

    def ids(self, text):
        return self.model.tokenizer(text)["input_ids"]

    def record(self, text):
        recorders = {layer: Recorder() for layer in LAYERS}
        with changed(self.plain, recorders):
            plain_hooks.next_logits(self.plain, self.ids(text))
        return recorders

    def pool(self, layer, expert, *, weighted=False):
        """What an expert wrote at the tokens of the other prompts that chose it, in their order."""
        place = 1 if weighted or self.weighs_input else 0
        return [
            recorders[layer].written[token, chosen][place]
            for recorders in self.recorded
            for token, chosen in sorted(recorders[layer].written)
            if chosen == expert
        ]

    def chosen_by_others(self):
        return [
            (layer, expert)
            for layer, expert in NAMED
            if any(e == expert for r in self.recorded for _, e in r[layer].written)
        ]


class Where(Change):
    """Another change, at some tokens only: those whose number `holds` accepts."""

    def __init__(self, inner, holds):
        self.inner, self.holds = inner, holds

    def some(self, changed, own):
        held = torch.tensor([self.holds(token) for token in range(len(own))])
        return torch.where(held[:, None], changed, own)

    def logits(self, logits):
        return self.some(self.inner.logits(logits), logits)

    def choose(self, scores, top_k):
        return self.some(self.inner.choose(scores, top_k), super().choose(scores, top_k))

    def weigh(self, index, weights):
        return self.some(self.inner.weigh(index, weights), weights)

    def contribution(self, token, *written):
        return (self.inner if self.holds(token) else super()).contribution(token, *written)

    def further(self, token, experts):
        return (self.inner if self.holds(token) else super()).further(token, experts)

    def output(self, output):
        return self.some(self.inner.output(output), output)


class OfExperts(Change):
    """Speaks of the experts of `EXPERTS`, in one layer of one prompt."""

    def __init__(self, scene, layer, prompt):
        self.scene, self.layer, self.prompt, self.experts = scene, layer, prompt, EXPERTS[layer]
        self.source = scene.recorded[prompt][layer]
        self.n_tokens = len(self.source.index)


class Banned(OfExperts):
    def choose(self, scores, top_k):
        left = scores.clone()
        left[:, list(self.experts)] = float("-inf")
        return left.topk(top_k).indices


class Silenced(OfExperts):
    def contribution(self, token, expert, output, weight):
        return 0.0 * output if expert in self.experts else weight * output


class Renormalised(OfExperts):
    def weigh(self, index, weights):
        new = weights.clone()
        for token, row in enumerate(index.tolist()):
            hit = [expert in self.experts for expert in row]
            left = sum(float(w) for w, gone in zip(weights[token], hit, strict=True) if not gone)
            for slot, gone in enumerate(hit):
                grown = float(weights[token].sum()) / left if left and any(hit) else 1.0
                new[token, slot] = 0.0 if gone else weights[token, slot] * grown
        return new


class Scaled(OfExperts):
    def contribution(self, token, expert, output, weight):
        return weight * output * (-1.5 if expert in self.experts else 1.0)


class Averaged(OfExperts):
    def contribution(self, token, expert, output, weight):
        if (self.layer, expert) in self.scene.chosen_by_others():
            output = _mean(self.scene.pool(self.layer, expert))
        return weight * output


class AveragedWeighted(OfExperts):
    def contribution(self, token, expert, output, weight):
        if (self.layer, expert) in self.scene.chosen_by_others():
            return _mean(self.scene.pool(self.layer, expert, weighted=True))
        return weight * output


def _mean(vectors):
    return torch.stack(vectors).double().mean(0).float()


class Redrawn(OfExperts):
    """The rule of `Resample`: of n outputs number floor(u n), u by layer, prompt and token."""

    weighted = False

    def __init__(self, scene, layer, prompt):
        super().__init__(scene, layer, prompt)
        state = int(np.random.default_rng(SEED).integers(2**62))
        n_tokens = len(scene.ids(scene.texts[prompt]))
        of_prompt, of_text = (
            np.random.default_rng([state, layer, prompt, phase]) for phase in (0, 1)
        )
        ids = range(scene.model.moe[layer].n_experts)
        self.drawn = [[of_prompt.random() for _ in ids] for _ in range(n_tokens)]
        self.drawn_later = [of_text.random() for _ in ids]

    def contribution(self, token, expert, output, weight):
        if (self.layer, expert) not in self.scene.chosen_by_others():
            return weight * output
        drawn = self.drawn[token] if token < len(self.drawn) else self.drawn_later
        pool = self.scene.pool(self.layer, expert, weighted=self.weighted)
        output = pool[int(drawn[expert] * len(pool))]
        return output if self.weighted else weight * output


class RedrawnWeighted(Redrawn):
    weighted = True


class Forced(OfExperts):
    def choose(self, scores, top_k):
        index = scores.topk(top_k).indices
        for token, row in enumerate(index.tolist()):
            if FORCED[self.layer] not in row:
                weakest = min(range(top_k), key=lambda slot: float(scores[token, row[slot]]))
                index[token, weakest] = FORCED[self.layer]
        return index


class Shifted(OfExperts):
    def logits(self, logits):
        new = logits.clone()
        new[:, 4] += 1.5
        new[:, list(self.experts)] -= 0.75
        return new


class Raised(OfExperts):
    def logits(self, logits):
        new = logits.clone()
        for token in range(len(logits)):
            new[token, FORCED[self.layer]] = max(logits[token]) + 0.01
        return new


class Pushed(OfExperts):
    def logits(self, logits):
        new = logits.clone()
        for token in range(len(logits)):
            new[token, list(self.experts)] = min(logits[token]) - 0.01
        return new


class RoutedAs(OfExperts):
    def choose(self, scores, top_k):
        index = scores.topk(top_k).indices
        index[: self.n_tokens] = self.source.index
        return index


class RoutedAndWeighedAs(RoutedAs):
    def weigh(self, index, weights):
        new = weights.clone()
        new[: self.n_tokens] = self.source.weights
        return new


class Patched(OfExperts):
    def contribution(self, token, expert, output, weight):
        if token >= self.n_tokens or expert not in self.experts:
            return weight * output
        return self.source.written.get((token, expert), (0, torch.zeros_like(output)))[1]

    def further(self, token, experts):
        written = self.source.written.items()
        missing = [
            own
            for (place, expert), (_, own) in written
            if place == token and expert in self.experts and expert not in experts
        ]
        return sum(missing) if missing else 0.0


class PatchedUnweighted(OfExperts):
    def contribution(self, token, expert, output, weight):
        if expert in self.experts:
            output = self.source.written.get((token, expert), (output,))[0]
        return weight * output


class BlockPatched(OfExperts):
    def output(self, output):
        return torch.cat([self.source.block, output[self.n_tokens :]])


class Added(OfExperts):
    def output(self, output):
        return output + VECTOR


def _steer(scene, **place):
    shifts = {(layer, 4): 1.5 for layer in LAYERS}
    for layer, expert in NAMED:
        shifts[layer, expert] = shifts.get((layer, expert), 0.0) - 0.75
    return Steer(shifts, **place)


def _mean_of(scene, quantity, **place):
    chosen = scene.chosen_by_others()
    return Mean(chosen, mean_outputs(scene.model, scene.others, chosen, quantity=quantity), **place)


def _resample(scene, quantity, **place):
    chosen, rng = scene.chosen_by_others(), np.random.default_rng(SEED)
    reference = outputs_of(scene.model, scene.others, chosen, quantities=[quantity])
    return Resample(chosen, reference, rng=rng, **place)


def _patch(scene, quantity, **place):
    source = outputs_of(scene.model, scene.others, NAMED, quantities=[quantity])
    return PatchOutput(NAMED, source, quantity=quantity, **place)


def _block(scene, **place):
    source = outputs_of(scene.model, scene.others, LAYERS, quantities=["output"])
    return PatchBlock(LAYERS, source, **place)


def _transplant(scene, part, **place):
    return Transplant(routing_of(scene.model, scene.others), LAYERS, part=part, **place)


#: Interventions that hold in any phase, made for a scene and a place.
IN_PHASES = {
    "ban": (lambda scene, **place: Ban(NAMED, **place), Banned),
    "zero": (lambda scene, **place: Zero(NAMED, **place), Silenced),
    "renormalise": (lambda scene, **place: Renormalise(NAMED, **place), Renormalised),
    "scale": (lambda scene, **place: Scale(NAMED, -1.5, **place), Scaled),
    "mean": (lambda scene, **place: _mean_of(scene, scene.quantity, **place), Averaged),
    "mean-weighted": (
        lambda scene, **place: _mean_of(scene, "expert_contributions", **place),
        AveragedWeighted,
    ),
    "resample": (lambda scene, **place: _resample(scene, scene.quantity, **place), Redrawn),
    "resample-weighted": (
        lambda scene, **place: _resample(scene, "expert_contributions", **place),
        RedrawnWeighted,
    ),
    "force": (lambda scene, **place: Force(list(FORCED.items()), **place), Forced),
    "steer": (_steer, Shifted),
    "steer-max": (
        lambda scene, **place: Steer(list(FORCED.items()), margin="max", **place),
        Raised,
    ),
    "steer-min": (lambda scene, **place: Steer(NAMED, margin="min", **place), Pushed),
    "add-vector": (
        lambda scene, **place: [AddVector(layer, VECTOR, **place) for layer in LAYERS],
        Added,
    ),
}
#: Interventions that take values of prompt tokens, and so hold in the prefill.
IN_PREFILL = {
    "transplant": (lambda scene, **place: _transplant(scene, "both", **place), RoutedAndWeighedAs),
    "transplant-index": (lambda scene, **place: _transplant(scene, "index", **place), RoutedAs),
    "patch": (lambda scene, **place: _patch(scene, "expert_contributions", **place), Patched),
    "patch-unweighted": (
        lambda scene, **place: _patch(scene, "expert_outputs", **place),
        PatchedUnweighted,
    ),
    "patch-block": (_block, BlockPatched),
}
CASES = {**IN_PHASES, **IN_PREFILL}


def until_end(tokens, ends):
    """Tokens up to and with the first that ends a text."""
    stops = [place for place, token in enumerate(tokens) if token in ends]
    return tokens[: stops[0] + 1] if stops else tokens
