"""Reading and editing one MoE layer inside a trace.

Plain code, for the reasons given in ``_traced_parts``.
"""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from moe_interp.models._traced_choice import ban_experts, choose, over_tokens
from moe_interp.models._traced_parts import LayerParts, checked, own_rows


def read_router_input(layer: "LayerParts") -> 'Float[Tensor, "batch pos d_model"]':
    """What the router sees."""
    return own_rows(layer.router.input)[0]


def read_router_logits(layer: "LayerParts") -> 'Float[Tensor, "batch pos expert"]':
    """The router's linear output; under autograd the very tensor that the model goes on with."""
    operation = getattr(layer.router.source, layer.facts["logits"])
    own, put = own_rows(operation.output)
    if own.requires_grad:
        operation.output = put(own)
    return own


def write_router_logits(layer: "LayerParts", logits: 'Float[Tensor, "batch pos expert"]') -> None:
    """Replace the logits; the model's own selection then runs on the new ones."""
    operation = getattr(layer.router.source, layer.facts["logits"])
    own, put = own_rows(operation.output)
    operation.output = put(checked(layer, "router_logits", logits, own))


def score(layer: "LayerParts", logits: "Tensor") -> 'Float[Tensor, "batch pos expert"]':
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


def read_router_probs(layer: "LayerParts") -> 'Float[Tensor, "batch pos expert"]':
    """The scores of all experts, before any bias, group limit or renormalisation."""
    return score(layer, read_router_logits(layer))


def read_dispatch(layer: "LayerParts") -> "tuple[Tensor, Tensor, Tensor]":
    """Hidden states, expert index and routing weights, as the experts are called with them."""
    args, kwargs = layer.experts.inputs
    names = layer.facts["experts_arguments"]
    values = [args[i] if i < len(args) else kwargs[name] for i, name in enumerate(names)]
    return values[0], values[1], values[2]


def write_dispatch(layer: "LayerParts", index: "Tensor", weights: "Tensor") -> None:
    """Call the experts with another index and other weights, both in the layout as served."""
    args, kwargs = layer.experts.inputs
    new = {1: index, 2: weights}
    names = layer.facts["experts_arguments"]
    args = tuple(new.get(i, value) for i, value in enumerate(args))
    kwargs = {**kwargs, **{names[i]: new[i] for i in new if i >= len(args)}}
    layer.experts.inputs = (args, kwargs)


def read_expert_index(layer: "LayerParts") -> 'Int[Tensor, "batch pos top_k"]':
    """The experts that run, in the model's own order."""
    return own_rows(read_dispatch(layer)[1])[0]


def read_routing_weights(layer: "LayerParts") -> 'Float[Tensor, "batch pos top_k"]':
    """What multiplies each expert's output; under autograd the tensor the experts go on with."""
    _, index, weights = read_dispatch(layer)
    own, put = own_rows(weights)
    if own.requires_grad:
        write_dispatch(layer, index, put(own))
    return own


def write_routing_weights(layer: "LayerParts", new: 'Float[Tensor, "batch pos top_k"]') -> None:
    """Replace what multiplies each expert's output; the experts stay the chosen ones."""
    _, index, weights = read_dispatch(layer)
    own, put = own_rows(weights)
    write_dispatch(layer, index, put(checked(layer, "routing_weights", new, own)))


def set_routing(
    layer: "LayerParts",
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
    layer: "LayerParts",
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


def run_experts_apart(
    layer: "LayerParts", unit: "bool"
) -> 'Float[Tensor, "batch pos top_k d_model"]':
    """Call the experts on one (token, expert) pair per row, with weight 1 or the real weight."""
    hidden, index, weights = [own_rows(value)[0] for value in read_dispatch(layer)]
    shape = index.shape
    rows = hidden.flatten(0, 1).repeat_interleave(shape[-1], 0)
    each = torch.ones_like(weights) if unit else weights
    out = layer.experts(rows, index.reshape(-1, 1), each.reshape(-1, 1))
    return out.unflatten(0, shape)


def read_expert_outputs(layer: "LayerParts") -> 'Float[Tensor, "batch pos top_k d_model"]':
    """The output of each chosen expert, unweighted."""
    return run_experts_apart(layer, True)


def read_expert_contributions(layer: "LayerParts") -> 'Float[Tensor, "batch pos top_k d_model"]':
    """The output of each chosen expert times its weight; their sum leaves the experts."""
    return run_experts_apart(layer, False)


def read_shared(layer: "LayerParts") -> 'Float[Tensor, "batch pos d_model"]':
    """The shared expert's output before its gate; cloned, for some blocks add into it."""
    return own_rows(layer.shared.output)[0].clone()


def read_shared_gate(layer: "LayerParts") -> 'Float[Tensor, "batch pos one"]':
    """What multiplies the shared expert's output."""
    return own_rows(layer.shared_gate.output)[0].sigmoid()


def read_input(layer: "LayerParts") -> 'Float[Tensor, "batch pos d_model"]':
    """What enters the MoE block."""
    return own_rows(layer.block.input)[0]


def read_routed_output(layer: "LayerParts") -> 'Float[Tensor, "batch pos d_model"]':
    """What leaves the experts: the sum of their contributions."""
    return own_rows(layer.experts.output)[0]


def read_output(layer: "LayerParts") -> 'Float[Tensor, "batch pos d_model"]':
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


def read(layer: "LayerParts", names: "Sequence[str]") -> "dict[str, Tensor]":
    """Read several quantities in the order in which the layer computes them.

    Returns them by name, in the order asked for.
    """
    offered = [name for name in READERS if name not in ("shared", "shared_gate")]
    for name in names:
        if name not in offered and name != "shared_output":
            raise ValueError(
                f"`{name}` is no quantity of a MoE layer. Known: {(*offered, 'shared_output')}."
            )
    wanted = set(names)
    if "shared_output" in wanted and not layer.has_shared:
        raise ValueError(f"Layer {layer.layer} has no shared expert; see `layer.has_shared`.")
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


def read_layers(
    layers: "Sequence[LayerParts]", names: "Sequence[str]"
) -> "dict[int, dict[str, Tensor]]":
    """`read` the same quantities of several layers, which must come in order of depth."""
    return {layer.layer: read(layer, names) for layer in layers}


class MoELayer(LayerParts):
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

    def choose(self, rule: "Callable") -> None:
        """Let a rule correct the model's choice of experts. Once per layer and forward.

        Args:
            rule: A function of the scores that the model chooses by, ``[batch pos expert]``, and
                of its index, ``[batch pos top_k]``, to the new index.
        """
        choose(self, rule)

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


class ModelInTrace:
    """What a MoEModel becomes in a trace that travels: the nnsight model and its MoE layers.

    Attributes:
        nnsight: The wrapped nnsight model.
        moe: The MoE layers by absolute decoder layer.
    """

    def __init__(self, nnsight: "object", moe: "dict[int, MoELayer]") -> None:
        self.nnsight = nnsight
        self.moe = moe
