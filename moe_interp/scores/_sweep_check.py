"""What a sweep of this model may take over: tried on a few rows against full forwards.

Some families hand more from layer to layer than hidden states (router states, shared keys and
values), keep other things than keys and values of tokens, or let later tokens act on earlier ones.
No list of families is kept: what does not give the numbers of full forwards is not used.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy import ndarray
from torch import Tensor

from moe_interp.interventions import Intervention
from moe_interp.models import MoEModel
from moe_interp.prompts import TokenizedPrompts
from moe_interp.scores._sweep_anatomy import Anatomy, Reuse
from moe_interp.scores._sweep_capture import capture
from moe_interp.scores._sweep_forward import Rows, run_rows
from moe_interp.scores._sweep_own import own_layer
from moe_interp.scores._sweep_plan import changed_rows

N_PROMPTS = 4
N_ROWS = 6
#: Rounding allowed for, in units of the dtype's precision times the largest logit: what the shape
#: of a batch changes in tiny random models reaches a third of it. Half precision rounds every
#: layer's output, so that its errors are few and large.
ALLOWED = {torch.float64: 512, torch.float32: 512, torch.float16: 8, torch.bfloat16: 8}

logger = logging.getLogger("moe_interp")


@dataclass(frozen=True)
class Trial:
    """Full forwards of some rows of one layer.

    Attributes:
        interventions: The interventions that the rows name.
        rows: The rows.
        logits: Their next-token logits.
    """

    interventions: Sequence[Intervention]
    rows: Rows
    logits: Float[Tensor, "row d_vocab"]


def settle_reuse(
    model: MoEModel,
    tokens: TokenizedPrompts,
    by_layer: Mapping[int, Sequence[Intervention]],
    places: Anatomy,
) -> tuple[Reuse, str]:
    """Find what may be taken over from the untouched model without changing a number.

    Args:
        model: The model.
        tokens: All prompts.
        by_layer: The interventions of each layer.
        places: Where the forward can be cut.

    Returns:
        What may be taken over, and in words what may not, and why; empty if all of it may.
    """
    sample = _sample(tokens.lengths)
    whole = capture(model, tokens.batch(sample.tolist()), sample, places, Reuse(), ())
    trials = []
    for interventions in by_layer.values():
        for rows in changed_rows(model, whole, interventions, last=None):
            some = rows.take(_spread(rows.length))
            logits = run_rows(model, whole, interventions, some, places, Reuse())
            trials.append(Trial(interventions, some, logits))

    def problem(reuse: Reuse) -> str:
        return _problem(model, tokens, sample, trials, places, reuse)

    possible = places.possible
    if not problem(possible):
        return possible, ""
    alone = {
        "layers": Reuse(layers=True),
        "positions": Reuse(positions=True),
        "last": Reuse(last=True),
        "own": Reuse(layers=True, own=True),
    }
    reasons = {name: problem(single) for name, single in alone.items()}
    passed = Reuse(**{name: not reason for name, reason in reasons.items()})
    together = problem(passed)
    if together:
        passed = Reuse()
    why = "; ".join(
        f"{alone[name].names[-1]}: {reason or together}"
        for name, reason in reasons.items()
        if reason or together
    )
    logger.warning(
        "A sweep of %s runs more than it would otherwise have to. Not taken over from the "
        "untouched model: %s",
        model.architecture.model_class,
        why,
    )
    return passed, why


def _sample(lengths: Int[ndarray, " prompt"]) -> Int[ndarray, " some"]:
    """A few prompts, from the longest to the shortest."""
    order = np.argsort(-lengths, kind="stable")
    places = np.linspace(0, len(order) - 1, min(N_PROMPTS, len(order)))
    return order[np.round(places).astype(int)]


def _spread(lengths: Int[ndarray, " row"]) -> Int[ndarray, " some"]:
    """A few rows of the shorter half, so that there are positions to take over."""
    order = np.argsort(lengths, kind="stable")[: -(-len(lengths) // 2)]
    places = np.linspace(0, len(order) - 1, min(N_ROWS, len(order)))
    return order[np.round(places).astype(int)]


def _problem(
    model: MoEModel,
    tokens: TokenizedPrompts,
    sample: Int[ndarray, " some"],
    trials: Sequence[Trial],
    places: Anatomy,
    reuse: Reuse,
) -> str:
    """What is wrong with taking this over; empty if nothing is."""
    wanted = places.possible
    if not all(getattr(wanted, name) for name, used in vars(reuse).items() if used):
        return "this model has no place for it"
    try:
        worst = _worst(model, tokens, sample, trials, places, reuse)
    except Exception as error:
        # Whatever a family raises, it cannot do without what was left out.
        message = (str(error).strip().splitlines() or [""])[-1]
        return f"the model fails ({type(error).__name__}: {message})"
    return "" if worst <= 1 else f"logits are off by {worst:.2g} times what rounding explains"


def _worst(
    model: MoEModel,
    tokens: TokenizedPrompts,
    sample: Int[ndarray, " some"],
    trials: Sequence[Trial],
    places: Anatomy,
    reuse: Reuse,
) -> float:
    """The largest difference from full forwards, in units of what is allowed."""
    layers = sorted({trial.rows.layer for trial in trials})
    batch = tokens.batch(sample.tolist())
    captured = capture(model, batch, sample, places, reuse, layers)
    last = places.last if reuse.last else None
    worst = 0.0
    for trial in trials:
        own = None
        if reuse.own:
            own = own_layer(model, captured, trial.interventions, trial.rows.layer, places)
        logits = run_rows(model, captured, trial.interventions, trial.rows, places, reuse, own)
        worst = max(worst, _distance(logits, trial.logits))
        if trial.rows.layer == last:
            # What is taken for unchanged is not run at all.
            runs = changed_rows(model, captured, trial.interventions, last=last)
            known = {pair for rows in runs for pair in zip(rows.recipe, rows.prompt, strict=True)}
            pairs = zip(trial.rows.recipe, trial.rows.prompt, strict=True)
            left_out = [row for row, pair in enumerate(pairs) if pair not in known]
            untouched = captured.logits[trial.rows.prompt[left_out]]
            worst = max(worst, _distance(untouched, trial.logits[left_out]))
    return worst


def _distance(found: Float[Tensor, "row d_vocab"], known: Float[Tensor, "row d_vocab"]) -> float:
    if not len(known):
        return 0.0
    allowed = ALLOWED.get(known.dtype, 8) * torch.finfo(known.dtype).eps
    largest = max(1.0, float(known.abs().max()))
    off = float((found - known).abs().max()) / (allowed * largest)
    return off if np.isfinite(off) else float("inf")
