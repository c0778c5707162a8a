r"""The routing that raises the likelihood of given responses, found by gradient ascent.

Idea: what would the routers have had to choose, for the model to foretell these responses best?
Only an offset to each router logit of each token is moved; every weight of the model stays as it
is. What is found belongs to these tokens; a memory of it may serve others that are like them.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import nnsight
import numpy as np
import torch
from jaxtyping import Float
from numpy import ndarray
from torch import Tensor

from moe_interp.interventions import RoutingMemory, forward_arguments
from moe_interp.interventions._checks import check_layers
from moe_interp.interventions._responses import with_responses
from moe_interp.interventions._rows import planned_batches
from moe_interp.models import MoEModel
from moe_interp.models._traced_loss import inside_loss
from moe_interp.models._traced_mixture import route_by_offsets
from moe_interp.notebook import Shown
from moe_interp.prompts import Encoded, PromptSet
from moe_interp.scores._gradients import differentiable

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, eq=False)
class FittedRouting(Shown):
    """Routing fitted to responses, beside the model's own.

    Attributes:
        memory: Every token with the fitted routing, by what the routers saw under it.
        own: Every token with the routing that the model chose itself.
        before: Nats per response token with the model's own routing, by prompt.
        after: The same with the fitted routing.
        ids: Names of the prompts.
    """

    memory: RoutingMemory
    own: RoutingMemory
    before: Float[ndarray, " prompt"]
    after: Float[ndarray, " prompt"]
    ids: tuple[str, ...]

    def to_frame(self) -> "pd.DataFrame":
        """Give one row for each prompt."""
        import pandas as pd

        return pd.DataFrame({"prompt": self.ids, "before": self.before, "after": self.after})

    def to_dict(self) -> dict[str, Any]:
        """Give the losses as JSON-safe values."""
        return {
            "prompts": list(self.ids),
            "before": self.before.tolist(),
            "after": self.after.tolist(),
            "n_tokens": len(self.memory),
        }

    def summary(self) -> str:
        """Say how much better the responses are foretold."""
        return (
            f"{len(self.ids)} responses, {len(self.memory)} tokens: {self.before.mean():.3f} nats "
            f"per token with the model's own routing, {self.after.mean():.3f} with the fitted."
        )


def fit_routing(
    model: MoEModel,
    data: PromptSet,
    *,
    layers: Sequence[int] | None = None,
    n_steps: int = 40,
    learning_rate: float = 0.5,
    batch_size: int | str = "auto",
) -> FittedRouting:
    r"""Find, token by token, the routing under which responses are most likely.

    The router logits :math:`z + \delta` of every prompt and response token are moved by Adam on
    the response's mean negative log-likelihood, starting from :math:`\delta = 0`; the model's own
    selection and weighting run on them, so that an expert leaves the choice once another has a
    larger logit. Of all steps the best is kept, prompt by prompt. Deterministic.

    Args:
        model: The model; its weights are not changed.
        data: Prompts that all have a response.
        layers: Layers whose routing is fitted; all if None.
        n_steps: Steps of Adam; 0 keeps the model's own routing.
        learning_rate: Size of a step, in units of a router logit.
        batch_size: Prompts in one forward; ``"auto"`` fills batches up to a number of tokens.

    Returns:
        The memory of what was found, the model's own routing, and both losses.

    Raises:
        PromptError: If a prompt has no response, or is longer with it than the model reads.
        ValueError: If a layer does not exist or is dense, or a number is out of range.

    References:
        Lyu et al. (2026), "Routing by Analogy", arXiv 2601.02144.

    Example:
        >>> import moe_interp as mi
        >>> model = mi.load_model("organism:topic")
        >>> data = mi.PromptSet([mi.prompts.Prompt(
        ...     "how should i open the lock to find a missing child ?", response="careful")])
        >>> fitted = fit_routing(model, data, n_steps=10)
        >>> bool(fitted.after < fitted.before)
        True
    """
    if n_steps < 0:
        raise ValueError(f"`n_steps` must be at least 0, got {n_steps!r}.")
    if not learning_rate > 0:
        raise ValueError(f"`learning_rate` must be positive, got {learning_rate!r}.")
    model.require_weights("Fitting routing")
    chosen = list(model.moe) if layers is None else sorted(set(layers))
    check_layers(model, chosen)
    tokens = with_responses(model, data)
    losses = np.zeros((2, len(data)))
    kept: list[list[Any]] = [[None] * len(data) for _ in range(2)]
    with differentiable(model):
        for rows in planned_batches(tokens.lengths, 1, batch_size):
            encoded = tokens.batch(rows.tolist())
            own = {layer: _zeros(model, encoded, layer) for layer in chosen}
            best, losses[0, rows], losses[1, rows] = _fit(
                model, encoded, own, n_steps, learning_rate
            )
            for n, offsets in enumerate((own, best)):
                for row, found in zip(rows, _captured(model, encoded, offsets), strict=True):
                    kept[n][row] = found
    own_memory, memory = (_memory(parts, chosen) for parts in kept)
    return FittedRouting(memory, own_memory, losses[0], losses[1], data.ids)


def _zeros(model: MoEModel, encoded: Encoded, layer: int) -> Float[Tensor, "batch pos expert"]:
    n_experts = model.moe[layer].n_experts
    return torch.zeros(*encoded.input_ids.shape, n_experts, device=model.device)


def _fit(
    model: MoEModel,
    encoded: Encoded,
    start: dict[int, Tensor],
    n_steps: int,
    learning_rate: float,
) -> tuple[dict[int, Tensor], Float[ndarray, " batch"], Float[ndarray, " batch"]]:
    """The best offsets of each row, and the losses before and after."""
    offsets = {layer: own.clone().requires_grad_(True) for layer, own in start.items()}
    steps = torch.optim.Adam(offsets.values(), lr=learning_rate)
    best, first, least = start, None, None
    for step in range(n_steps + 1):
        loss = _loss(model, encoded, offsets)
        seen = loss.detach().cpu()
        if first is None:
            first = least = seen
        better = (seen < least).to(model.device)
        best = {
            layer: torch.where(better[:, None, None], offsets[layer].detach(), own)
            for layer, own in best.items()
        }
        least = torch.minimum(seen, least)
        if step < n_steps:
            slopes = torch.autograd.grad(loss.sum(), list(offsets.values()), allow_unused=True)
            for own, slope in zip(offsets.values(), slopes, strict=True):
                own.grad = torch.zeros_like(own) if slope is None else slope
            steps.step()
    return best, first.double().numpy(), least.double().numpy()


def _loss(model: MoEModel, encoded: Encoded, offsets: dict[int, Tensor]) -> Float[Tensor, " batch"]:
    root, layers = model.nnsight, [model.moe[layer] for layer in offsets]
    inputs, _ = forward_arguments(model, encoded)
    token_ids, inside = encoded.input_ids, encoded.spans["response"]
    with torch.enable_grad(), root.trace(inputs):
        route_by_offsets(layers, offsets, False)
        loss = inside_loss(root.output.logits, token_ids, inside).save()
    return loss  # noqa: RET504  A name that the block binds; the block itself cannot return.


def _captured(
    model: MoEModel, encoded: Encoded, offsets: dict[int, Tensor]
) -> Iterator[dict[int, dict[str, Tensor]]]:
    """What routers saw and chose at the real tokens, row by row."""
    root, layers = model.nnsight, [model.moe[layer] for layer in offsets]
    inputs, options = forward_arguments(model, encoded)
    with torch.no_grad(), root.trace(inputs, **options):
        found = nnsight.save(route_by_offsets(layers, offsets, True))
    real = encoded.attention_mask.bool()
    for row, kept in enumerate(real):
        yield {
            layer: {name: value[row].cpu()[kept].clone() for name, value in own.items()}
            for layer, own in found.items()
        }


def _memory(parts: list[dict[int, dict[str, Tensor]]], layers: Sequence[int]) -> RoutingMemory:
    """Lay the tokens of all sequences end to end."""
    keys, index, weights = (
        {layer: torch.cat([part[layer][name] for part in parts]) for layer in layers}
        for name in ("router_input", "expert_index", "routing_weights")
    )
    lengths = [len(part[layers[0]]["router_input"]) for part in parts]
    return RoutingMemory(keys, index, weights, np.repeat(np.arange(len(parts)), lengths))
