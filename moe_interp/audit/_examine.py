"""Topic or harm, from a record alone: the verdict, and everything that could have fooled it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from numpy.random import Generator

from moe_interp.capture import RoutingRecord, check_confounds, decoding_baselines
from moe_interp.errors import DesignError
from moe_interp.notebook import Shown
from moe_interp.stats import (
    conditional_mi,
    design_effect,
    expert_tests,
    power,
    swap_distances,
    transfer_auc,
    verdict,
)

#: What is looked at, in the order in which it is told.
PARTS = ("verdict", "experts", "controls", "decoding", "distances", "dispersion", "bits", "power")


@dataclass(frozen=True)
class RoutingExamination(Shown):
    """Everything that a record says about topic and harm on one span.

    Attributes:
        span: The token set.
        parts: By name, the results: verdict, experts (`ExpertTests`), controls
            (`ConfoundSensitivity`), decoding (`TransferAUC`), distances (`SwapDistances`),
            dispersion (`DesignEffect`), bits (`ConditionalMI`) and power (`Power`).
        refused: By name, why a part could not be had from these prompts.
    """

    span: str
    parts: Mapping[str, Any]
    refused: Mapping[str, str]

    def __getitem__(self, part: str) -> Any:  # noqa: ANN401
        if part not in self.parts:
            why = self.refused.get(part, f"it is none of {', '.join(PARTS)}")
            raise KeyError(f"There is no {part!r}: {why}")
        return self.parts[part]

    def to_dict(self) -> dict[str, Any]:
        """Give every part as JSON-safe values."""
        parts = {name: part.to_dict() for name, part in self.parts.items()}
        return {"span": self.span, **parts, "refused": dict(self.refused)}

    def summary(self) -> str:
        """Tell every part in its own words, and what was refused and why."""
        told = [self.parts[name].summary() for name in PARTS if name in self.parts]
        told += [f"No {name}: {why}" for name, why in self.refused.items()]
        return "\n\n".join(told)


def examine_routing(
    record: RoutingRecord,
    *,
    span: str = "user",
    rng: Generator,
    n_resamples: int = 9999,
    effect: float = 0.01,
    alpha: float = 0.05,
) -> RoutingExamination:
    """Ask a record whether routing follows topic or harm, with every control it allows.

    In one call: `verdict`; `expert_tests`; the verdict under the controls of `check_confounds`;
    `transfer_auc` beside the baselines of `decoding_baselines`; `swap_distances`;
    `design_effect`; `conditional_mi`; and the `power` of the test of harm. Each part draws from a
    stream of its own, so that none depends on which others were possible.

    Args:
        record: The record, of prompts that are labelled by topic and harm, best captured with
            random routers.
        span: The tokens that the question is about.
        rng: Source of randomness.
        n_resamples: Relabellings of each permutation test; decoding and power take a tenth.
        effect: Share of harm that `power` is told for.
        alpha: Level of the tests.

    Returns:
        All parts; those that the prompts do not allow are refused by name, with the reason.

    Raises:
        SpanError: If the record has no such span.
        PromptError: If some prompt does not say whether it is harmful.
        DesignError: If not even the tests of single experts are possible.

    Example:
        >>> import numpy as np
        >>> import moe_interp as mi
        >>> model = mi.load_model("organism:topic")
        >>> record = mi.record_routing(
        ...     model, mi.load_prompts("organism", per_topic=8), n_random_routers=39,
        ...     rng=np.random.default_rng(0), progress=False,
        ... )
        >>> found = examine_routing(record, rng=np.random.default_rng(1), n_resamples=199)
        >>> found["verdict"].label, found["controls"].changing
        ('topic_driven', ())
    """
    profile = record.profile(span)
    fewer = max(n_resamples // 10, 99)
    random = record.random_profiles(span) if record.n_random_routers else None
    common = {"alpha": alpha}

    def judge(rng: Generator) -> Any:  # noqa: ANN401
        if random is None:
            raise DesignError(
                "the record has no random routers to compare with. Capture it again with "
                "n_random_routers=99."
            )
        return verdict(profile, random, n_resamples=n_resamples, rng=rng, **common)

    def decode(rng: Generator) -> Any:  # noqa: ANN401
        beside = decoding_baselines(record, span)
        return transfer_auc(profile, baselines=beside, n_resamples=fewer, rng=rng, **common)

    makers: dict[str, Callable[[Generator], Any]] = {
        "verdict": judge,
        "experts": lambda rng: expert_tests(profile, n_resamples=n_resamples, rng=rng),
        "controls": lambda rng: check_confounds(
            record, span, n_resamples=n_resamples, rng=rng, **common
        ),
        "decoding": decode,
        "distances": lambda rng: swap_distances(profile),
        "dispersion": lambda rng: design_effect(profile),
        "bits": lambda rng: conditional_mi(profile, rng=rng),
        "power": lambda rng: power(profile, effect=effect, rng=rng, **common),
    }
    parts, refused = {}, {}
    for name, stream in zip(PARTS, rng.spawn(len(PARTS)), strict=True):
        try:
            parts[name] = makers[name](stream)
        except DesignError as error:
            refused[name] = str(error)
    if "experts" in refused:
        raise DesignError(refused["experts"])
    return RoutingExamination(span, parts, refused)
