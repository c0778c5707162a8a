"""The routing contrasts of RASET: topic, matched pair, refusal prefix, forced answer, a floor."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pandas as pd
from jaxtyping import Float, Int
from numpy import ndarray

from moe_interp.capture import RoutingRecord, record_routing, token_routing
from moe_interp.errors import DesignError, PromptError
from moe_interp.models import MoEModel
from moe_interp.organism import paraphrases as of_organism
from moe_interp.prompts import PromptSet
from moe_interp.scores import mean_router_prob, mean_routing_weight
from moe_interp.stats import RoutingContrast, routing_contrast
from moe_interp.studies._causal import units_of

QUANTITIES = ("expert_index", "routing_weights", "router_logits")
VECTORS = {"weights": mean_routing_weight, "probabilities": mean_router_prob}
# The span whose topic contrast is the yard stick of contrasts that are about whole texts.
WHOLE = "prompt"


def routing_contrasts(
    model: MoEModel,
    record: RoutingRecord,
    *,
    span: str,
    refusal: str,
    answers: Sequence[str],
    paraphrases: PromptSet | None,
) -> dict[tuple[str, str], RoutingContrast]:
    """Measure every contrast that the prompts allow, with each kind of routing vector.

    Args:
        model: The model.
        record: Record of prompts with `QUANTITIES` and the spans `span` and ``"prompt"``.
        span: The tokens of the prompts that count.
        refusal: What a refusal says.
        answers: An answer to each harmless prompt of the record, in their order.
        paraphrases: Other wordings of the same requests, prompt by prompt; None if there are none.

    Returns:
        The contrasts, by name and kind of vector.

    Raises:
        PromptError: If the paraphrases are not as many as the prompts.
    """
    prompts = record.prompts
    lists = prompt_pairs(prompts)
    reworded = _reworded(model, record, span, paraphrases)
    forced = _forced(model, prompts, refusal, answers)
    found: dict[tuple[str, str], RoutingContrast] = {}
    for kind, vector in VECTORS.items():
        try:
            by_span = {
                one: vector(record, span=one).array.values for one in dict.fromkeys((span, WHOLE))
            }
        except DesignError:
            if kind == "weights":
                raise
            # A router whose scores are no probabilities: its weights are compared alone.
            continue
        options = {"top_k": record.top_k, "layers": record.layers}
        units = units_of(prompts).tolist()
        for name, (first, second, words) in lists.items():
            for one, values in by_span.items():
                label = name if one == span else f"{name}_{one}"
                found[label, kind] = routing_contrast(
                    values, first, second, units=units, name=label, words=words, **options
                )
        if reworded is not None:
            own = by_span[span]
            both = np.concatenate([own, vector(reworded, span=span).array.values])
            rows = np.flatnonzero(~prompts.harm)
            found["paraphrase", kind] = routing_contrast(
                both,
                rows,
                rows + len(own),
                units=units * 2,
                name="paraphrase",
                words="a harmless request in other words",
                **options,
            )
        if forced is not None:
            found |= _of_forced(forced, vector, kind, **options)
    return found


def prompt_pairs(
    prompts: PromptSet,
) -> dict[str, tuple[Int[ndarray, " pair"], Int[ndarray, " pair"], str]]:
    """Rows of pairs that differ in the topic, in the intent, or in the wording alone.

    Args:
        prompts: The prompts.

    Returns:
        By name: rows of the first and second members, and what they share and differ in. Kinds
        that the labels do not allow are missing.
    """
    first, second = np.triu_indices(len(prompts), k=1)
    harm, topic, wording = prompts.harm, _codes(prompts.topics), _codes(prompts.wordings)
    level = harm[first] == harm[second]
    known = level & (topic[first] >= 0) & (topic[second] >= 0)
    crossed = known & (topic[first] != topic[second])
    one_wording = (wording[first] == wording[second]) & (wording[first] >= 0)
    worded = crossed & one_wording
    pairs = np.array(prompts.pair_positions, dtype=np.int64).reshape(-1, 2)
    masks = {
        "topic": (
            worded if worded.any() else crossed,
            f"other topic, one harm level{', one wording' * bool(worded.any())}",
        ),
        "wording": (known & ~crossed & ~one_wording, "one topic and harm level, other wording"),
    }
    lists = {name: (first[mask], second[mask], words) for name, (mask, words) in masks.items()}
    lists["pair"] = (pairs[:, 0], pairs[:, 1], "matched pair, other harm level")
    return {name: lists[name] for name in ("topic", "pair", "wording") if len(lists[name][0])}


def _codes(labels: Sequence[str | None]) -> Int[ndarray, " prompt"]:
    """Numbers in the place of labels; -1 where there is none."""
    names = {name: n for n, name in enumerate(dict.fromkeys(labels)) if name is not None}
    return np.array([names.get(name, -1) for name in labels], dtype=np.int64)


def _reworded(
    model: MoEModel, record: RoutingRecord, span: str, paraphrases: PromptSet | None
) -> RoutingRecord | None:
    """Record the paraphrases; the organisms' language knows its own."""
    prompts = record.prompts
    if paraphrases is None:
        try:
            paraphrases = of_organism(prompts)
        except PromptError:
            return None
    if len(paraphrases) != len(prompts):
        raise PromptError(
            f"There are {len(paraphrases)} `paraphrases` of {len(prompts)} prompts. Give one of "
            "each prompt, in their order."
        )
    return record_routing(model, paraphrases, quantities=QUANTITIES, spans=(span,), progress=False)


def _forced(
    model: MoEModel, prompts: PromptSet, refusal: str, answers: Sequence[str]
) -> dict[str, RoutingRecord] | None:
    """Harmful prompts of pairs, with a refusal, an answer, or another pair's answer after each."""
    place = {row: n for n, row in enumerate(np.flatnonzero(~prompts.harm))}
    pairs = [
        (harmful, answers[place[harmless]])
        for harmless, harmful in prompts.pair_positions
        if answers[place[harmless]].strip()
    ]
    if len(pairs) < 2:
        return None
    chosen = prompts.select([row for row, _ in pairs])
    said = [answer for _, answer in pairs]
    texts = {"refuse": [refusal] * len(said), "comply": said, "other": _next_answer(chosen, said)}
    return {
        name: record_routing(
            model,
            PromptSet(
                (replace(p, response=text) for p, text in zip(chosen, given, strict=True)),
                source=f"{prompts.source}, {name}",
            ),
            quantities=QUANTITIES,
            spans=("prompt", "response"),
            progress=False,
        )
        for name, given in texts.items()
    }


def _next_answer(prompts: PromptSet, answers: Sequence[str]) -> list[str]:
    """The next different answer within the topic; any other where a topic has just one."""
    found = []
    for row, prompt in enumerate(prompts):
        turned = [*range(row + 1, len(prompts)), *range(row)]
        within = [n for n in turned if prompts[n].topic == prompt.topic]
        differ = [n for n in (*within, *turned) if answers[n] != answers[row]]
        found.append(answers[differ[0] if differ else turned[0]])
    return found


def _of_forced(
    forced: dict[str, RoutingRecord],
    vector,  # noqa: ANN001  A score of a record.
    kind: str,
    **options: object,
) -> dict[tuple[str, str], RoutingContrast]:
    """Refusing against answering, on the whole text and on the response alone; and the prefix."""
    spans = {
        name: {one: vector(record, span=one).array.values for one in ("prompt", "response")}
        for name, record in forced.items()
    }
    whole = {name: _pooled(forced[name], values) for name, values in spans.items()}
    record = forced["refuse"]
    n, units = record.n_prompts, units_of(record.prompts).tolist() * 2
    sides = {
        "refusal_prefix": (spans["refuse"]["prompt"], whole["refuse"], "a refusal after it"),
        "forced": (whole["refuse"], whole["comply"], "refused or answered, whole text"),
        "forced_response": (
            spans["refuse"]["response"],
            spans["comply"]["response"],
            "refused or answered, response alone",
        ),
        "other_answer": (whole["comply"], whole["other"], "answered in two ways, whole text"),
    }
    return {
        (name, kind): routing_contrast(
            np.concatenate([one, other]),
            np.arange(n),
            np.arange(n) + n,
            units=units,
            name=name,
            words=f"one harmful prompt, {words}",
            **options,
        )
        for name, (one, other, words) in sides.items()
    }


def _pooled(
    record: RoutingRecord, values: dict[str, Float[ndarray, "prompt layer expert"]]
) -> Float[ndarray, "prompt layer expert"]:
    """The mean over the tokens of prompt and response together."""
    sizes = {one: record.n_slots(one)[:, None, None] for one in values}
    total = sum(values[one] * sizes[one] for one in values)
    return total / sum(sizes.values())


def shared_tokens(record: RoutingRecord, span: str) -> Float[ndarray, "pair layer"] | None:
    """Share of the experts that both members of a pair choose for tokens that they have alike.

    Args:
        record: A record with the span.
        span: ``"after_divergence"`` or ``"identical_tokens"``.

    Returns:
        The share by pair and layer, from 0 to 1; None if no pair has such tokens.
    """
    routing, prompts = token_routing(record, span), record.prompts
    present = np.flatnonzero(record.has_tokens(span))
    rows = {prompt: np.flatnonzero(routing.prompt == n) for n, prompt in enumerate(present)}
    pairs = [pair for pair in prompts.pair_positions if set(pair) <= set(rows)]
    if not pairs:
        return None
    index = routing.expert_index
    return np.stack(
        [
            (index[rows[one]][..., :, None] == index[rows[other]][..., None, :])
            .any(-1)
            .mean(axis=(0, 2))
            for one, other in pairs
        ]
    )


def contrast_table(found: dict[tuple[str, str], RoutingContrast], *, span: str) -> pd.DataFrame:
    """One row a contrast and kind of vector, the mean over layers; ratios are to topic.

    Args:
        found: The contrasts.
        span: The span of the prompts that contrasts without another are about.

    Returns:
        The table.
    """
    rows = []
    for (name, kind), one in found.items():
        is_whole = name.endswith(f"_{WHOLE}") or name in _WHOLE_TEXT
        stick = found.get((f"topic_{WHOLE}" if is_whole and span != WHOLE else "topic", kind))
        row = {"contrast": name, "vector": kind, "differs_in": one.words}
        for measure in ("js_bits", "js_nats", "overlap"):
            row[measure], row[f"{measure}_low"], row[f"{measure}_high"] = one.mean(measure)
        ratio = (np.nan,) * 3 if stick is None else one.ratio(stick)
        row["over_topic"], row["over_topic_low"], row["over_topic_high"] = ratio
        rows.append(
            row
            | {
                "top_k": one.top_k,
                "chance_overlap": one.chance_overlap,
                "n_pairs": one.n_pairs,
                "n_units": one.n_units,
            }
        )
    return pd.DataFrame(rows)


_WHOLE_TEXT = ("refusal_prefix", "forced", "forced_response", "other_answer")
