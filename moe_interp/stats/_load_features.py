"""How a prompt's tokens load the experts of each layer: the load itself and four statistics."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from einops import rearrange
from jaxtyping import Float
from numpy import ndarray

from moe_interp.stats._profile import RoutingProfile

if TYPE_CHECKING:
    import pandas as pd

STATISTICS = ("coverage", "effective_rate", "gap", "concentration")


@dataclass(frozen=True, eq=False)
class LoadFeatures:
    """The load of every prompt over one token set, described layer by layer.

    Attributes:
        layers: Absolute decoder layers.
        load: Share of the prompt's assignments that the expert got; each layer's sum to 1.
        coverage: Share of the layer's experts that got any.
        effective_rate: exp of the load's entropy, as a share of the layer's experts.
        gap: Coverage less effective rate: experts that were touched and hardly used.
        concentration: Share of the assignments that the `n_top` most loaded experts got.
        n_top: How many experts that are.
    """

    layers: tuple[int, ...]
    load: Float[ndarray, "prompt layer expert"]
    coverage: Float[ndarray, "prompt layer"]
    effective_rate: Float[ndarray, "prompt layer"]
    gap: Float[ndarray, "prompt layer"]
    concentration: Float[ndarray, "prompt layer"]
    n_top: int

    @property
    def statistics(self) -> Float[ndarray, "prompt feature"]:
        """The four statistics of every layer, statistic after statistic."""
        return np.concatenate([getattr(self, name) for name in STATISTICS], axis=1)

    @property
    def loads(self) -> Float[ndarray, "prompt feature"]:
        """The loads of all experts, layer after layer."""
        return rearrange(self.load, "prompt layer expert -> prompt (layer expert)")

    @property
    def features(self) -> Float[ndarray, "prompt feature"]:
        """Loads and statistics side by side."""
        return np.concatenate([self.loads, self.statistics], axis=1)

    def to_frame(self) -> "pd.DataFrame":
        """Give one row per prompt and layer, with the four statistics."""
        import pandas as pd

        n_prompts, n_layers = self.coverage.shape
        columns = {
            "prompt": np.repeat(np.arange(n_prompts), n_layers),
            "layer": np.tile(self.layers, n_prompts),
        }
        return pd.DataFrame(columns | {name: getattr(self, name).ravel() for name in STATISTICS})


def load_features(profile: RoutingProfile, *, n_top: int | None = None) -> LoadFeatures:
    r"""Describe how each prompt loads the experts, as a monitor of expert loads would see it.

    With :math:`q_e` the share of a layer's assignments that expert :math:`e` of :math:`E` got:
    coverage :math:`\#\{e: q_e > 0\} / E`, effective rate :math:`e^{H(q)} / E`, the gap between
    the two, and the concentration :math:`\sum_{e \in \mathrm{top}_m} q_e`. The names are those of
    RouteScan [1]; the formulas are our reconstruction.

    Coverage and gap depend on how many tokens a prompt has: compare prompts of like length.

    Args:
        profile: Routing of every prompt over one token set.
        n_top: Experts that enter the concentration; those that one token chooses if None.

    Returns:
        The load and the four statistics.

    Raises:
        ValueError: If `n_top` is not between 1 and the number of experts.

    References:
        [1] Lv et al. (2026), "RouteScan", arXiv 2605.24817.

    Example:
        >>> found = load_features(RoutingProfile(
        ...     shares=np.array([[[0.5, 0.5, 0.0, 0.0]]]), layers=(3,), span="user",
        ...     topic=["food"], harm=[False]))
        >>> print(found.statistics)
        [[0.5 0.5 0.  0.5]]
    """
    n_top = profile.top_k if n_top is None else n_top
    if not 1 <= n_top <= profile.n_experts:
        raise ValueError(
            f"`n_top` must lie between 1 and the {profile.n_experts} experts of a layer, got "
            f"{n_top!r}."
        )
    load = profile.shares.astype(np.float64)
    load = load / load.sum(axis=2, keepdims=True)
    logs = np.log(load, out=np.zeros_like(load), where=load > 0)
    coverage = (load > 0).mean(axis=2)
    effective = np.exp(-(load * logs).sum(axis=2)) / profile.n_experts
    return LoadFeatures(
        layers=profile.layers,
        load=load,
        coverage=coverage,
        effective_rate=effective,
        gap=coverage - effective,
        concentration=np.sort(load, axis=2)[:, :, -n_top:].sum(axis=2),
        n_top=n_top,
    )
