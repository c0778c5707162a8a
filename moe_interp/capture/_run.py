"""Run the batches of a block here: one that is too large for the memory is halved and tried again.

What a prompt fails of is noted where failures are to be skipped, and nothing is left out silently.
"""

import gc
import inspect
import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import nnsight
import torch
from jaxtyping import Float
from torch import Tensor

from moe_interp.models import MoEModel
from moe_interp.models._traced_record import record_layers
from moe_interp.prompts import Encoded, TokenizedPrompts

#: The random routers of a layer, or what a server draws them from.
Routers = Float[Tensor, "d_model draw expert"] | dict[str, Any]
Found = dict[int, dict[str, Tensor]]

ON_ERROR = ("raise", "skip")
_log = logging.getLogger("moe_interp")


def recorded_here(
    model: MoEModel,
    tokens: TokenizedPrompts,
    batches: Sequence[Sequence[int]],
    quantities: Sequence[str],
    routers: dict[int, Routers],
    padding_side: str,
    *,
    on_error: str = "raise",
    failed: dict[int, str] | None = None,
) -> Iterator[tuple[Sequence[int], Found]]:
    """Run batches and read their layers, one after the other.

    Args:
        model: The model.
        tokens: The prompts as tokens.
        batches: The prompts of each batch.
        quantities: What to record.
        routers: Random routers of each layer.
        padding_side: ``"right"`` or ``"left"``.
        on_error: What to do about a prompt that fails: ``"raise"`` or ``"skip"``.
        failed: Where the reasons are noted, by prompt.

    Yields:
        The prompts of a batch, or a part of it, and what `record_layers` recorded of them.
    """

    def run(chosen: Sequence[int]) -> Found:
        encoded = tokens.batch(chosen, padding_side=padding_side)
        return run_batch(model, encoded, quantities, routers)

    for chosen in batches:
        yield from tried(run, chosen, on_error=on_error, failed={} if failed is None else failed)


def tried(
    run: Callable[[Sequence[int]], Found],
    chosen: Sequence[int],
    *,
    on_error: str,
    failed: dict[int, str],
) -> Iterator[tuple[Sequence[int], Found]]:
    """Run a batch; halve it where it does not fit, and find the prompts that fail.

    Args:
        run: What runs some prompts.
        chosen: The prompts of the batch.
        on_error: As in `recorded_here`.
        failed: As in `recorded_here`.

    Yields:
        The prompts that were run together, and what was recorded of them.
    """
    waiting = [list(chosen)]
    while waiting:
        some = waiting.pop()
        try:
            found = run(some)
        except Exception as error:
            too_large = is_out_of_memory(error)
            if len(some) == 1 or not (too_large or on_error == "skip"):
                if on_error != "skip":
                    raise
                failed[some[0]] = reason(error)
                _log.warning("prompt %d failed and is left out: %s", some[0], failed[some[0]])
                continue
            told = reason(error)
        else:
            yield some, found
            continue
        # Outside of the handler, whose error holds on to all that was computed.
        half = len(some) // 2
        if too_large:
            _log.warning("a batch of %d did not fit and is halved: %s", len(some), told)
            waiting += [some[half:], some[:half]]
            free_memory()
        else:
            waiting += [[prompt] for prompt in reversed(some)]


def run_batch(
    model: MoEModel,
    encoded: Encoded,
    quantities: Sequence[str],
    routers: dict[int, Routers],
) -> Found:
    """Run one batch and read its layers; the block names nothing but these locals.

    Args:
        model: The model.
        encoded: The batch.
        quantities: What to record.
        routers: Random routers of each layer.

    Returns:
        By layer, what `record_layers` recorded.
    """
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


def is_out_of_memory(error: BaseException | None) -> bool:
    """Whether an error, or one that it came from, says that memory did not suffice.

    Args:
        error: The error.

    Returns:
        Whether it does; on a processor torch has no class of its own for it.
    """
    while error is not None:
        if isinstance(error, MemoryError | torch.OutOfMemoryError):
            return True
        text = str(error).lower()
        if isinstance(error, RuntimeError) and (
            "out of memory" in text or "can't allocate memory" in text
        ):
            return True
        error = error.__cause__ or error.__context__
    return False


def reason(error: BaseException) -> str:
    """Say in one line what went wrong.

    Args:
        error: The error.

    Returns:
        Its kind and the first line of its text.
    """
    first = next((line for line in str(error).splitlines() if line.strip()), "")
    return f"{type(error).__name__}: {first.strip()[:300]}"


def free_memory() -> None:
    """Give back what a failed batch held."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
