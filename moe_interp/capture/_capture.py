"""record_routing: run prompts through a model and keep where every token went."""

import inspect
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import nnsight
import numpy as np
import torch
from jaxtyping import Float
from rich.console import Console
from rich.progress import track
from torch import Tensor

from moe_interp.capture._arrays import (
    check_finite,
    empty_arrays,
    fill_batch,
    to_dataset,
)
from moe_interp.capture._batches import plan_batches
from moe_interp.capture._record import RoutingRecord
from moe_interp.capture._store import check_free
from moe_interp.capture._there import recorded_there
from moe_interp.errors import UnsupportedArchitectureError
from moe_interp.models import MoEModel
from moe_interp.models._traced_record import record_layers
from moe_interp.prompts import Encoded, Prompt, PromptSet, TokenizedPrompts, tokenize

QUANTITIES = (
    *("expert_index", "routing_weights", "router_logits", "router_probs"),
    "mean_router_input",
)
DEFAULT_QUANTITIES = QUANTITIES[:3]
DEFAULT_RANDOM_ROUTERS = 99
_MAX_ROUTER_BYTES = 8 * 2**30

Found = TypeVar("Found")
#: The random routers of a layer, or what a server draws them from.
Routers = Float[Tensor, "d_model draw expert"] | dict[str, Any]


def record_routing(
    model: MoEModel,
    prompts: PromptSet | Sequence[str],
    *,
    quantities: Sequence[str] = DEFAULT_QUANTITIES,
    spans: Sequence[str] = ("user", "prompt", "last"),
    batch_size: int | str = "auto",
    padding_side: str = "right",
    store: str | Path | None = None,
    n_random_routers: int | None = None,
    rng: np.random.Generator | None = None,
    progress: bool = True,
) -> RoutingRecord:
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
        store: A folder to save the record to.
        n_random_routers: How many random routers each layer gets; by default 99 if `rng` is
            given, else none.
        rng: Source of the random routers.
        progress: Whether to show a progress bar on stderr, if that is a terminal.

    Returns:
        The record, prompts in the order given.

    Raises:
        PromptError: If a prompt is longer than the model reads.
        SpanError: If a span is unknown, cannot be located exactly, or is empty in all prompts.
        ResultExistsError: If `store` exists; raised before the model runs.
        UnsupportedArchitectureError: If the MoE layers differ in size.
        ValueError: If an option has another value, or the model gives weights that are not finite.

    Example:
        >>> import moe_interp as mi
        >>> model = mi.load_model("organism:topic")
        >>> record = mi.record_routing(model, ["how do i bake bread"])
        >>> record.shares("user").shape
        (1, 4, 16)
    """
    quantities = checked_quantities(quantities)
    if store is not None:
        check_free(store)
    if not isinstance(prompts, PromptSet):
        prompts = PromptSet(map(Prompt, prompts), source="texts")
    tokens = tokenize(
        model.tokenizer, prompts, max_length=model.max_positions, spans=tuple(dict.fromkeys(spans))
    )
    batches = plan_batches(tokens.lengths, batch_size=batch_size)
    routers = _random_routers(model, n_random_routers, rng)
    n_draws = _n_draws(routers)
    arrays = empty_arrays(model.architecture, tokens, quantities, n_draws=n_draws)
    if model.connection is None:
        recorded = _recorded_here(model, tokens, batches, quantities, routers, padding_side)
    else:
        recorded = recorded_there(model, tokens, batches, quantities, routers, padding_side)
    for chosen, found in _shown(recorded, len(batches), progress=progress):
        fill_batch(arrays, found, tokens, chosen)
    check_finite(arrays["routing_weights"], model.architecture, tokens, prompts)
    record = RoutingRecord(to_dataset(model.architecture, prompts, tokens, arrays, quantities))
    if store is not None:
        record.save(store)
    return record


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


def _random_routers(
    model: MoEModel, n_routers: int | None, rng: np.random.Generator | None
) -> dict[int, Routers]:
    """Draw the random routers of each layer, layer after layer."""
    sizes = {(layer.n_experts, layer.top_k) for layer in model.moe.values()}
    if len(sizes) > 1:
        raise UnsupportedArchitectureError(
            f"The MoE layers of {model.id!r} differ in their numbers of experts and of choices: "
            f"{sorted(sizes)}. A record needs them to be the same in all layers."
        )
    if n_routers is None:
        n_routers = 0 if rng is None else DEFAULT_RANDOM_ROUTERS
    if n_routers < 0 or (n_routers > 0 and rng is None):
        raise ValueError(
            f"`n_random_routers` must be 0, or positive with `rng`, got {n_routers!r} and "
            f"rng={rng!r}. Pass rng=numpy.random.default_rng(0)."
        )
    if not n_routers:
        return {}
    n_experts, d_model = model.architecture.n_experts, model.architecture.d_model
    needed = len(model.moe) * d_model * n_routers * n_experts * 4
    if needed > _MAX_ROUTER_BYTES:
        raise ValueError(
            f"{n_routers} random routers of {len(model.moe)} layers, {d_model} inputs and "
            f"{n_experts} experts need {needed / 2**30:.0f} GiB; at most "
            f"{_MAX_ROUTER_BYTES / 2**30:.0f} GiB are allowed. Pass a smaller `n_random_routers`."
        )
    routers: dict[int, Routers] = {}
    for layer in model.moe:
        state = rng.bit_generator.state
        drawn = rng.standard_normal((n_routers, d_model, n_experts), dtype=np.float32)
        if model.connection is not None:
            # Matrices would outweigh all that comes back; a server draws the same ones again.
            routers[layer] = {"state": state, "shape": drawn.shape}
            continue
        ordered = np.ascontiguousarray(drawn.transpose(1, 0, 2))
        routers[layer] = torch.from_numpy(ordered).to(model.device)
    return routers


def _n_draws(routers: dict[int, Routers]) -> int:
    first = next(iter(routers.values()), None)
    if first is None:
        return 0
    return first.shape[1] if isinstance(first, Tensor) else first["shape"][0]


def _recorded_here(
    model: MoEModel,
    tokens: TokenizedPrompts,
    batches: Sequence[Sequence[int]],
    quantities: Sequence[str],
    routers: dict[int, Routers],
    padding_side: str,
) -> Iterator[tuple[Sequence[int], dict[int, dict[str, Tensor]]]]:
    """Run batches and read their layers, one after the other."""
    for chosen in batches:
        encoded = tokens.batch(chosen, padding_side=padding_side)
        yield chosen, _run_batch(model, encoded, quantities, routers)


def _run_batch(
    model: MoEModel,
    encoded: Encoded,
    quantities: Sequence[str],
    routers: dict[int, Routers],
) -> dict[int, dict[str, Tensor]]:
    """Run one batch and read its layers; the block names nothing but these locals."""
    nn = model.nnsight
    layers = list(model.moe.values())
    names = list(quantities)
    inputs = {name: value.to(model.device) for name, value in encoded.inputs.items()}
    real = encoded.attention_mask.bool()
    spans = torch.stack(list(encoded.spans.values()))
    # The logits over the vocabulary are not looked at, and would outweigh all the rest.
    takes = inspect.signature(nn._module.forward).parameters
    options = {"logits_to_keep": 1} if "logits_to_keep" in takes else {}
    with torch.no_grad(), nn.trace(inputs, **options):
        recorded = nnsight.save(record_layers(layers, names, real, spans, routers))
    return recorded  # noqa: RET504  Only a name bound in the block leaves it.


def _shown(found: Iterable[Found], n_batches: int, *, progress: bool) -> Iterable[Found]:
    """What is found batch by batch, with a progress bar where somebody can see it."""
    console = Console(stderr=True)
    return track(
        found,
        description="capturing routing",
        total=n_batches,
        console=console,
        transient=True,
        disable=not progress or not console.is_terminal,
    )
