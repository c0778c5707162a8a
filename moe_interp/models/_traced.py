"""What runs inside a trace: plain functions and one plain class that read and edit a MoE layer.

A trace body may be recompiled from source on another machine, in a process that has neither this
package nor the weights. So this file keeps to functions of tensors, dicts and tuples; no decorator
but ``property``; no parameter is ever read: an expert's output is had by calling the experts.
Annotations are quoted, so that they travel as text.

Layout: routers and experts see tokens flattened to ``batch*pos``; everything that enters or leaves
these functions is ``[batch pos ...]`` and holds the rows of the running invoke only.
"""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Bool, Float, Int
from nnsight.intervention.interleaver import Mediator
from torch import Tensor

# ------------------------------------------------------------------ rows of the running invoke


def invoke_rows() -> tuple[int, int, int]:
    """First row, number of rows of the running invoke, and number of rows of the whole batch."""
    mediator = Mediator.current("a MoE layer")
    run = mediator.interleaver
    groups = [other.batch_group for other in run.mediators if other.batch_group is not None]
    total = max([start + size for start, size in groups], default=0)
    if total == 0 and run.batcher is not None:
        total = run.batcher.total
    start, size = (0, total) if mediator.batch_group is None else mediator.batch_group
    return start, size, total


def own_rows(served: "Tensor") -> "tuple[Tensor, Callable]":
    """Split the running invoke's rows off a served value, and give the way back.

    nnsight narrows only what has one entry a row: ``[batch pos ...]`` always, but a flattened
    ``[batch*pos ...]`` only at decode steps, where there is one position. The rest arrives whole.
    """
    if served.dim() == 3:
        return served, lambda new: new
    start, size, total = invoke_rows()
    if served.shape[0] == size:
        return served.unsqueeze(1), lambda new: new.flatten(0, 1)
    if total == 0 or served.shape[0] % total:
        raise ValueError(
            f"{served.shape[0]} token rows cannot be divided among the {total} prompts of this "
            "batch. Trace without beams and with one returned sequence per prompt."
        )
    n_pos = served.shape[0] // total
    own = served.unflatten(0, (total, n_pos))[start : start + size]

    def put(new: "Tensor") -> "Tensor":
        if size == total:
            return new.flatten(0, 1)
        before, after = served[: start * n_pos], served[(start + size) * n_pos :]
        return torch.cat([before, new.flatten(0, 1), after])

    return own, put


def checked(layer: "MoELayer", name: str, new: "Tensor", old: "Tensor") -> "Tensor":
    """The new value in the dtype of the old, or an error that names both shapes."""
    if new.shape != old.shape:
        raise ValueError(
            f"`{name}` of layer {layer.layer} has shape {tuple(old.shape)} here (batch, pos, "
            f"expert or top_k), got {tuple(new.shape)}."
        )
    return new.to(old.dtype)


# ------------------------------------------------------------------ the router


def read_router_input(layer: "MoELayer") -> 'Float[Tensor, "batch pos d_model"]':
    """What the router sees."""
    return own_rows(layer.router.input)[0]


def read_router_logits(layer: "MoELayer") -> 'Float[Tensor, "batch pos expert"]':
    """The router's linear output; under autograd the very tensor that the model goes on with."""
    operation = getattr(layer.router.source, layer.facts["logits"])
    own, put = own_rows(operation.output)
    if own.requires_grad:
        operation.output = put(own)
    return own


def write_router_logits(layer: "MoELayer", logits: 'Float[Tensor, "batch pos expert"]') -> None:
    """Replace the logits; the model's own selection then runs on the new ones."""
    operation = getattr(layer.router.source, layer.facts["logits"])
    own, put = own_rows(operation.output)
    operation.output = put(checked(layer, "router_logits", logits, own))


def score(layer: "MoELayer", logits: "Tensor") -> 'Float[Tensor, "batch pos expert"]':
    """The model's own score function over all experts, in float32."""
    name = layer.facts["score_function"]
    wide = logits.float()
    if name == "softmax":
        return wide.softmax(-1)
    if name == "sigmoid":
        return wide.sigmoid()
    if name == "sqrtsoftplus":
        return torch.nn.functional.softplus(wide).sqrt()
    raise ValueError(f"Layer {layer.layer}: unknown score function {name!r}.")


def read_router_probs(layer: "MoELayer") -> 'Float[Tensor, "batch pos expert"]':
    """The scores of all experts, before any bias, group limit or renormalisation."""
    return score(layer, read_router_logits(layer))


def run_router_apart(layer: "MoELayer") -> 'Int[Tensor, "batch pos top_k"]':
    """The experts that the router, called on its own, chooses for the input it has here."""
    args, kwargs = layer.router.inputs
    own_args = tuple(own_rows(arg)[0] if torch.is_tensor(arg) and arg.dim() > 1 else arg for arg in args)
    flat = tuple(arg.flatten(0, 1) if torch.is_tensor(arg) and arg.dim() == 3 else arg for arg in own_args)
    returned = layer.router(*flat, **kwargs)
    integers = [value for value in returned if torch.is_tensor(value) and not value.is_floating_point()]
    return integers[0].unflatten(0, own_args[0].shape[:2])


# ------------------------------------------------------------------ the choice


def choose(layer: "MoELayer", rule: "Callable") -> 'Int[Tensor, "batch pos top_k"]':
    """Let ``rule(scores, index) -> index`` correct the model's own choice of experts.

    Only changed slots are replaced, and their weights are made from the scores that the model
    itself chose by, so a token whose choice stands keeps its bits. One call per layer and forward:
    the scores are gone once the choice is made. Returns the corrected index.
    """
    if layer.facts["choice"] == "sparsemixer":
        return choose_after_sparsemixer(layer, rule)
    if layer.facts["choice_scores"] == "logits":
        scores = own_rows(getattr(layer.router.source, layer.facts["logits"]).output)[0]
        operation = getattr(layer.router.source, layer.facts["choice"])
    else:
        operation = getattr(layer.router.source, layer.facts["choice"])
        scores = own_rows(operation.inputs[0][0])[0]
    served = operation.output
    values, put_values = own_rows(served[0])
    index, put_index = own_rows(served[1])
    new = rule(scores, index)
    if new is index:
        return index
    values = torch.where(new != index, scores.gather(-1, new).to(values.dtype), values)
    operation.output = torch.return_types.topk((put_values(values), put_index(new)))
    return new


def choose_after_sparsemixer(
    layer: "MoELayer", rule: "Callable"
) -> 'Int[Tensor, "batch pos top_k"]':
    """`choose` for routers that pick experts one after the other (Liu et al. 2024, SparseMixer).

    The weight of a pick is a softmax over the experts that are left and lie within twice the
    jitter of the best of them; so a changed row is weighted anew, in order of its logits.
    """
    logits, weights, index = layer.router.output
    (own_logits, _), (own_weights, put_weights) = own_rows(logits), own_rows(weights)
    own_index, put_index = own_rows(index)
    new = rule(own_logits, own_index)
    if new is own_index:
        return own_index
    changed = (new != own_index).any(-1, keepdim=True)
    order = own_logits.gather(-1, new).argsort(dim=-1, descending=True, stable=True)
    new = torch.where(changed, new.gather(-1, order), own_index)
    width = 2 * layer.facts["sparsemixer_jitter"]
    remaining, columns = own_logits, []
    for slot in range(new.shape[-1]):
        pick = new[..., slot : slot + 1]
        best = own_logits.gather(-1, pick).detach()
        distance = (best - own_logits) / torch.maximum(own_logits.abs(), best)
        out = (distance > width) | (own_logits > best)
        columns.append(remaining.masked_fill(out, float("-inf")).softmax(-1).gather(-1, pick))
        remaining = remaining.scatter(-1, pick, float("-inf"))
    rebuilt = torch.cat(columns, -1).to(own_weights.dtype)
    own_weights = torch.where(changed, rebuilt, own_weights)
    layer.router.output = (logits, put_weights(own_weights), put_index(new))
    return new


def over_tokens(
    layer: "MoELayer", mask: "Tensor", tokens: "Tensor | None", neutral: "bool | float"
) -> "Tensor":
    """Bring a per-expert mask to ``[batch|1 pos|1 expert]``, neutral where `tokens` is False."""
    wide = mask.unsqueeze(1) if mask.dim() == 2 else mask.reshape(1, 1, -1) if mask.dim() == 1 else mask
    if wide.shape[-1] != layer.n_experts:
        raise ValueError(
            f"Layer {layer.layer} has {layer.n_experts} experts, the mask has {wide.shape[-1]}."
        )
    if tokens is None:
        return wide
    return torch.where(tokens.to(wide.device)[..., None], wide, torch.full_like(wide, neutral))


def ban_experts(
    layer: "MoELayer",
    banned: 'Bool[Tensor, "*rows expert"]',
    tokens: 'Bool[Tensor, "batch pos"] | None' = None,
) -> None:
    """Take experts out of the choice: the next best is chosen, all other scores stay as they are.

    ``banned`` is ``[expert]``, ``[batch|1 expert]`` (each row its own experts) or
    ``[batch|1 pos|1 expert]``; ``tokens`` limits the ban to the tokens that are True.
    """
    wide = over_tokens(layer, banned, tokens, False)

    def rule(scores: "Tensor", index: "Tensor") -> "Tensor":
        gone = wide.to(index.device).expand(*index.shape[:-1], layer.n_experts)
        hit = gone.gather(-1, index)
        if not bool(hit.any()):
            return index
        pool = scores.detach().masked_fill(gone, float("-inf")).scatter(-1, index, float("-inf"))
        new = index
        for slot in range(index.shape[-1]):
            value, best = pool.max(-1)
            refused = hit[..., slot] & (value <= layer.facts["unselectable_score"])
            if bool(refused.any()):
                raise ValueError(
                    f"Layer {layer.layer}: the ban leaves a token with fewer than "
                    f"{layer.top_k} experts to choose from. Ban fewer experts."
                )
            pick = torch.where(hit[..., slot], best, index[..., slot])
            new = torch.cat([new[..., :slot], pick[..., None], new[..., slot + 1 :]], -1)
            pool = pool.scatter(-1, pick[..., None], float("-inf"))
        return new

    choose(layer, rule)


# ------------------------------------------------------------------ what the experts receive


def read_dispatch(layer: "MoELayer") -> "tuple[Tensor, Tensor, Tensor]":
    """Hidden states, expert index and routing weights, as the experts are called with them."""
    args, kwargs = layer.experts.inputs
    names = layer.facts["experts_arguments"]
    values = [args[i] if i < len(args) else kwargs[name] for i, name in enumerate(names)]
    return values[0], values[1], values[2]


def write_dispatch(layer: "MoELayer", index: "Tensor", weights: "Tensor") -> None:
    """Call the experts with another index and other weights, both in the layout as served."""
    args, kwargs = layer.experts.inputs
    new = {1: index, 2: weights}
    names = layer.facts["experts_arguments"]
    args = tuple(new.get(i, value) for i, value in enumerate(args))
    kwargs = {**kwargs, **{names[i]: new[i] for i in new if i >= len(args)}}
    layer.experts.inputs = (args, kwargs)


def read_expert_index(layer: "MoELayer") -> 'Int[Tensor, "batch pos top_k"]':
    """The experts that run, in the model's own order."""
    return own_rows(read_dispatch(layer)[1])[0]


def read_routing_weights(layer: "MoELayer") -> 'Float[Tensor, "batch pos top_k"]':
    """What multiplies each expert's output; under autograd the tensor the experts go on with."""
    _, index, weights = read_dispatch(layer)
    own, put = own_rows(weights)
    if own.requires_grad:
        write_dispatch(layer, index, put(own))
    return own


def write_routing_weights(layer: "MoELayer", new: 'Float[Tensor, "batch pos top_k"]') -> None:
    """Replace what multiplies each expert's output; the experts stay the chosen ones."""
    _, index, weights = read_dispatch(layer)
    own, put = own_rows(weights)
    write_dispatch(layer, index, put(checked(layer, "routing_weights", new, own)))


def set_routing(
    layer: "MoELayer",
    index: 'Int[Tensor, "batch pos top_k"]',
    weights: 'Float[Tensor, "batch pos top_k"]',
) -> None:
    """Replace both the experts that run and their weights."""
    _, old_index, old_weights = read_dispatch(layer)
    own_index, put_index = own_rows(old_index)
    own_weights, put_weights = own_rows(old_weights)
    write_dispatch(
        layer,
        put_index(checked(layer, "expert_index", index, own_index)),
        put_weights(checked(layer, "routing_weights", weights, own_weights)),
    )


def scale_weights(
    layer: "MoELayer",
    factor: 'Float[Tensor, "*rows expert"]',
    tokens: 'Bool[Tensor, "batch pos"] | None' = None,
) -> None:
    """Multiply the routing weights of chosen experts; factor 0 removes their contribution.

    ``factor`` is ``[expert]``, ``[batch|1 expert]`` or ``[batch|1 pos|1 expert]``; 1 leaves a
    weight as it is, bit for bit.
    """
    _, index, weights = read_dispatch(layer)
    own_index, _ = own_rows(index)
    own, put = own_rows(weights)
    wide = over_tokens(layer, factor, tokens, 1.0).to(own)
    chosen = wide.expand(*own_index.shape[:-1], layer.n_experts).gather(-1, own_index)
    write_dispatch(layer, index, put(own * chosen))


def run_experts_apart(layer: "MoELayer", unit: "bool") -> 'Float[Tensor, "batch pos top_k d_model"]':
    """Call the experts on one (token, expert) pair per row, with weight 1 or the real weight."""
    hidden, index, weights = [own_rows(value)[0] for value in read_dispatch(layer)]
    shape = index.shape
    rows = hidden.flatten(0, 1).repeat_interleave(shape[-1], 0)
    each = torch.ones_like(weights) if unit else weights
    out = layer.experts(rows, index.reshape(-1, 1), each.reshape(-1, 1))
    return out.unflatten(0, shape)


def read_expert_outputs(layer: "MoELayer") -> 'Float[Tensor, "batch pos top_k d_model"]':
    """The output of each chosen expert, unweighted."""
    return run_experts_apart(layer, True)


def read_expert_contributions(layer: "MoELayer") -> 'Float[Tensor, "batch pos top_k d_model"]':
    """The output of each chosen expert times its weight; their sum leaves the experts."""
    return run_experts_apart(layer, False)


# ------------------------------------------------------------------ the block


def read_shared(layer: "MoELayer") -> 'Float[Tensor, "batch pos d_model"]':
    """The shared expert's output before its gate; cloned, for some blocks add into it."""
    if layer.shared is None:
        raise ValueError(f"Layer {layer.layer} has no shared expert; see `layer.has_shared`.")
    return own_rows(layer.shared.output)[0].clone()


def read_shared_gate(layer: "MoELayer") -> 'Float[Tensor, "batch pos one"]':
    """What multiplies the shared expert's output."""
    return own_rows(layer.shared_gate.output)[0].sigmoid()


def read_input(layer: "MoELayer") -> 'Float[Tensor, "batch pos d_model"]':
    """What enters the MoE block."""
    return own_rows(layer.block.input)[0]


def read_routed_output(layer: "MoELayer") -> 'Float[Tensor, "batch pos d_model"]':
    """What leaves the experts: the sum of their contributions."""
    return own_rows(layer.experts.output)[0]


def read_output(layer: "MoELayer") -> 'Float[Tensor, "batch pos d_model"]':
    """What leaves the MoE block."""
    served = layer.block.output
    return own_rows(served[0] if isinstance(served, tuple) else served)[0]


READERS = {
    "input": read_input,
    "shared": read_shared,
    "router_input": read_router_input,
    "router_logits": read_router_logits,
    "router_probs": read_router_probs,
    "expert_index": read_expert_index,
    "routing_weights": read_routing_weights,
    "expert_outputs": read_expert_outputs,
    "expert_contributions": read_expert_contributions,
    "routed_output": read_routed_output,
    "shared_gate": read_shared_gate,
    "output": read_output,
}


def read(layer: "MoELayer", names: "Sequence[str]") -> "dict[str, Tensor]":
    """Read several quantities in the order in which the layer computes them.

    Returns them by name, in the order asked for.
    """
    offered = [name for name in READERS if name not in ("shared", "shared_gate")]
    for name in names:
        if name not in offered and name != "shared_output":
            raise ValueError(f"`{name}` is no quantity of a MoE layer. Known: {(*offered, 'shared_output')}.")
    wanted = set(names)
    if "shared_output" in wanted:
        wanted |= {"shared", "shared_gate"} if layer.shared_gate is not None else {"shared"}
    found = {}
    for name in layer.facts["reading_order"]:
        if name in wanted:
            found[name] = READERS[name](layer)
    if "shared_output" in wanted:
        found["shared_output"] = found["shared"]
        if layer.shared_gate is not None:
            found["shared_output"] = found["shared_gate"] * found["shared"]
    return {name: found[name] for name in names}


def read_layers(layers: "Sequence[MoELayer]", names: "Sequence[str]") -> "dict[int, dict[str, Tensor]]":
    """`read` the same quantities of several layers, which must come in order of depth."""
    return {layer.layer: read(layer, names) for layer in layers}


# ------------------------------------------------------------------ what a user names in a trace


class MoELayer:
    """One MoE layer, readable and writable inside a trace of its model.

    Properties must be read in the order in which the model computes them; `read` takes any
    order. All tensors are ``[batch pos ...]`` with padded positions still present, and
    ``expert_index`` is in the model's own order.

    Attributes:
        layer: Absolute decoder layer.
        n_experts: Number of routed experts.
        top_k: Experts chosen per token.
        has_shared: Whether a shared expert runs beside the routed ones.
    """

    def __init__(self, root: "object", facts: "dict") -> None:
        self.facts = facts
        self.layer = facts["layer"]
        self.n_experts = facts["n_experts"]
        self.top_k = facts["top_k"]
        self.has_shared = facts["shared"] is not None
        self.block = root.get(facts["block"])
        self.router = root.get(facts["router"])
        self.experts = root.get(facts["experts"])
        self.shared = None if facts["shared"] is None else root.get(facts["shared"])
        self.shared_gate = None if facts["shared_gate"] is None else root.get(facts["shared_gate"])

    def __repr__(self) -> "str":
        shared = ", shared expert" if self.has_shared else ""
        return f"MoELayer({self.layer}: {self.n_experts} experts, top {self.top_k}{shared})"

    @property
    def input(self) -> 'Float[Tensor, "batch pos d_model"]':
        """What enters the MoE block."""
        return read_input(self)

    @property
    def router_input(self) -> 'Float[Tensor, "batch pos d_model"]':
        """What the router sees."""
        return read_router_input(self)

    @property
    def router_logits(self) -> 'Float[Tensor, "batch pos expert"]':
        """The router's linear output; assign to it, and the model's own selection re-runs."""
        return read_router_logits(self)

    @router_logits.setter
    def router_logits(self, logits: 'Float[Tensor, "batch pos expert"]') -> None:
        write_router_logits(self, logits)

    @property
    def router_probs(self) -> 'Float[Tensor, "batch pos expert"]':
        """The model's score function over all experts (softmax or sigmoid), in float32."""
        return read_router_probs(self)

    @property
    def expert_index(self) -> 'Int[Tensor, "batch pos top_k"]':
        """The experts that run, in the model's own order."""
        return read_expert_index(self)

    @property
    def routing_weights(self) -> 'Float[Tensor, "batch pos top_k"]':
        """What multiplies each expert's output; need not sum to 1. Can be assigned."""
        return read_routing_weights(self)

    @routing_weights.setter
    def routing_weights(self, weights: 'Float[Tensor, "batch pos top_k"]') -> None:
        write_routing_weights(self, weights)

    @property
    def expert_outputs(self) -> 'Float[Tensor, "batch pos top_k d_model"]':
        """The output of each chosen expert, unweighted; a copy beside the model's own path."""
        return read_expert_outputs(self)

    @property
    def expert_contributions(self) -> 'Float[Tensor, "batch pos top_k d_model"]':
        """The output of each chosen expert times its weight; a copy beside the model's path."""
        return read_expert_contributions(self)

    @property
    def routed_output(self) -> 'Float[Tensor, "batch pos d_model"]':
        """What leaves the experts: the sum of their contributions."""
        return read_routed_output(self)

    @property
    def shared_output(self) -> 'Float[Tensor, "batch pos d_model"]':
        """What the shared expert adds to the block's output, its gate applied."""
        return read(self, ("shared_output",))["shared_output"]

    @property
    def output(self) -> 'Float[Tensor, "batch pos d_model"]':
        """What leaves the MoE block."""
        return read_output(self)

    def read(self, *names: "str") -> "dict[str, Tensor]":
        """Read several quantities, whatever order the model computes them in.

        Args:
            *names: Names of properties of this class.

        Returns:
            The tensors by name, in the order asked for.

        Raises:
            ValueError: If a name is unknown, or the layer has no shared expert to read.
        """
        return read(self, names)

    def ban(
        self, experts: "Sequence[int]", tokens: 'Bool[Tensor, "batch pos"] | None' = None
    ) -> None:
        """Take experts out of the choice; the next best are chosen. Once per layer and forward.

        Args:
            experts: Ids of the experts, all of them in one call.
            tokens: Where the ban holds; everywhere if not given.

        Raises:
            ValueError: If an id is out of range or too few experts are left to choose from.
        """
        ban_experts(self, self.mask(experts), tokens)

    def zero(
        self, experts: "Sequence[int]", tokens: 'Bool[Tensor, "batch pos"] | None' = None
    ) -> None:
        """Set the contribution of experts to 0, with the routing untouched.

        Args:
            experts: Ids of the experts.
            tokens: Where it holds; everywhere if not given.

        Raises:
            ValueError: If an id is out of range.
        """
        scale_weights(self, (~self.mask(experts)).float(), tokens)

    def set_routing(
        self,
        index: 'Int[Tensor, "batch pos top_k"]',
        weights: 'Float[Tensor, "batch pos top_k"]',
    ) -> None:
        """Replace the experts that run and their weights.

        Args:
            index: The experts to run.
            weights: What multiplies their outputs.

        Raises:
            ValueError: If a shape differs from the layer's own.
        """
        set_routing(self, index, weights)

    def mask(self, experts: "Sequence[int]") -> 'Bool[Tensor, " expert"]':
        """The experts as one boolean per expert of this layer.

        Args:
            experts: Ids of the experts.

        Returns:
            True for the experts named.

        Raises:
            ValueError: If an id is out of range.
        """
        wrong = [expert for expert in experts if not 0 <= expert < self.n_experts]
        if wrong:
            raise ValueError(
                f"Layer {self.layer} has experts 0–{self.n_experts - 1}, got {wrong}."
            )
        chosen = torch.zeros(self.n_experts, dtype=torch.bool)
        chosen[list(experts)] = True
        return chosen
