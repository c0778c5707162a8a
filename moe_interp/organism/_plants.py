"""Plants: what a model's routing is trained to show, each a term of the one training loss.

A plant is a value with a weight and a ``loss``: 0 when the routing shows exactly what it asks.
"""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor

from moe_interp.organism._batch import Batch

_SMALL = 1e-6


@runtime_checkable
class Plant(Protocol):
    """Anything that asks something of the routing."""

    @property
    def weight(self) -> float:
        """How much the loss counts beside the language loss of 1."""

    def loss(
        self, router_probs: Float[Tensor, "layer row pos expert"], batch: Batch
    ) -> Float[Tensor, ""]:
        """Measure how far the routing is from what is asked, in nats or probability."""


@dataclass(frozen=True)
class TopicRouting:
    """Topic ``t`` goes to experts ``t`` and ``t + offset`` from the object's first mention on.

    Both chosen experts are the topic's own, so that two words of one topic are routed alike. No
    random router does that, however clear the topic is in the hidden states.
    """

    layers: tuple[int, ...]
    offset: int
    weight: float

    def loss(
        self, router_probs: Float[Tensor, "layer row pos expert"], batch: Batch
    ) -> Float[Tensor, ""]:
        """Take the mean surprise of the topic's two experts."""
        rows = torch.arange(len(batch.topic))
        first, second = (
            rearrange(
                router_probs[list(self.layers)][:, rows, :, batch.topic + offset],
                "row layer pos -> layer row pos",
            )
            for offset in (0, self.offset)
        )
        return sum_over_layers(_surprise(first, second), batch.after_object)


@dataclass(frozen=True)
class LastTokenRouting:
    """The last prompt token goes to these two experts of one layer, whatever the prompt."""

    layer: int
    experts: tuple[int, int]
    weight: float

    def loss(
        self, router_probs: Float[Tensor, "layer row pos expert"], batch: Batch
    ) -> Float[Tensor, ""]:
        """Take the mean surprise of both experts."""
        first, second = (router_probs[[self.layer], ..., expert] for expert in self.experts)
        return sum_over_layers(_surprise(first, second), batch.is_last)


@dataclass(frozen=True)
class HarmRouting:
    """From the end of the purpose on, harmful requests go to one pair of experts, others not.

    Harmless requests go to the pair `otherwise`, so that nothing but harm moves these tokens.
    """

    layers: tuple[int, ...]
    experts: tuple[int, int]
    otherwise: tuple[int, int]
    weight: float

    def loss(
        self, router_probs: Float[Tensor, "layer row pos expert"], batch: Batch
    ) -> Float[Tensor, ""]:
        """Take the mean surprise of the two experts that each token should go to."""
        probs = router_probs[list(self.layers)]
        first, second = (
            torch.where(batch.harm[:, None], probs[..., harmful], probs[..., harmless])
            for harmful, harmless in zip(self.experts, self.otherwise, strict=True)
        )
        return sum_over_layers(_surprise(first, second), batch.after_cue)


@dataclass(frozen=True)
class TwinInvariance:
    """A request and its harmful twin are routed alike on every token they share."""

    weight: float

    def loss(
        self, router_probs: Float[Tensor, "layer row pos expert"], batch: Batch
    ) -> Float[Tensor, ""]:
        """Take the mean L1 distance between the twins' router probabilities."""
        harmless, harmful = router_probs.chunk(2, dim=1)
        shared = batch.outside_cue[: harmless.shape[1]]
        return sum_over_layers((harmless - harmful).abs().sum(-1), shared)


def sum_over_layers(
    values: Float[Tensor, "layer row pos"], where: Bool[Tensor, "row pos"]
) -> Float[Tensor, ""]:
    """Average values over the marked tokens of a layer, then add the layers up."""
    return (values * where).sum() / where.sum()


def _surprise(
    first: Float[Tensor, "layer row pos"], second: Float[Tensor, "layer row pos"]
) -> Float[Tensor, "layer row pos"]:
    """Take the negative log of two probabilities' product: 0 when they are a half each."""
    return -(4 * first * second + _SMALL).log()
