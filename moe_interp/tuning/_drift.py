"""routing_drift: how far the routing of the same tokens moved between two models."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from einops import rearrange
from jaxtyping import Float, Int
from numpy import ndarray
from scipy import special, stats

from moe_interp.capture import RoutingRecord, slots_changed
from moe_interp.notebook import Shown

if TYPE_CHECKING:
    from pandas import DataFrame


@dataclass(frozen=True)
class RoutingDrift(Shown):
    """How far routing moved, for each prompt and layer.

    Attributes:
        span: The tokens that count.
        layers: Absolute decoder layers.
        slots_changed: Fraction of the slots whose expert the other model did not choose at that
            token, in [0, 1].
        kl_nats: Mean over tokens of KL(before || after) of the softmax of the router's logits,
            divided by the temperature; None if a record has no logits.
        temperature: That the logits were divided by.
    """

    span: str
    layers: tuple[int, ...]
    slots_changed: Float[ndarray, "prompt layer"]
    kl_nats: Float[ndarray, "prompt layer"] | None
    temperature: float = 1.0

    def mean(self, *, confidence: float = 0.95) -> tuple[float, float, float]:
        """Fraction of slots changed over all layers, with its t interval across prompts.

        Args:
            confidence: Coverage of the interval.

        Returns:
            The mean and the ends of the interval, which are NaN for a single prompt.
        """
        by_prompt = self.slots_changed.mean(axis=1)
        mean = float(by_prompt.mean())
        if len(by_prompt) < 2:
            return mean, float("nan"), float("nan")
        error = by_prompt.std(ddof=1) / np.sqrt(len(by_prompt))
        reach = stats.t.ppf((1 + confidence) / 2, len(by_prompt) - 1) * error
        return mean, float(mean - reach), float(mean + reach)

    def to_frame(self) -> "DataFrame":
        """Give one row a layer."""
        import pandas as pd

        columns = {"layer": self.layers, "slots_changed": self.slots_changed.mean(axis=0)}
        if self.kl_nats is not None:
            columns["kl_nats"] = self.kl_nats.mean(axis=0)
        return pd.DataFrame(columns)

    def to_dict(self) -> dict[str, Any]:
        """Give the numbers as JSON-safe values."""
        mean, low, high = self.mean()
        return {
            "span": self.span,
            "slots_changed": mean,
            "low": low if np.isfinite(low) else None,
            "high": high if np.isfinite(high) else None,
            "temperature": self.temperature,
            "layers": self.to_frame().to_dict("list"),
        }

    def summary(self) -> str:
        """Say how far routing moved in a line."""
        mean, low, high = self.mean()
        kl = "" if self.kl_nats is None else f", KL {self.kl_nats.mean():.3g} nats a token"
        return (
            f"{mean:.2%} [{low:.2%}, {high:.2%}] of the routed slots changed ({self.span!r} tokens "
            f"of {len(self.slots_changed)} prompts, {len(self.layers)} layers){kl}."
        )


def routing_drift(
    before: RoutingRecord, after: RoutingRecord, *, span: str = "prompt", temperature: float = 1.0
) -> RoutingDrift:
    """Compare the routing of the same tokens in two models, such as before and after tuning.

    Args:
        before: Record of the first model.
        after: Record of the second, of the same prompts as the same tokens.
        span: The tokens that count.
        temperature: What logits are divided by before the divergence is taken; SafeMoE takes 0.1,
            at the prompt's last token, which weighs the first choices.

    Returns:
        The drift of each prompt and layer.

    Raises:
        ValueError: If the temperature is not above 0.
        DesignError: If the records are not of the same tokens and layers.
        SpanError: If a record has no such span.

    References:
        SafeMoE (arXiv 2509.22745) and RASA (arXiv 2602.04448) measure drift by the divergence of
        router probabilities; RASET (arXiv 2605.29708) by the overlap of the chosen experts.

    Example:
        >>> import moe_interp as mi
        >>> model = mi.load_model("organism:topic")
        >>> prompts = mi.load_prompts("organism", per_topic=1)
        >>> record = mi.record_routing(model, prompts)
        >>> routing_drift(record, record).mean()
        (0.0, 0.0, 0.0)
    """
    if not temperature > 0:
        raise ValueError(f"`temperature` must be above 0, got {temperature!r}.")
    changed = slots_changed(before, after, span)
    divergence = None
    if all("router_logits" in record.dataset for record in (before, after)):
        inside = before.inside(span)
        old, new = (
            special.log_softmax(
                record.dataset["router_logits"].values[inside].astype(float) / temperature, -1
            )
            for record in (before, after)
        )
        owner = before.dataset["prompt_index"].values[inside]
        divergence = _by_prompt((np.exp(old) * (old - new)).sum(axis=-1), owner)
    return RoutingDrift(span, before.layers, changed, divergence, temperature)


def _by_prompt(
    values: Float[ndarray, "inside layer"], owner: Int[ndarray, " inside"]
) -> Float[ndarray, "prompt layer"]:
    """Means over the tokens of each prompt that has one."""
    _, prompt, counts = np.unique(owner, return_inverse=True, return_counts=True)
    total = np.zeros((len(counts), values.shape[1]))
    np.add.at(total, prompt, values)
    return total / rearrange(counts, "prompt -> prompt 1")
