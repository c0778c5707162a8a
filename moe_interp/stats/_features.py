"""Other features of the same prompts, to be decoded beside routing."""

import numpy as np
from einops import rearrange
from jaxtyping import Float, Int
from numpy import ndarray
from numpy.random import Generator

from moe_interp.experts import ExpertSet
from moe_interp.stats._embedding import hellinger_embedding
from moe_interp.stats._profile import RoutingProfile


def bag_of_tokens(
    token_id: Int[ndarray, " token"], prompt_index: Int[ndarray, " token"], n_prompts: int
) -> Float[ndarray, "prompt feature"]:
    """Describe prompts by how often each token occurs in them, in the geometry of routing.

    Args:
        token_id: Vocabulary id of each token of the span.
        prompt_index: The prompt it belongs to.
        n_prompts: Number of prompts.

    Returns:
        Hellinger points of the shares of tokens, one column for each id that occurs; a prompt
        without tokens is 0.

    Raises:
        ValueError: If the arrays differ in length or name prompts that do not exist.

    Example:
        >>> print(bag_of_tokens(np.array([5, 9, 9]), np.array([0, 0, 1]), 2) ** 2)
        [[0.25 0.25]
         [0.   0.5 ]]
    """
    if token_id.shape != prompt_index.shape or token_id.ndim != 1:
        raise ValueError(
            f"`token_id` and `prompt_index` must have one value a token each, got shapes "
            f"{token_id.shape} and {prompt_index.shape}."
        )
    if len(prompt_index) and not 0 <= prompt_index.min() <= prompt_index.max() < n_prompts:
        raise ValueError(
            f"`prompt_index` must lie between 0 and {n_prompts - 1}, got "
            f"{prompt_index.min()} to {prompt_index.max()}."
        )
    ids, column = np.unique(token_id, return_inverse=True)
    counts = np.zeros((n_prompts, len(ids)))
    np.add.at(counts, (prompt_index, column.reshape(-1)), 1)
    return hellinger_embedding(counts / np.maximum(counts.sum(axis=1, keepdims=True), 1))


def random_expert_features(
    profile: RoutingProfile, experts: ExpertSet, *, n_draws: int = 20, rng: Generator
) -> Float[ndarray, "draw prompt feature"]:
    """Draw as many experts as given, from each layer as many, to see whether any would do.

    Args:
        profile: The profile that the experts belong to.
        experts: The experts to compare with; drawn sets may overlap with them.
        n_draws: Number of sets to draw.
        rng: Source of randomness.

    Returns:
        Hellinger points of the shares of each set.

    Raises:
        ValueError: If `n_draws` is not positive, or `experts` is empty or not of this profile.
    """
    if n_draws < 1:
        raise ValueError(f"`n_draws` must be at least 1, got {n_draws!r}.")
    expert_columns(profile, experts)
    points = rearrange(profile.embedding, "prompt layer expert -> prompt (layer expert)")
    found = []
    for _ in range(n_draws):
        columns = [
            profile.layers.index(layer) * profile.n_experts
            + np.sort(rng.choice(profile.n_experts, size=len(chosen), replace=False))
            for layer, chosen in experts.by_layer().items()
        ]
        found.append(points[:, np.concatenate(columns)])
    return np.stack(found)


def expert_columns(profile: RoutingProfile, experts: ExpertSet | None) -> Int[ndarray, " feature"]:
    """Find the columns of experts among the flattened points.

    Args:
        profile: The profile.
        experts: The experts; all if None.

    Returns:
        Their columns.

    Raises:
        ValueError: If there are none, or one is not in the profile.
    """
    if experts is None:
        return np.arange(profile.n_layers * profile.n_experts)
    if not len(experts):
        raise ValueError("`experts` is empty; pass None to decode from all experts.")
    for expert in experts:
        if expert.layer not in profile.layers or expert.expert >= profile.n_experts:
            raise ValueError(
                f"`experts` names {expert}, but the profile has layers "
                f"{', '.join(map(str, profile.layers))} with {profile.n_experts} experts each."
            )
    return np.array(
        [profile.layers.index(own.layer) * profile.n_experts + own.expert for own in experts]
    )
