"""Reroute: the routing that training pulls some prompts towards, in place of the base model's."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from moe_interp.models import MoEModel
from moe_interp.prompts import PromptSet, listed
from moe_interp.scores import Scores
from moe_interp.tuning._examples import Examples

#: Name of the span that marks the tokens whose routing is to move.
REROUTED = "rerouted"
_TOKENS = ("all", "answer")


@dataclass(frozen=True, eq=False)
class Reroute:
    r"""Take a cost off the log-probability that routers give to experts, for some prompts.

    With :math:`p` the base model's routing (a softmax over all experts of the router's logits)
    and :math:`c` the cost in nats, the target is :math:`p_e e^{-c_e}`, renormalised: the routing
    of least expected cost plus KL(target || p). For all other prompts the target is :math:`p`.

    Attributes:
        cost: Cost of every expert of every MoE layer, in nats.
        prompts: Ids of the prompts whose routing is to move.
        tokens: ``"all"`` moves it at every token of theirs, ``"answer"`` only where the response
            is written: at the prompt's last token and the response's own.

    Raises:
        ValueError: If `tokens` has another value, or a cost is not a finite number.
    """

    cost: Scores
    prompts: tuple[str, ...]
    tokens: str = "all"

    def __post_init__(self) -> None:
        if self.tokens not in _TOKENS:
            raise ValueError(f"`tokens` must be one of {_TOKENS}, got {self.tokens!r}.")
        if not np.isfinite(self.cost.mean).all():
            raise ValueError("`cost` must be a finite number for every expert, in nats.")

    def check(self, model: MoEModel, data: PromptSet) -> None:
        """Refuse costs of other layers or experts than the model's, and prompts that are not there.

        Args:
            model: The model.
            data: The prompts to train on.

        Raises:
            ValueError: If something does not fit.
        """
        shape = tuple((layer, site.n_experts) for layer, site in model.moe.items())
        given = tuple((layer, self.cost.n_experts) for layer in self.cost.layers)
        if given != shape:
            raise ValueError(
                f"`cost` has the layers and numbers of experts {given}, the model {shape}. Give "
                "the cost of every expert of every MoE layer."
            )
        unknown = sorted(set(self.prompts) - set(data.ids))
        if unknown or not self.prompts:
            said = f"{len(unknown)} that `data` lacks: {listed(unknown)}" if unknown else "none"
            raise ValueError(f"`prompts` names {said}. Name prompts of `data` to move routing of.")

    def marked(self, examples: Examples, data: PromptSet) -> Examples:
        """Mark the tokens whose routing is to move.

        Args:
            examples: The examples.
            data: The prompts they were made from, in the same order.

        Returns:
            The same examples, with one more span.
        """
        spans = examples.tokens.spans
        moved = set(self.prompts)
        marks = tuple(
            self._tokens_of(response) & (name in moved)
            for name, response in zip(data.ids, spans["response"], strict=True)
        )
        return Examples(replace(examples.tokens, spans={**spans, REROUTED: marks}))

    def target(
        self,
        before: Float[Tensor, "layer batch pos expert"],
        marked: Bool[Tensor, "batch pos"],
    ) -> Float[Tensor, "layer batch pos expert"]:
        """Log-probabilities that routing is pulled towards.

        Args:
            before: Those of the base model.
            marked: The tokens whose routing is to move.

        Returns:
            The same, with the cost taken off at the marked tokens.
        """
        cost = torch.as_tensor(self.cost.mean, dtype=before.dtype, device=before.device)
        moved = (before - cost[:, None, None]).log_softmax(-1)
        return torch.where(marked.to(before.device)[..., None], moved, before)

    def to_dict(self) -> dict[str, Any]:
        """Give everything as JSON-safe values."""
        return {"cost": self.cost.to_dict(), "prompts": list(self.prompts), "tokens": self.tokens}

    def _tokens_of(self, response: Bool[np.ndarray, " _"]) -> Bool[np.ndarray, " _"]:
        if self.tokens == "all":
            return np.ones_like(response)
        # What is read at a token writes the next one.
        return response | np.append(response[1:], False)
