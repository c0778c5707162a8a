"""sweep: what taking each expert away, alone, does to each prompt; exact, and no work done twice.

Five things make it cheap. An expert that no token of a prompt chose has no effect on it. Below its
layer, and before the first token that chose it, nothing changes, so that both are taken over from
one forward of the untouched model (`_sweep_capture`). Its own layer runs once for each choice of
the tokens instead of once for each expert (`_sweep_own`). In the last layer only the last token
counts. And rows of many experts and prompts share a batch. What a family does not allow is found
out by trying (`_sweep_check`).
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import track

from moe_interp.experts import Expert, ExpertSet
from moe_interp.interventions import (
    Intervention,
    Metric,
    Mode,
    as_expert_set,
    as_prompt_set,
    check_experts,
    intervention_maker,
    metric_name,
    metric_unit,
    mode_name,
)
from moe_interp.metrics import TextMetric
from moe_interp.models import MoEModel
from moe_interp.models._digests import weights_digest
from moe_interp.prompts import PromptSet, TokenizedPrompts, tokenize
from moe_interp.scores._scores import Scores
from moe_interp.scores._sweep_job import LogitJob, TextJob
from moe_interp.scores._sweep_store import SweepStore, digest


def sweep(
    model: MoEModel,
    prompts: PromptSet | Sequence[str],
    *,
    metric: Metric,
    mode: Mode = "zero",
    experts: ExpertSet | Iterable[Expert | tuple[int, int] | str] | str = "all",
    max_new_tokens: int = 24,
    batch_size: int | str = "auto",
    store: str | Path | None = None,
    resume: bool = True,
    progress: bool = False,
) -> Scores:
    """Measure what taking each expert away, alone, does to the metric of each prompt.

    Exact: the numbers are those of one run for each expert, up to rounding. An expert that no
    token of a prompt chose is exactly 0 for it. Experts that stand in for each other show no
    effect alone; `greedy_ablation` finds those.

    The attributes of the result's array say what was done: ``metric``, ``mode``, ``taken_over``
    (what the runs took over from the untouched model), ``not_taken_over`` (what this model does
    not allow, and why), and how many ``rows`` (pairs of expert and prompt), ``tokens`` of rows and
    ``forwards`` were run.

    Args:
        model: The model.
        prompts: The prompts.
        metric: What to measure: a metric, or a function of next-token logits (batch, d_vocab).
            A metric of generated texts takes none of the short cuts.
        mode: ``"zero"``, ``"ban"``, or a function that turns a set into an intervention.
        experts: The experts to take away, or ``"all"``.
        max_new_tokens: How much to generate for a metric of texts; else not used.
        batch_size: Rows in one forward; ``"auto"`` fills batches up to a number of tokens.
        store: A folder that keeps what has been measured, part by part.
        resume: Whether to go on with a sweep that `store` holds.
        progress: Whether to show a progress bar on stderr, if that is a terminal.

    Returns:
        Metric without the expert minus metric with it, for each prompt and expert; NaN for
        experts that were not asked for.

    Raises:
        ValueError: If a layer or expert does not exist, an option is out of range, the metric or
            mode does not fit, or logits are not numbers.
        TypeError: If `mode` makes something other than an intervention.
        PromptError: If a prompt is longer than the model reads.
        ResultExistsError: If `store` holds something else, or a sweep of other inputs.

    Example:
        >>> import moe_interp as mi
        >>> model = mi.load_model("organism:topic")
        >>> prompts = ["how do i open the lock to start an attack ?"]
        >>> refusal = mi.RefusalLogOdds(model.tokenizer)
        >>> scores = sweep(model, prompts, metric=refusal, experts="L3E8,L3E9,L3E0")
        >>> scores.of(3, 0)
        0.0
    """
    prompts = as_prompt_set(prompts)
    asked = _experts_by_layer(model, experts)
    interventions = _interventions(model, asked, mode)
    # Refused here rather than after hours of work.
    if max_new_tokens < 1 and isinstance(metric, TextMetric):
        raise ValueError(
            f"{metric_name(metric)} judges texts, so `max_new_tokens` must be at least 1, got "
            f"{max_new_tokens}."
        )
    tokens = tokenize(model.tokenizer, prompts, max_length=model.max_positions)
    if isinstance(metric, TextMetric):
        job = TextJob(model, prompts, asked, metric, mode, max_new_tokens, batch_size)
    else:
        max_new_tokens = 0
        job = LogitJob(model, prompts, tokens, asked, interventions, metric, batch_size)
    kept = None
    if store is not None:
        inputs = _inputs(model, tokens, interventions, metric, mode)
        further = {"max_new_tokens": max_new_tokens, "batch_size": batch_size}
        kept = SweepStore(store, {**inputs, **further}, resume=resume)
    effects, attributes = _run(model, job, list(asked), kept, progress=progress)
    unit = metric_unit(metric)
    scores = Scores.of_array("sweep", unit, effects, layers=tuple(model.moe))
    scores.array.attrs.update(metric=metric_name(metric), mode=mode_name(mode), **attributes)
    return scores


def _experts_by_layer(
    model: MoEModel, experts: ExpertSet | Iterable[Expert | tuple[int, int] | str] | str
) -> dict[int, tuple[int, ...]]:
    """The experts to take away, layer by layer."""
    if isinstance(experts, str) and experts == "all":
        return {layer: tuple(range(site.n_experts)) for layer, site in model.moe.items()}
    asked = as_expert_set(experts)
    check_experts(model, asked)
    return {layer: tuple(chosen) for layer, chosen in sorted(asked.by_layer().items())}


def _interventions(
    model: MoEModel, asked: Mapping[int, Sequence[int]], mode: Mode
) -> dict[int, list[Intervention]]:
    """How each of the experts is taken away; each is checked against the model."""
    make = intervention_maker(mode)
    made: dict[int, list[Intervention]] = {}
    for layer, experts in asked.items():
        for expert in experts:
            intervention = make(ExpertSet([Expert(layer, expert)]))
            if not isinstance(intervention, Intervention):
                raise TypeError(
                    f"`mode` {mode_name(mode)!r} must turn an ExpertSet into an Intervention such "
                    f"as Zero, got {intervention!r}."
                )
            intervention.check(model)
            made.setdefault(layer, []).append(intervention)
    return made


def _inputs(
    model: MoEModel,
    tokens: TokenizedPrompts,
    interventions: Mapping[int, Sequence[Intervention]],
    metric: Metric,
    mode: Mode,
) -> dict[str, Any]:
    """What a sweep measures, in values that are the same in every process."""
    facts = model.architecture
    done = [_words(each) for of_layer in interventions.values() for each in of_layer]
    return {
        "model": f"{facts.source} ({facts.model_class}, {facts.dtype})",
        "experts_implementation": facts.experts_implementation,
        "weights": _weights(model),
        "prompts": f"{len(tokens.token_ids)} prompts ({digest(tokens.token_ids)})",
        "metric": f"{metric_name(metric)}: {_words(metric)}",
        "mode": mode_name(mode),
        "interventions": f"{len(done)} interventions ({digest(done)})",
    }


def _weights(model: MoEModel) -> str:
    """Which weights they are; those on a server are known by its address alone."""
    connection = model.connection
    return weights_digest(model) if connection is None else f"on {connection.server.host}"


def _words(value: object) -> str:
    """What a value says it is, without the address that differs between processes."""
    return re.sub(r" at 0x[0-9a-f]+", "", repr(value))


def _run(
    model: MoEModel,
    job: LogitJob | TextJob,
    layers: Sequence[int],
    kept: SweepStore | None,
    *,
    progress: bool,
) -> tuple[np.ndarray, dict[str, Any]]:
    """Measure what is not kept yet, part by part; gives the effects and what they took."""
    notes = job.prepare({} if kept is None else kept.notes)
    if kept is not None:
        kept.begin(notes)
    n_prompts = sum(map(len, job.chunks))
    rows = {layer: row for row, layer in enumerate(model.moe)}
    effects = np.full((n_prompts, len(rows), model.architecture.n_experts), np.nan)
    counts = np.zeros(3, dtype=int)
    parts = [(chunk, layer) for chunk in range(len(job.chunks)) for layer in layers]
    console = Console(stderr=True)
    for chunk, layer in track(
        parts,
        description="taking experts away",
        console=console,
        transient=True,
        disable=not progress or not console.is_terminal,
    ):
        name = f"prompts-{chunk:05d}-layer-{layer:03d}"
        part = None if kept is None else kept.load(name)
        if part is None:
            part = job.measure(chunk, layer)
            if kept is not None:
                kept.save(name, part)
        effects[job.chunks[chunk], rows[layer]] = part.effects
        counts += (part.n_rows, part.n_tokens, part.n_forwards)
    said = {"taken_over": ", ".join(job.reuse.names), "not_taken_over": notes["not_taken_over"]}
    named = zip(("rows", "tokens", "forwards"), counts.tolist(), strict=True)
    return effects, {**said, **dict(named)}
