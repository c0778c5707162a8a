"""Does the verdict hang on something else? The same shares and tests with a confound taken out."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float, Int
from numpy import ndarray
from numpy.random import Generator

from moe_interp.errors import DesignError
from moe_interp.notebook import Shown
from moe_interp.stats._control_cases import CASES, World
from moe_interp.stats._design import make_design
from moe_interp.stats._harm import harm_test
from moe_interp.stats._negligible import negligible
from moe_interp.stats._profile import RoutingProfile
from moe_interp.stats._results import format_p, plain
from moe_interp.stats._shares import check_random_profiles, routing_shares
from moe_interp.stats._tokens import TokenRouting
from moe_interp.stats._verdict import verdict

if TYPE_CHECKING:
    import pandas as pd

CONTROLS = tuple(CASES)
# What a control is compared with: residuals are plain shares less a background.
_BESIDE = {"position": "plain_shares", "token_identity": "plain_shares"}


@dataclass(frozen=True)
class Controlled:
    """Shares, tests and verdict of one span under one control, over all layers.

    Attributes:
        control: Name of the control.
        words: What was done, in words; why nothing could be done, if so.
        label: The verdict; None without random routers to compare with, or if nothing could be
            done.
        topic: Share of topic with its 95 % interval; None if nothing could be done.
        harm: Share of any effect of harm within topics, likewise.
        p_topic: Permutation p-value of topic.
        p_harm: Permutation p-value of harm, of its main and its nested test together.
        finds_topic: Whether topic is significant and not negligible beside harm.
        finds_harm: Whether harm is significant and not negligible beside topic.
        n_prompts: Prompts that took part.
        covered: Share of the span's tokens that were used; tokens without a background are not.
        changes: Whether the verdict differs from that of `beside`. Without random routers to
            compare with: whether a factor that the verdict of `beside` rests on is not found any
            more, or, if there is no verdict either, whether what is found differs.
        beside: The row that this one is compared with.
    """

    control: str
    words: str
    label: str | None
    topic: tuple[float, float, float] | None
    harm: tuple[float, float, float] | None
    p_topic: float
    p_harm: float
    finds_topic: bool
    finds_harm: bool
    n_prompts: int
    covered: float
    changes: bool
    beside: str


@dataclass(frozen=True)
class ConfoundSensitivity(Shown):
    """The verdict on one span under every control.

    Attributes:
        span: The token set.
        alpha: Level of the tests.
        rows: One entry a control; the first is the uncontrolled verdict.
    """

    span: str
    alpha: float
    rows: tuple[Controlled, ...]

    def __getitem__(self, control: str) -> Controlled:
        """Return the row of a control.

        Args:
            control: Its name.

        Returns:
            The row.
        """
        for row in self.rows:
            if row.control == control:
                return row
        raise KeyError(f"{control!r} was not run; there are {[row.control for row in self.rows]}.")

    @property
    def changing(self) -> tuple[str, ...]:
        """Controls that change the verdict or what is found."""
        return tuple(row.control for row in self.rows if row.changes)

    def to_frame(self) -> "pd.DataFrame":
        """Return one row a control."""
        import pandas as pd

        rows = []
        for row in self.rows:
            entry = {k: v for k, v in vars(row).items() if k not in ("topic", "harm")}
            for factor in ("topic", "harm"):
                found = getattr(row, factor) or (np.nan,) * 3
                names = (f"{factor}_share", f"{factor}_low", f"{factor}_high")
                entry |= dict(zip(names, found, strict=True))
            rows.append({"span": self.span, **entry})
        return pd.DataFrame(rows)

    def to_dict(self) -> dict[str, Any]:
        """Return every row as JSON-safe values."""
        return plain(
            {
                "span": self.span,
                "alpha": self.alpha,
                "changing": self.changing,
                "rows": [vars(row) for row in self.rows],
            }
        )

    def summary(self) -> str:
        """Return a table, one line a control, and what changes the verdict."""
        lines = [
            f"Verdict on {self.span!r} tokens under controls (shares over all layers):",
            f"  {'control':<15}{'verdict':<14}{'topic':>7}  {'p':<10}{'harm':>7}  {'p':<10}tokens",
        ]
        for row in self.rows:
            if row.topic is None:
                lines.append(f"  {row.control:<15}not run: {row.words}")
                continue
            mark = f"  <- differs from {row.beside!r}" if row.changes else ""
            lines.append(
                f"  {row.control:<15}{row.label or '-':<14}{row.topic[0]:>7.3f}  "
                f"{_short(row.p_topic):<10}{row.harm[0]:>7.3f}  {_short(row.p_harm):<10}"
                f"{row.covered:>6.0%}{mark}"
            )
        if any(row.label is None and row.topic is not None for row in self.rows):
            lines.append(
                "  - : no verdict, for random routers were not counted by token; what is found "
                "is compared instead."
            )
        if self.changing:
            lines.append(f"  The verdict hangs on: {', '.join(self.changing)}.")
        else:
            lines.append("  No control changes it.")
        return "\n".join(lines)


def confound_sensitivity(
    profile: RoutingProfile,
    tokens: TokenRouting,
    random_profiles: Float[ndarray, "draw prompt layer expert"] | None = None,
    *,
    whole: TokenRouting | None = None,
    background: TokenRouting | None = None,
    random_index: Int[ndarray, "draw token layer top_k"] | None = None,
    controls: Sequence[str] = CONTROLS[1:],
    least: int = 5,
    n_resamples: int = 9999,
    rng: Generator,
    alpha: float = 0.05,
    margin: float = 0.10,
    scheme: str = "auto",
) -> ConfoundSensitivity:
    """Repeat the verdict with length, words, position or token identity taken out.

    * ``"length"``: Hellinger points adjusted for how many tokens were read, by broken lines.
    * ``"lexical"``: adjusted for the ten leading components of the words and for how harmful
      they look to a regression trained on other units.
    * ``"position"``, ``"token_identity"``: each token's slots less the mean over tokens of the
      same position, or the same id, in the prompts of other units (or in `background`), beside a
      shift for each topic. Tokens too rare for that are left out. Points are plain shares, for a
      residual has no root: compare with ``"plain_shares"``.
    * ``"first_choice"``: not a confound, but another reading: only the expert with the highest
      weight counts.

    What a control and harm could both explain is given to the control. So an effect that stays
    under a control is not due to it, but one that goes may have been real: where the words of
    harmful prompts occur in no harmless ones, no analysis of these prompts can tell harm from
    words. Where control and harm go together the tests reject less often than `alpha`.

    Args:
        profile: Profile of one span.
        tokens: Tokens of that span.
        random_profiles: Profiles of random routers on the same router inputs.
        whole: Tokens of the whole prompts, for length and words; those of the span if None.
        background: Tokens of other prompts to take the background from; if None, the prompts of
            other exchange units.
        random_index: Experts that random routers choose for each token, for verdicts under
            controls that work on tokens.
        controls: Which controls to run; the verdict without any always comes first.
        least: Tokens of a kind that the background needs.
        n_resamples: Number of relabellings of the permutation tests.
        rng: Source of randomness.
        alpha: Level.
        margin: Fraction of the other factor's share that counts as negligible.
        scheme: Exchange scheme, see `routing_shares`.

    Returns:
        Shares, tests and verdict under each control.

    Raises:
        ValueError: If a control is unknown, `tokens` are not those of the profile, or an option
            is out of range.
        DesignError: If the labels do not allow the question without controls.
    """
    unknown = [name for name in controls if name not in CONTROLS]
    if unknown:
        raise ValueError(f"`controls` are among {CONTROLS}, got {unknown[0]!r}.")
    if least < 1:
        raise ValueError(f"`least` must be at least 1, got {least!r}.")
    check_random_profiles(profile, random_profiles)
    _check_tokens(profile, tokens, random_index)
    wanted = {"none", *controls}
    if wanted & set(_BESIDE):
        wanted.add("plain_shares")
    design = make_design(profile, scheme, need_topics=True)
    world = World(
        profile.select(design.rows),
        _rows_only(tokens, design.rows),
        None if random_profiles is None else random_profiles[:, design.rows],
        _rows_only(tokens if whole is None else whole, design.rows),
        background,
        None if random_index is None else random_index[:, np.isin(tokens.prompt, design.rows)],
        design,
        least,
    )
    options = {"n_resamples": n_resamples, "rng": rng, "alpha": alpha, "scheme": scheme}
    rows: dict[str, Controlled] = {}
    for name in CONTROLS:
        if name not in wanted:
            continue
        beside = _BESIDE.get(name, "none")
        found = _analyse(name, world, margin=margin, **options)
        if beside in rows:
            found = replace(found, changes=_differs(found, rows[beside]))
        rows[name] = found
    return ConfoundSensitivity(profile.span, alpha, tuple(rows.values()))


def _analyse(
    name: str,
    world: World,
    *,
    n_resamples: int,
    rng: Generator,
    alpha: float,
    margin: float,
    scheme: str,
) -> Controlled:
    beside = _BESIDE.get(name, "none")
    try:
        profile, random, covered, words = CASES[name](world)
        if random is not None:
            found = verdict(
                profile, random, n_resamples=n_resamples, rng=rng, alpha=alpha, margin=margin,
                scheme=scheme,
            )  # fmt: skip
            shares, test, label = found.shares, found.test, found.label
            if test is None:
                raise DesignError(found.reason)
        else:
            shares, label = routing_shares(profile, scheme=scheme), None
            test = harm_test(profile, n_resamples=n_resamples, rng=rng, scheme=scheme, alpha=alpha)
    except DesignError as error:
        if name == "none":
            raise
        nan = float("nan")
        return Controlled(
            name, str(error), None, None, None, nan, nan, False, False, 0, 0.0, False, beside
        )
    p_harm = min(1.0, 2 * min(test.p_harm, test.p_harm_nested))
    small = {
        factor: negligible(shares, margin=margin, alpha=alpha, factor=factor, beside=other)
        for factor, other in (("harm", "topic"), ("topic", "harm"))
    }
    return Controlled(
        control=name,
        words=words,
        label=label,
        topic=shares.pooled("topic"),
        harm=shares.pooled("harm_total"),
        p_topic=test.p_topic,
        p_harm=p_harm,
        finds_topic=bool(test.p_topic <= alpha and not small["topic"].negligible),
        finds_harm=bool(p_harm <= alpha and not small["harm"].negligible),
        n_prompts=shares.n_prompts,
        covered=covered,
        changes=False,
        beside=beside,
    )


def _differs(row: Controlled, other: Controlled) -> bool:
    if row.topic is None:
        return False
    if row.label is not None and other.label is not None:
        return row.label != other.label
    if other.label is not None:
        lost_topic = other.label in ("topic_driven", "both") and not row.finds_topic
        return lost_topic or (other.label in ("harm_driven", "both") and not row.finds_harm)
    return (row.finds_topic, row.finds_harm) != (other.finds_topic, other.finds_harm)


def _check_tokens(
    profile: RoutingProfile,
    tokens: TokenRouting,
    random_index: Int[ndarray, "draw token layer top_k"] | None,
) -> None:
    if tokens.n_tokens and tokens.prompt.max() >= profile.n_prompts:
        raise ValueError(
            f"`tokens` belong to {tokens.prompt.max() + 1} prompts, `profile` has "
            f"{profile.n_prompts}. Take both from one record and span."
        )
    own = tokens.shares(profile.n_prompts)
    if own.shape != profile.shares.shape or not np.allclose(own, profile.shares, atol=1e-3):
        raise ValueError(
            "`tokens` do not add up to the shares of `profile`. Take both from one record and span."
        )
    if random_index is not None and random_index.shape[1:] != tokens.expert_index.shape:
        raise ValueError(
            f"`random_index` must have the shape (draw, token, layer, top_k) = (n, "
            f"{', '.join(map(str, tokens.expert_index.shape))}), got {random_index.shape}."
        )


def _rows_only(tokens: TokenRouting, rows: Int[ndarray, " chosen"]) -> TokenRouting:
    """Tokens of some prompts, numbered by their place among these."""
    kept = tokens.select(np.isin(tokens.prompt, rows))
    return replace(kept, prompt=np.searchsorted(rows, kept.prompt))


def _short(p_value: float) -> str:
    return format_p(p_value).removeprefix("p ").removeprefix("= ")
