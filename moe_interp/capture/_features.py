"""Other features of a record's prompts, as `transfer_auc` decodes them beside routing."""

import numpy as np
from einops import rearrange
from jaxtyping import Float
from numpy import ndarray
from numpy.random import Generator

from moe_interp.capture._record import RoutingRecord
from moe_interp.experts import ExpertSet
from moe_interp.stats import bag_of_tokens, random_expert_features


def decoding_baselines(
    record: RoutingRecord,
    span: str,
    *,
    experts: ExpertSet | None = None,
    n_draws: int = 20,
    rng: Generator | None = None,
) -> dict[str, Float[ndarray, "..."]]:
    """Build what routing has to beat, from all that a record holds.

    ``"bag_of_tokens"`` is how often each token occurs, in the geometry of routing. Captured with
    ``n_random_routers``, a record also gives ``"random_router"``, the routing of untrained
    routers on the same inputs; captured with the quantity ``"mean_router_input"``, it gives
    ``"hidden_state"``, what the routers read, averaged over the span. For chosen experts,
    ``"random_experts"`` are as many others of the same layers.

    Args:
        record: The record.
        span: A recorded span.
        experts: The experts that are decoded from, if not all.
        n_draws: Largest number of random routers, and number of random sets of experts.
        rng: Source of the random sets; needed with `experts`.

    Returns:
        Name to features, ``[prompt feature]``, or ``[draw prompt feature]`` if they are random; of
        the same prompts as `record.profile(span)`.

    Raises:
        SpanError: If the span was not recorded.
        PromptError: If no prompt has a token in it.
        ValueError: If `experts` are given without `rng` or are not of this record, or `n_draws`
            is not positive.

    Example:
        >>> import moe_interp as mi
        >>> record = mi.record_routing(
        ...     mi.load_model("organism:harm"), mi.load_prompts("organism", per_topic=4),
        ...     quantities=["expert_index", "mean_router_input"], progress=False)
        >>> {name: own.shape for name, own in mi.decoding_baselines(record, "last").items()}
        {'bag_of_tokens': (64, 1), 'hidden_state': (64, 256)}
    """
    if n_draws < 1:
        raise ValueError(f"`n_draws` must be at least 1, got {n_draws!r}.")
    kept = record.has_tokens(span)
    if not kept.all():
        record = record.select(kept)
    inside = record.inside(span)
    dataset = record.dataset
    found = {
        "bag_of_tokens": bag_of_tokens(
            dataset["token_id"].values[inside].astype(np.int64),
            dataset["prompt_index"].values[inside].astype(np.int64),
            record.n_prompts,
        )
    }
    if "mean_router_input" in dataset:
        means = dataset["mean_router_input"].sel(span=span).values
        found["hidden_state"] = rearrange(means, "prompt layer d_model -> prompt (layer d_model)")
    if record.n_random_routers:
        profile = record.profile(span)
        everyone = np.arange(record.n_prompts)
        points = [
            profile.points(everyone, draw.astype(np.float64))
            for draw in record.random_profiles(span)[:n_draws]
        ]
        found["random_router"] = rearrange(
            np.stack(points), "draw prompt layer expert -> draw prompt (layer expert)"
        )
    if experts is not None:
        if rng is None:
            raise ValueError(
                "`experts` need `rng` to draw others beside them: pass "
                "rng=numpy.random.default_rng(0)."
            )
        found["random_experts"] = random_expert_features(
            record.profile(span), experts, n_draws=n_draws, rng=rng
        )
    return found
