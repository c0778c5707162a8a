"""Runs of prompts under interventions, cut into batches whose rows may differ in both.

A row is one prompt under one list of interventions (a *recipe*). Rows are sorted by the length of
their prompt, so that little of a batch is padding, and many recipes share each batch.
"""

import inspect
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import nnsight
import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList

from moe_interp.interventions._checks import check_decoder
from moe_interp.interventions._intervention import Batch, Intervention
from moe_interp.interventions._plan import EditTable, edit_table
from moe_interp.metrics import LogitMetric
from moe_interp.models import MoEModel
from moe_interp.models._traced_edits import apply_edits
from moe_interp.models._traced_judge import judge, watch_step
from moe_interp.prompts import (
    DEFAULT_SPANS,
    PAIR_SPANS,
    Encoded,
    Prompt,
    PromptSet,
    tokenize,
)

#: Tokens, padding included, that "auto" puts into one batch.
TOKENS_PER_BATCH = 16384

Recipe = Sequence[Intervention]


@dataclass(frozen=True)
class Outcome:
    """What came out of one batch.

    Attributes:
        recipe: Which list of interventions each row had.
        prompt: Which prompt each row is.
        logits: Next-token logits after the last prompt token; None if text was generated, or if
            a server judged them.
        tokens: The generated tokens of each row up to the end of its text; None if there are none.
        values: The metric of each row, if a server judged the logits.
    """

    recipe: Int[np.ndarray, " batch"]
    prompt: Int[np.ndarray, " batch"]
    logits: Float[Tensor, "batch d_vocab"] | None = None
    tokens: tuple[tuple[int, ...], ...] | None = None
    values: Float[Tensor, " batch"] | None = None


def outcomes(
    model: MoEModel,
    prompts: PromptSet,
    recipes: Sequence[Recipe],
    *,
    max_new_tokens: int = 0,
    batch_size: int | str = "auto",
    metric: LogitMetric | None = None,
) -> Iterator[Outcome]:
    """Run every prompt under every recipe, batch by batch.

    Args:
        model: The model.
        prompts: The prompts.
        recipes: Lists of interventions.
        max_new_tokens: How many tokens to generate greedily; 0 gives logits instead.
        batch_size: Rows in a batch; ``"auto"`` fills batches up to a number of tokens.
        metric: What to make of the logits on the model's server, in their place.

    Yields:
        What came out of each batch; together the batches hold every pair of recipe and prompt.

    Raises:
        ValueError: If an option is out of range, an intervention does not fit the model, or
            logits are not numbers.
        PromptError: If a prompt, with the new tokens, is longer than the model reads.
    """
    if max_new_tokens < 0:
        raise ValueError(f"`max_new_tokens` must be at least 0, got {max_new_tokens}.")
    check_recipes(model, recipes)
    limit = None if model.max_positions is None else model.max_positions - max_new_tokens
    tokenized = tokenize(model.tokenizer, prompts, max_length=limit, spans=spans_needed(recipes))
    for rows in planned_batches(tokenized.lengths + max_new_tokens, len(recipes), batch_size):
        recipe, prompt = np.divmod(rows, len(prompts))
        encoded = tokenized.batch(prompt.tolist())
        batch = Batch(model, prompt, encoded.spans)
        groups = [(np.flatnonzero(recipe == n), recipes[n]) for n in np.unique(recipe)]
        prefill = edit_table(batch, groups, "prefill")
        if max_new_tokens:
            decode = edit_table(batch, groups, "decode")
            tokens, broken = _generate(model, encoded, prefill, decode, max_new_tokens)
            _check_numbers(broken, prompts, recipes, recipe, prompt)
            yield Outcome(recipe, prompt, tokens=tokens)
        elif metric is not None:
            values = _values_there(model, encoded, prefill, metric)
            _check_numbers(values.isnan(), prompts, recipes, recipe, prompt)
            yield Outcome(recipe, prompt, values=values)
        else:
            logits = _last_logits(model, encoded, prefill)
            _check_numbers(logits.isnan().any(-1), prompts, recipes, recipe, prompt)
            yield Outcome(recipe, prompt, logits=logits)


def spans_needed(recipes: Sequence[Recipe]) -> tuple[str, ...]:
    """The usual spans, and those of matched pairs where an intervention names them."""
    named = {getattr(intervention, "tokens", None) for recipe in recipes for intervention in recipe}
    return (*DEFAULT_SPANS, *(span for span in PAIR_SPANS if span in named))


def check_recipes(model: MoEModel, recipes: Sequence[Recipe]) -> None:
    """Refuse interventions that do not fit the model.

    Raises:
        ValueError: If one names a layer or expert that the model does not have.
    """
    for recipe in recipes:
        for intervention in recipe:
            intervention.check(model)


def as_prompt_set(prompts: PromptSet | Sequence[str]) -> PromptSet:
    """Prompts as a set, whether they come as one or as texts."""
    if isinstance(prompts, PromptSet):
        return prompts
    return PromptSet([Prompt(text) for text in prompts], source="texts")


def planned_batches(
    lengths: Int[np.ndarray, " prompt"], n_recipes: int, batch_size: int | str
) -> Iterator[Int[np.ndarray, " batch"]]:
    """Put rows into batches of similar length, the longest first.

    Args:
        lengths: Tokens of each prompt, those to be generated included.
        n_recipes: How many lists of interventions each prompt has.
        batch_size: Rows in a batch; ``"auto"`` fills batches up to a number of tokens.

    Yields:
        Numbers of rows: the recipe times the number of prompts, plus the prompt.

    Raises:
        ValueError: If `batch_size` is out of range.
    """
    if isinstance(batch_size, str) and batch_size != "auto":
        raise ValueError(f"`batch_size` must be 'auto' or a number of rows, got {batch_size!r}.")
    if isinstance(batch_size, int) and batch_size < 1:
        raise ValueError(f"`batch_size` must be at least 1, got {batch_size}.")
    by_length = np.argsort(-lengths, kind="stable")
    rows = (by_length[:, None] + len(lengths) * np.arange(n_recipes)[None, :]).ravel()
    start = 0
    while start < len(rows):
        longest = int(lengths[rows[start] % len(lengths)])
        size = max(1, TOKENS_PER_BATCH // longest) if batch_size == "auto" else int(batch_size)
        yield rows[start : start + size]
        start += size


def _last_logits(
    model: MoEModel, encoded: Encoded, edits: EditTable
) -> Float[Tensor, "batch d_vocab"]:
    """Next-token logits after each prompt; only those of the last position are computed."""
    root, layers = model.nnsight, [model.moe[layer] for layer in sorted(edits)]
    inputs, options = forward_arguments(model, encoded)
    with torch.no_grad(), root.trace(inputs, backend=model.backend(), **options):
        apply_edits(layers, edits)
        logits = root.output.logits[:, -1].clone().save()
    return logits  # noqa: RET504  A name that the block binds; the block itself cannot return.


def _values_there(
    model: MoEModel, encoded: Encoded, edits: EditTable, metric: LogitMetric
) -> Float[Tensor, " batch"]:
    """The metric of each prompt, made of its logits where they are."""
    root, layers = model.nnsight, [model.moe[layer] for layer in sorted(edits)]
    inputs, options = forward_arguments(model, encoded)
    with torch.no_grad(), root.trace(inputs, backend=model.backend(), **options):
        apply_edits(layers, edits)
        values = judge(root.output.logits[:, -1], metric).save()
    return values  # noqa: RET504  A name that the block binds; the block itself cannot return.


def forward_arguments(
    model: MoEModel, encoded: Encoded
) -> tuple[dict[str, Tensor], dict[str, int]]:
    """What a forward is called with, as far as this model's forward takes it.

    Args:
        model: The model.
        encoded: A batch, padded on the left.

    Returns:
        The inputs, and the options of a forward whose last logits are wanted.

    Raises:
        ValueError: If the model is an encoder-decoder.
    """
    check_decoder(model)
    known = inspect.signature(type(model.nnsight._module).forward).parameters
    inputs = {name: tensor for name, tensor in encoded.inputs.items() if name in known}
    return inputs, {"logits_to_keep": 1} if "logits_to_keep" in known else {}


def _generate(
    model: MoEModel,
    encoded: Encoded,
    prefill: EditTable,
    decode: EditTable,
    max_new_tokens: int,
) -> tuple[tuple[tuple[int, ...], ...], Bool[Tensor, " batch"]]:
    """Greedy continuations, and the rows whose logits were not numbers.

    A row that has ended waits for the others without changing them.
    """
    check_decoder(model)
    root, n_prompt = model.nnsight, encoded.input_ids.shape[1]
    layers = [model.moe[layer] for layer in sorted({*prefill, *decode})]
    inputs = {"input_ids": encoded.input_ids, "attention_mask": encoded.attention_mask}
    ends = end_tokens(model)
    watch = _Watch(n_prompt, ends)
    options: dict[str, Any] = {"max_new_tokens": max_new_tokens, "do_sample": False, "num_beams": 1}
    if ends:
        options["pad_token_id"] = ends[0]
    if model.connection is not None:
        sequences, broken = _generate_there(model, inputs, options, prefill, decode)
        new = sequences[:, n_prompt:].tolist()
        return tuple(_until_end(row, ends) for row in new), broken
    options["logits_processor"] = LogitsProcessorList([watch])
    with warnings.catch_warnings(), torch.no_grad():
        # nnsight warns that an open loop over steps ends with the generation; that is meant here.
        warnings.filterwarnings("ignore", message=".*was never reached", category=UserWarning)
        with root.generate(**options) as tracer:
            with tracer.invoke(inputs):
                apply_edits(layers, prefill)
                # A step of the loop that touches no layer would never end.
                if decode:
                    for _ in tracer.iter[1:]:
                        apply_edits(layers, decode)
            with tracer.invoke():
                sequences = tracer.result.save()
    new = sequences[:, n_prompt:].tolist()
    return tuple(_until_end(row, ends) for row in new), watch.broken


def _generate_there(
    model: MoEModel,
    inputs: dict[str, Tensor],
    options: dict[str, Any],
    prefill: EditTable,
    decode: EditTable,
) -> tuple[Int[Tensor, "batch pos"], Bool[Tensor, " batch"]]:
    """The same on a server, where no object of this process can look on."""
    root, ends, n_steps = model.nnsight, end_tokens(model), options["max_new_tokens"]
    layers = [model.moe[layer] for layer in sorted({*prefill, *decode})]
    with torch.no_grad(), root.generate(backend=model.backend(), **options) as tracer:
        seen = nnsight.save([])
        with tracer.invoke(inputs):
            apply_edits(layers, prefill)
            seen.append(watch_step(root.output.logits[:, -1], None, ends))
            if n_steps > 1:
                for _ in tracer.iter[1:n_steps]:
                    apply_edits(layers, decode)
                    seen.append(watch_step(root.output.logits[:, -1], seen[-1], ends))
        with tracer.invoke():
            sequences = tracer.result.save()
    return sequences, seen[-1][0]


class _Watch(LogitsProcessor):
    """Notes the rows of a generation whose logits are not numbers before their text has ended."""

    def __init__(self, n_prompt: int, ends: Sequence[int]) -> None:
        self.n_prompt, self.ends = n_prompt, ends
        self.broken: Tensor | bool = False

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        new = input_ids[:, self.n_prompt :]
        ended = torch.isin(new, new.new_tensor(self.ends)).any(-1)
        self.broken = self.broken | (scores.isnan().any(-1) & ~ended)
        return scores


def end_tokens(model: MoEModel) -> list[int]:
    """The tokens that end a text of the model: those of its generation, or the tokenizer's."""
    config = getattr(model.nnsight._module, "generation_config", None)
    ends = getattr(config, "eos_token_id", None)
    if ends is None:
        ends = model.tokenizer.eos_token_id
    return [] if ends is None else [ends] if isinstance(ends, int) else list(ends)


def _until_end(tokens: Sequence[int], ends: Sequence[int]) -> tuple[int, ...]:
    """The tokens up to and with the first that ends a text."""
    stops = [place for place, token in enumerate(tokens) if token in ends]
    return tuple(tokens[: stops[0] + 1]) if stops else tuple(tokens)


def _check_numbers(
    rows: Bool[Tensor, " batch"],
    prompts: PromptSet,
    recipes: Sequence[Recipe],
    recipe: Int[np.ndarray, " batch"],
    prompt: Int[np.ndarray, " batch"],
) -> None:
    broken = rows.nonzero().flatten().tolist()
    if broken:
        under = list(recipes[recipe[broken[0]]]) or "no intervention"
        raise ValueError(
            f"The logits of prompt {prompts.ids[prompt[broken[0]]]!r} under {under} are not "
            f"numbers (NaN), as in {len(broken)} of {len(rows)} rows of its batch. Check the "
            "model's weights and dtype; half precision may overflow."
        )
