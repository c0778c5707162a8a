"""MoELayer: one MoE layer as a user's own trace reads and edits it.

Plain code, for the reasons given in ``_traced_parts``.
"""

from collections.abc import Callable, Sequence

from jaxtyping import Bool, Float, Int
from nnsight.intervention.interleaver import Mediator, OutOfOrderError
from torch import Tensor

from moe_interp.models._traced_choice import ban_experts, choose, write_expert_index
from moe_interp.models._traced_outputs import (
    output_from,
    write_block_output,
    write_routed_output,
    write_slots,
)
from moe_interp.models._traced_parts import LayerParts
from moe_interp.models._traced_read import (
    QUANTITIES,
    read,
    refuse,
    scale_weights,
    set_routing,
    write_router_logits,
    write_routing_weights,
)


class MoELayer(LayerParts):
    """One MoE layer, readable and writable inside a trace of its model.

    Properties must be read and written in the order in which the model computes them; `read`
    takes any order. All tensors are ``[batch pos ...]`` with padded positions still present, and
    ``expert_index`` is in the model's own order.

    Attributes:
        layer: Absolute decoder layer.
        n_experts: Number of experts that the router chooses among.
        top_k: Experts chosen per token.
        has_shared: Whether a shared expert runs beside the routed ones.
        refused: Quantities that this layer cannot give, and why.
    """

    @property
    def offered(self) -> "tuple[str, ...]":
        """The quantities that this layer gives."""
        return tuple(name for name in QUANTITIES if name not in self.refused)

    def read_one(self, name: "str") -> "Tensor":
        """One quantity; in words what to do if the model has run past it."""
        try:
            return read(self, (name,), False)[name]
        except OutOfOrderError as error:
            return self.explain(error, f"`{name}` was asked for")

    def write_one(self, name: "str", write: "Callable", *values: "object") -> None:
        """One edit; in words what to do if the model has run past its place."""
        refuse(self, (name,))
        try:
            write(self, *values)
        except OutOfOrderError as error:
            self.explain(error, f"`{name}` was edited")

    def explain(self, error: "OutOfOrderError", what: "str") -> None:
        """Raise an error that says what to do where the model has run past what is asked for.

        A loop that outruns its generation ends by the same error; nnsight knows it by itself.
        """
        if Mediator.current("a MoE layer").iteration != 0:
            raise error
        order = ", ".join(name for name in self.offered if name != "router_probs")
        raise OutOfOrderError(
            f"Layer {self.layer}: {what} after something that the model computes later was. Ask "
            "for layers in order of depth, and in a layer for its quantities in the order "
            f"{order}; the choice is edited once, by one ban, before `expert_index` is read. "
            "`layer.read(*names)` reads several at once in any order."
        ) from error

    @property
    def input(self) -> 'Float[Tensor, "batch pos d_model"]':
        """What enters the MoE block."""
        return self.read_one("input")

    @property
    def router_input(self) -> 'Float[Tensor, "batch pos d_model"]':
        """What the router sees."""
        return self.read_one("router_input")

    @property
    def router_logits(self) -> 'Float[Tensor, "batch pos expert"]':
        """The router's linear output; assign to it, and the model's own selection re-runs."""
        return self.read_one("router_logits")

    @router_logits.setter
    def router_logits(self, logits: 'Float[Tensor, "batch pos expert"]') -> None:
        self.write_one("router_logits", write_router_logits, logits)

    @property
    def router_probs(self) -> 'Float[Tensor, "batch pos expert"]':
        """The model's score function over all experts (softmax or sigmoid), in float32."""
        return self.read_one("router_probs")

    @property
    def expert_index(self) -> 'Int[Tensor, "batch pos top_k"]':
        """The experts chosen, in the model's own order; assign, and the model weighs them.

        It is read where the experts take it, after the choice is made: to make one choice of
        another, use `choose`.
        """
        return self.read_one("expert_index")

    @expert_index.setter
    def expert_index(self, index: 'Int[Tensor, "batch pos top_k"]') -> None:
        self.write_one("expert_index", write_expert_index, index)

    @property
    def routing_weights(self) -> 'Float[Tensor, "batch pos top_k"]':
        """What multiplies each expert's output; need not sum to 1. Can be assigned."""
        return self.read_one("routing_weights")

    @routing_weights.setter
    def routing_weights(self, weights: 'Float[Tensor, "batch pos top_k"]') -> None:
        self.write_one("routing_weights", write_routing_weights, weights)

    @property
    def expert_outputs(self) -> 'Float[Tensor, "batch pos top_k d_model"]':
        """The output of each chosen expert, unweighted. Can be assigned.

        Under autograd the model goes on with it, so that it has a gradient.
        """
        return self.read_one("expert_outputs")

    @expert_outputs.setter
    def expert_outputs(self, outputs: 'Float[Tensor, "batch pos top_k d_model"]') -> None:
        self.write_one("expert_outputs", write_slots, "expert_outputs", outputs)

    @property
    def expert_contributions(self) -> 'Float[Tensor, "batch pos top_k d_model"]':
        """The output of each chosen expert times its weight; they add up to `routed_output`."""
        return self.read_one("expert_contributions")

    @expert_contributions.setter
    def expert_contributions(self, new: 'Float[Tensor, "batch pos top_k d_model"]') -> None:
        self.write_one("expert_contributions", write_slots, "expert_contributions", new)

    @property
    def routed_output(self) -> 'Float[Tensor, "batch pos d_model"]':
        """What leaves the experts: the sum of their contributions. Can be assigned."""
        return self.read_one("routed_output")

    @routed_output.setter
    def routed_output(self, new: 'Float[Tensor, "batch pos d_model"]') -> None:
        self.write_one("routed_output", write_routed_output, new)

    @property
    def shared_output(self) -> 'Float[Tensor, "batch pos d_model"]':
        """What the shared expert adds to the block's output, its gate applied."""
        return self.read_one("shared_output")

    @property
    def output(self) -> 'Float[Tensor, "batch pos d_model"]':
        """What leaves the MoE block. Can be assigned."""
        return self.read_one("output")

    @output.setter
    def output(self, new: 'Float[Tensor, "batch pos d_model"]') -> None:
        self.write_one("output", write_block_output, new)

    def output_from(
        self,
        contributions: 'Float[Tensor, "batch pos top_k d_written"]',
        shared: 'Float[Tensor, "batch pos d_model"] | None' = None,
    ) -> 'Float[Tensor, "batch pos d_model"]':
        """What the block would output for these contributions of its experts.

        It adds them up and does what the block does after that: a projection, a factor, the
        shared expert, a bias, a norm; `docs/support.md` says which family does what.

        Args:
            contributions: One vector per chosen expert.
            shared: The shared expert's output, as `shared_output` gives it; read here if not
                given, which is possible only where the block computes it after the experts.

        Returns:
            The output; assign it to `output` to run the model with it.
        """
        if shared is None and self.facts["shared_inside"]:
            shared = self.shared_output
        return output_from(self, contributions, shared)

    def read(self, *names: "str") -> "dict[str, Tensor]":
        """Read several quantities, whatever order the model computes them in.

        The layer is then past them: edits of it come before.

        Args:
            *names: Names of properties of this class.

        Returns:
            The tensors by name, in the order asked for.

        Raises:
            ValueError: If a name is unknown.
            UnsupportedQuantityError: If the layer does not offer one of them.
        """
        try:
            return read(self, names)
        except OutOfOrderError as error:
            return self.explain(error, f"{names} were asked for")

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
        self.write_one("expert_index", ban_experts, self.mask(experts), tokens)

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
        self.write_one("routing_weights", scale_weights, (~self.mask(experts)).float(), tokens)

    def choose(self, rule: "Callable") -> None:
        """Let a rule correct the model's choice of experts. Once per layer and forward.

        Args:
            rule: A function of the scores that the model chooses by, ``[batch pos expert]``, and
                of its index, ``[batch pos top_k]``, to the new index.
        """
        self.write_one("expert_index", choose, rule)

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
            ValueError: If a shape differs from the layer's own, or an id is out of range.
        """
        self.write_one("routing_weights", set_routing, index, weights)


class ModelInTrace:
    """What a MoEModel becomes in a trace that travels: the nnsight model and its MoE layers.

    Attributes:
        nnsight: The wrapped nnsight model.
        moe: The MoE layers by absolute decoder layer.
        encoder_moe: Those of the encoder.
    """

    def __init__(
        self,
        nnsight: "object",
        moe: "dict[int, MoELayer]",
        encoder_moe: "dict[int, MoELayer]",
    ) -> None:
        self.nnsight = nnsight
        self.moe = moe
        self.encoder_moe = encoder_moe
