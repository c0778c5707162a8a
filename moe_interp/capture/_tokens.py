"""From a record to what the statistics need of single tokens, and to changes between records."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float
from numpy import ndarray

from moe_interp.capture._record import RoutingRecord
from moe_interp.capture._windows import read_inside
from moe_interp.errors import DesignError
from moe_interp.stats import ConfoundSensitivity, TokenRouting, confound_sensitivity
from moe_interp.stats._sensitivity import CONTROLS


def token_routing(record: RoutingRecord, span: str, *, whole: bool = False) -> TokenRouting:
    """Take the tokens of a span from a record, for controls that work token by token.

    Args:
        record: The record.
        span: A recorded span.
        whole: Whether to take all tokens of the prompts that have one in the span.

    Returns:
        Their chosen experts, ids and positions; prompts are numbered as in `record.profile`.

    Raises:
        SpanError: If the span was not recorded.
    """
    inside, dataset = record.inside(span), record.dataset
    owner = dataset["prompt_index"].values.astype(np.int64)
    present = np.unique(owner[inside])
    chosen = np.isin(owner, present) if whole else inside
    return TokenRouting(
        expert_index=read_inside(dataset, "expert_index", chosen).astype(np.int64),
        n_experts=record.n_experts,
        prompt=np.searchsorted(present, owner[chosen]),
        token_id=dataset["token_id"].values[chosen].astype(np.int64),
        pos=dataset["pos"].values[chosen].astype(np.int64),
    )


def check_confounds(
    record: RoutingRecord,
    span: str,
    *,
    controls: Sequence[str] = CONTROLS[1:],
    n_resamples: int = 9999,
    rng: np.random.Generator,
    alpha: float = 0.05,
    margin: float = 0.10,
    scheme: str = "auto",
) -> ConfoundSensitivity:
    """Repeat the verdict on a span with length, words, position or token identity taken out.

    Random routers are counted by prompt in a record, so that controls that work on tokens have
    shares and tests but no verdict. What every control does, and what its outcome means, says
    `confound_sensitivity`.

    Args:
        record: The record.
        span: A recorded span.
        controls: Which controls to run; the verdict without any always comes first.
        n_resamples: Number of relabellings of the permutation tests.
        rng: Source of randomness.
        alpha: Level.
        margin: Fraction of the other factor's share that counts as negligible.
        scheme: Exchange scheme, see `routing_shares`.

    Returns:
        Shares, tests and verdict under each control.

    Raises:
        PromptError: If some prompt does not say whether it is harmful.
        SpanError: If the span was not recorded, or no prompt has a token in it.
        ValueError: If a control is unknown or an option is out of range.
        DesignError: If the labels do not allow the question without controls.

    Example:
        >>> import moe_interp as mi
        >>> model = mi.load_model("organism:topic")
        >>> prompts = mi.load_prompts("organism", per_topic=8)
        >>> record = mi.record_routing(model, prompts, spans=["user"])
        >>> found = check_confounds(
        ...     record, "user", controls=["length"], n_resamples=99, rng=np.random.default_rng(0))
        >>> found["length"].finds_topic, found["length"].finds_harm
        (True, False)
    """
    return confound_sensitivity(
        record.profile(span),
        token_routing(record, span),
        record.random_profiles(span) if record.n_random_routers else None,
        whole=token_routing(record, span, whole=True),
        controls=controls,
        n_resamples=n_resamples,
        rng=rng,
        alpha=alpha,
        margin=margin,
        scheme=scheme,
    )


def slots_changed(
    before: RoutingRecord, after: RoutingRecord, span: str
) -> Float[ndarray, "prompt layer"]:
    """Count, prompt by prompt, the share of top-k slots that another model gives to others.

    Args:
        before: Record of the first model.
        after: Record of the second model, of the same prompts and tokens.
        span: A span that both recorded.

    Returns:
        For each prompt of `record.profile`, the share of a layer's slots whose expert the other
        model did not choose for the token; 0 if all were chosen by both, whatever their order.

    Raises:
        DesignError: If the two records are not of the same tokens and layers.
        SpanError: If the span was not recorded.
    """
    first, second = token_routing(before, span), token_routing(after, span)
    same = (
        (before.layers, before.n_experts) == (after.layers, after.n_experts)
        and first.expert_index.shape == second.expert_index.shape
        and all(
            np.array_equal(getattr(first, name), getattr(second, name))
            for name in ("prompt", "token_id", "pos")
        )
    )
    if not same:
        raise DesignError(
            f"The two records hold other tokens or layers in span {span!r}: "
            f"{first.expert_index.shape} and {second.expert_index.shape} (token, layer, top_k). "
            f"Record the same prompts with the same tokenizer and spans."
        )
    kept = (first.expert_index[..., :, None] == second.expert_index[..., None, :]).any(-1)
    lost = 1 - kept.mean(axis=-1)
    n_prompts = int(before.has_tokens(span).sum())
    sums = np.zeros((n_prompts, lost.shape[1]))
    np.add.at(sums, first.prompt, lost)
    return sums / first.n_in_prompt(n_prompts)[:, None]
