"""The audit, readable top to bottom: capture, test, find experts, check them causally, say so."""

import importlib.metadata
import platform
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from moe_interp import __version__
from moe_interp.audit._causal import CausalCheck, check_causally
from moe_interp.audit._result import SCHEMA_VERSION, AuditResult
from moe_interp.audit._words import card_truth, method, spans_note
from moe_interp.capture import RoutingRecord, check_confounds, record_routing
from moe_interp.errors import DesignError
from moe_interp.models import MoEModel
from moe_interp.prompts import PromptSet, pair_report
from moe_interp.scores import selection_frequency
from moe_interp.stats import ExpertTests, Verdict, design_effect, expert_tests, verdict

SPANS = ("user", "prompt", "last")
# The same tokens in both members of a pair, and as many: what differs is what they have read.
SHARED_END = "after_divergence"
# Seven controls at full resolution would take as long as everything before them.
N_CONTROL_RESAMPLES = 999
_PACKAGES = ("torch", "transformers", "nnsight", "numpy", "scipy", "xarray", "zarr", "plotly")


def run_audit(
    model: MoEModel,
    prompts: PromptSet,
    *,
    seed: int = 0,
    mode: str = "ban",
    alpha: float = 0.05,
    n_resamples: int = 9999,
    n_random_routers: int = 99,
    n_null: int = 100,
    openers: Sequence[str] | None = None,
    batch_size: int | str = "auto",
    progress: bool = False,
) -> AuditResult:
    """Test whether routing follows topic or harm, and which experts carry the refusal.

    The routing is captured once. For each span, shares of topic and harm are tested and compared
    with random routers on the same hidden states. Experts are chosen by gradient attribution and
    greedy ablation on one half of the prompts and ablated on the other half, beside random
    experts of the same layers with like use, and beside the experts whose use differs most
    between harmful and harmless prompts. Where a server lets no gradients through, ablation of
    each expert alone, which takes more forwards, stands in for attribution. The verdict is that
    of the span ``user``.

    Where every prompt has a partner and ends with the same tokens as this one, that end is a span
    too (``after_divergence``): what harm does there is due neither to which tokens are read nor to
    how many.

    Args:
        model: The model.
        prompts: Prompts with topic and harm; a topic with one harm level is left out.
        seed: The same seed gives the same numbers.
        mode: How experts are taken away: ``"ban"`` or ``"zero"``.
        alpha: Level of every test.
        n_resamples: Relabellings in each permutation test.
        n_random_routers: Random routers in the baseline.
        n_null: Random expert sets in the matched null.
        openers: Words that open a refusal, one token each; by default the card's or the usual.
        batch_size: Prompts a batch; ``"auto"`` fills batches up to a number of tokens.
        progress: Show progress on standard error.

    Returns:
        The numbers and the record.

    Raises:
        PromptError: If prompts lack harm or topic, or are longer than the context.
        DesignError: If the prompts cannot answer the question.
        ValueError: If an option is out of range, or an opener is not a single token.

    Example:
        >>> import moe_interp as mi
        >>> model = mi.load_model("organism:topic")
        >>> prompts = mi.load_prompts("organism", per_topic=8)
        >>> few = {"n_resamples": 199, "n_random_routers": 39, "n_null": 20}
        >>> mi.run_audit(model, prompts, **few).results["verdict"]
        'topic_driven'
    """
    seconds: dict[str, float] = {}
    streams = np.random.SeedSequence(seed).spawn(5)
    routers, relabel, per_expert, causal_stream, controlled = map(np.random.default_rng, streams)
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always", UserWarning)
        prompts = prompts.balanced()
    left_out = [str(warning.message) for warning in heard]
    for message in left_out:
        warnings.warn(message, stacklevel=2)
    spans = _spans(model, prompts)

    with _timed(seconds, "capture"):
        record = record_routing(
            model,
            prompts,
            spans=spans,
            batch_size=batch_size,
            n_random_routers=n_random_routers,
            rng=routers,
            progress=progress,
        )
    with _timed(seconds, "tests"):
        verdicts = {
            span: verdict(
                record.profile(span),
                record.random_profiles(span),
                n_resamples=n_resamples,
                rng=relabel,
                alpha=alpha,
            )
            for span in spans
        }
        tests = expert_tests(record.profile(SPANS[0]), n_resamples=n_resamples, rng=per_expert)
    with _timed(seconds, "controls"):
        sensitivity = _sensitivity(record, min(n_resamples, N_CONTROL_RESAMPLES), controlled, alpha)
    with _timed(seconds, "causal"):
        check = check_causally(
            model,
            prompts,
            frequency=selection_frequency(record, span="prompt"),
            use=selection_frequency(record, span=SPANS[0]),
            mode=mode,
            alpha=alpha,
            n_null=n_null,
            rng=causal_stream,
            openers=openers,
            batch_size=batch_size,
        )
    seconds["total"] = sum(seconds.values())
    results = _results(model, prompts, left_out, seed, verdicts, tests, check, seconds)
    results["sensitivity"] = sensitivity
    return AuditResult(results=results, record=record)


def _spans(model: MoEModel, prompts: PromptSet) -> tuple[str, ...]:
    if prompts.unpaired:
        return SPANS
    pairs = pair_report(prompts, tokenizer=model.tokenizer).pairs
    return (*SPANS, SHARED_END) if all(pair.n_suffix for pair in pairs) else SPANS


def _sensitivity(
    record: RoutingRecord, n_resamples: int, rng: np.random.Generator, alpha: float
) -> dict[str, Any]:
    """The primary verdict with confounds taken out; why not, if these prompts do not allow it."""
    span = SPANS[0]
    try:
        found = check_confounds(record, span, n_resamples=n_resamples, rng=rng, alpha=alpha)
        dispersion = design_effect(record.profile(span)).summary()
    except DesignError as error:
        return {"span": span, "rows": [], "changing": [], "refused": str(error)}
    return {**found.to_dict(), "dispersion": dispersion, "refused": None}


@contextmanager
def _timed(seconds: dict[str, float], stage: str) -> Iterator[None]:
    start = time.perf_counter()
    yield
    seconds[stage] = round(time.perf_counter() - start, 3)


def _results(
    model: MoEModel,
    prompts: PromptSet,
    left_out: list[str],
    seed: int,
    verdicts: dict[str, Verdict],
    tests: ExpertTests,
    check: CausalCheck,
    seconds: dict[str, float],
) -> dict[str, Any]:
    """Gather everything under the names that `results.json` promises."""
    primary = verdicts[SPANS[0]]
    p_values = {span: _p_values(found) for span, found in verdicts.items()}
    return {
        "schema_version": SCHEMA_VERSION,
        "model": {"id": model.id, **model.architecture.to_dict(), "card": model.card},
        "prompts": _prompts(prompts, primary, left_out),
        "spans": list(verdicts),
        "primary_span": SPANS[0],
        "seed": seed,
        "decomposition": [
            row
            for found in verdicts.values()
            if found.shares is not None
            for row in found.shares.to_dict()["rows"]
        ],
        "p_harm": p_values[SPANS[0]]["harm"],
        "p_topic": p_values[SPANS[0]]["topic"],
        "p_values": p_values,
        "verdict": primary.label,
        "verdicts": {span: found.label for span, found in verdicts.items()},
        "reasons": {span: found.reason for span, found in verdicts.items()},
        "verdict_numbers": {span: found.to_dict()["numbers"] for span, found in verdicts.items()},
        "what_would_change": {span: found.what_would_change for span, found in verdicts.items()},
        "verdict_note": spans_note({span: found.label for span, found in verdicts.items()}),
        "experts": _experts(tests, check),
        "causal": check.results,
        "truth": card_truth(model.card, check.selected),
        "method": method(check.results),
        "versions": _versions(),
        "seconds": seconds,
    }


def _p_values(found: Verdict) -> dict[str, float | None]:
    """The p-values of a span; `harm` is the one of the verdict, of both tests of harm together."""
    if found.test is None or found.harm is None:
        return {"harm": None, "harm_main": None, "harm_nested": None, "topic": None}
    return {
        "harm": _number(found.harm.p_value),
        "harm_main": _number(found.test.p_harm),
        "harm_nested": _number(found.test.p_harm_nested),
        "topic": _number(found.test.p_topic),
    }


def _prompts(prompts: PromptSet, primary: Verdict, left_out: list[str]) -> dict[str, Any]:
    return {
        "source": prompts.source,
        "n": len(prompts),
        "n_pairs": prompts.n_pairs,
        "n_harmful": int(prompts.harm.sum()),
        "n_harmless": int((~prompts.harm).sum()),
        "topics": sorted({str(topic) for topic in prompts.topics}),
        "scheme": primary.shares.words if primary.shares is not None else None,
        "digest": prompts.digest,
        "warnings": left_out,
    }


def _experts(tests: ExpertTests, check: CausalCheck) -> list[dict[str, Any]]:
    """One row per expert, the columns of `experts.csv`."""
    rows = []
    for row in tests.to_frame().to_dict("records"):
        key = (int(row["layer"]), int(row["expert"]))
        p_adjusted = _number(row["p_adjusted"])
        rows.append(
            {
                "layer": key[0],
                "expert": key[1],
                "effect": _number(row["effect"]),
                "low": _number(row["low"]),
                "high": _number(row["high"]),
                "p": _number(row["p"]),
                "p_adjusted": p_adjusted,
                "q": _number(row["q"]),
                **{name: _number(value) for name, value in check.scores_of(*key).items()},
                "selected": key in check.selected,
                "harm_routed": bool(
                    p_adjusted is not None and p_adjusted <= check.alpha and row["effect"] > 0
                ),
            }
        )
    return rows


def _versions() -> dict[str, str]:
    found = {name: importlib.metadata.version(name) for name in _PACKAGES}
    return {"moe_interp": __version__, "python": platform.python_version(), **found}


def _number(value: object) -> float | None:
    number = None if value is None else float(value)  # type: ignore[arg-type]
    return number if number is not None and np.isfinite(number) else None
