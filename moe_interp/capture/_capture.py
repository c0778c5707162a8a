"""record_routing: run prompts through a model and keep where every token went."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from moe_interp.capture._arrays import to_dataset
from moe_interp.capture._blocks import checked_shard
from moe_interp.capture._fill import fill_store, progress_bar
from moe_interp.capture._record import RoutingRecord, open_record
from moe_interp.capture._routers import draw_routers
from moe_interp.capture._run import ON_ERROR
from moe_interp.capture._session import Capture, unfit_prompts
from moe_interp.capture._store import check_resumable
from moe_interp.errors import PromptError
from moe_interp.models import MoEModel
from moe_interp.prompts import Prompt, PromptSet, tokenize

QUANTITIES = (
    *("expert_index", "routing_weights", "router_logits", "router_probs"),
    "mean_router_input",
)
DEFAULT_QUANTITIES = QUANTITIES[:3]
WEIGHT_DTYPES = ("float32", "float16")


def record_routing(
    model: MoEModel,
    prompts: PromptSet | Sequence[str],
    *,
    quantities: Sequence[str] = DEFAULT_QUANTITIES,
    spans: Sequence[str] = ("user", "prompt", "last"),
    batch_size: int | str = "auto",
    padding_side: str = "right",
    store: str | Path | None = None,
    resume: bool = True,
    shard: tuple[int, int] | None = None,
    on_error: str = "raise",
    weight_dtype: str = "float32",
    n_random_routers: int | None = None,
    rng: np.random.Generator | None = None,
    progress: bool = True,
) -> RoutingRecord | None:
    """Capture which experts every token of the prompts is routed to, and with which weights.

    What is recorded is what the model's experts received, not a recomputation. Prompts of like
    length share a batch; padding is in no number. Batch size and padding side change results by
    no more than the rounding of the model's own matrix products.

    Random routers are Gaussian matrices in the place of each layer's router. They read the same
    inputs and choose the top-k of their logits; what share of the slots each expert gets is kept
    by prompt and span. They show what routing owes to the hidden states alone. Where two logits
    meet within a hundredth of their spread, both experts share the slot: else the rounding of a
    batch would make their choice.

    On a model's server several batches share a job, and what is recorded is packed before it
    travels: routing weights and probabilities come back at half precision.

    Args:
        model: The model, from `load_model`.
        prompts: The prompts, or their texts; the tokenizer's chat template is applied.
        quantities: What to keep of each token: ``"expert_index"`` (always kept),
            ``"routing_weights"``, ``"router_logits"``, ``"router_probs"``; and of each prompt and
            span: ``"mean_router_input"``, the mean of the hidden states that each router reads.
        spans: The token sets to locate in each prompt: ``"user"``, ``"prompt"``, ``"last"``; for
            pairs ``"after_divergence"`` and ``"identical_tokens"``; and ``"response"``, which
            appends the prompts' responses. `tokenize` defines them.
        batch_size: Prompts in a batch, or ``"auto"``: by number of tokens.
        padding_side: ``"right"`` or ``"left"``.
        store: A folder to write the record to, block by block: of all prompts only their tokens
            are kept in memory. Asked for again after it was stopped, however that was, the capture
            goes on where it stood.
        resume: Whether to go on with what `store` holds of this capture.
        shard: ``(i, n)``: which of n processes this is, from 0, where several fill one `store`;
            none waits for another, and the last one makes the record whole.
        on_error: What to do about a prompt that cannot be run: ``"raise"``, or ``"skip"``, which
            leaves it out and keeps the reason in `RoutingRecord.failed`. A batch that does not fit
            into memory is halved and run again in any case.
        weight_dtype: ``"float32"``, or ``"float16"`` for half the room: format of routing weights
            and probabilities.
        n_random_routers: How many random routers each layer gets; by default 99 if `rng` is
            given, else none.
        rng: Source of the random routers.
        progress: Whether to show a progress bar on stderr, if that is a terminal.

    Returns:
        The record, prompts in the order given; opened from `store` if there is one. None if this
        was a shard and others are not done.

    Raises:
        PromptError: If a prompt is longer than the model reads.
        SpanError: If a span is unknown, cannot be located exactly, or is empty in all prompts.
        ResultExistsError: If `store` holds anything but this capture; raised before the model
            runs, and says which field differs.
        StoreFullError: If the disk is full; what was written is safe.
        UnsupportedArchitectureError: If the MoE layers differ in size.
        ValueError: If an option has another value, or the model gives weights that are not finite.

    Example:
        >>> import moe_interp as mi
        >>> model = mi.load_model("organism:topic")
        >>> record = mi.record_routing(model, ["how do i bake bread"])
        >>> record.shares("user").shape
        (1, 4, 16)
    """
    _check_choice("on_error", on_error, ON_ERROR)
    _check_choice("weight_dtype", weight_dtype, WEIGHT_DTYPES)
    own = checked_shard(shard)
    if store is not None:
        check_resumable(store)
    elif shard is not None:
        raise ValueError("`shard` needs the `store` that the processes fill together.")
    if not isinstance(prompts, PromptSet):
        prompts = PromptSet(map(Prompt, prompts), source="texts")
    names, limit = checked_quantities(quantities), model.max_positions
    skips = on_error == "skip"
    tokens = tokenize(
        model.tokenizer,
        prompts,
        max_length=None if skips else limit,
        spans=tuple(dict.fromkeys(spans)),
    )
    drawn_from = None if rng is None else rng.bit_generator.state
    asked = Capture(
        model=model,
        prompts=prompts,
        tokens=tokens,
        quantities=names,
        routers=draw_routers(model, n_random_routers, rng),
        drawn_from=drawn_from,
        batch_size=batch_size,
        padding_side=padding_side,
        weight_dtype=weight_dtype,
        on_error=on_error,
        unfit=unfit_prompts(tokens, limit) if skips else {},
    )
    if store is None:
        return _in_memory(asked, progress=progress)
    whole = fill_store(asked, store, resume=resume, shard=own, progress=progress)
    return open_record(store) if whole else None


def _in_memory(asked: Capture, *, progress: bool) -> RoutingRecord:
    """Run all prompts as one block."""
    n_prompts = len(asked.prompts)
    with progress_bar(len(asked.batches(0, n_prompts)), shown=progress) as advance:
        arrays, failed = asked.block(0, n_prompts, advance)
    if len(failed) == n_prompts:
        raise PromptError(f"Every prompt failed, the first one of: {next(iter(failed.values()))}.")
    dataset = to_dataset(
        asked.model.architecture, asked.prompts, asked.tokens, arrays, asked.quantities
    )
    ids = asked.prompts.ids
    reasons = {ids[n]: why for n, why in failed.items()}
    record = RoutingRecord(dataset.assign_attrs(failed=reasons))
    if not failed:
        return record
    return record.select(np.array([n not in failed for n in range(n_prompts)]))


def _check_choice(name: str, value: str, choices: Sequence[str]) -> None:
    if value not in choices:
        raise ValueError(f"`{name}` must be one of {tuple(choices)}, got {value!r}.")


def checked_quantities(quantities: Sequence[str]) -> tuple[str, ...]:
    """What to record, in the order of `QUANTITIES`; the index in any case.

    Args:
        quantities: What was asked for.

    Returns:
        Their names.

    Raises:
        ValueError: If one is unknown.
    """
    unknown = [name for name in quantities if name not in QUANTITIES]
    if unknown:
        raise ValueError(f"`quantities` are among {QUANTITIES}, got {unknown[0]!r}.")
    return tuple(name for name in QUANTITIES if name in quantities or name == "expert_index")
