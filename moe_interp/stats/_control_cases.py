"""What each control does: a profile and its tokens in, the profile without the confound out."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float, Int
from numpy import ndarray

from moe_interp.errors import DesignError
from moe_interp.stats._controls import (
    adjusted,
    length_basis,
    lexical_basis,
    position_kinds,
    with_points,
)
from moe_interp.stats._design import Design
from moe_interp.stats._profile import RoutingProfile
from moe_interp.stats._tokens import Residual, TokenRouting, residual, residual_from


@dataclass(frozen=True, eq=False)
class World:
    """The prompts that take part, and all that controls need of them.

    Attributes:
        profile: Their profile.
        tokens: Tokens of the span.
        random: Profiles of random routers.
        whole: Tokens of the whole prompts.
        background: Tokens of other prompts, if the background comes from these.
        random_index: Choices of random routers by token.
        design: Who is exchanged with whom.
        least: Tokens of a kind that a background needs.
    """

    profile: RoutingProfile
    tokens: TokenRouting
    random: Float[ndarray, "draw prompt layer expert"] | None
    whole: TokenRouting
    background: TokenRouting | None
    random_index: Int[ndarray, "draw token layer top_k"] | None
    design: Design
    least: int


# Profile, random profiles to match, share of the tokens used, and what was done in words.
Case = tuple[RoutingProfile, ndarray | None, float, str]


def _none(world: World) -> Case:
    return world.profile, world.random, 1.0, "Hellinger points, nothing taken out"


def _length(world: World) -> Case:
    length = np.zeros(world.profile.n_prompts, dtype=int)
    np.maximum.at(length, world.tokens.prompt, world.tokens.pos + 1)
    words = f"adjusted for {length.min()} to {length.max()} tokens read"
    return adjusted(world.profile, length_basis(length)), world.random, 1.0, words


def _lexical(world: World) -> Case:
    basis = lexical_basis(world.whole, world.profile, world.design.exchange.unit)
    words = f"adjusted for {basis.shape[1]} descriptions of the words"
    return adjusted(world.profile, basis), world.random, 1.0, words


def _plain_shares(world: World) -> Case:
    profile = with_points(world.profile, world.profile.shares)
    return profile, world.random, 1.0, "plain shares, nothing taken out"


def _first_choice(world: World) -> Case:
    n_prompts, random = world.profile.n_prompts, None
    first = world.tokens.first_choice()
    if world.random_index is not None:
        random = np.stack(
            [replace(first, expert_index=draw[..., :1]).shares(n_prompts) for draw in
             world.random_index]
        )  # fmt: skip
    profile = replace(
        world.profile, shares=first.shares(n_prompts), n_slots=first.n_in_prompt(n_prompts), top_k=1
    )
    return profile, random, 1.0, "each token's first choice only"


def _position(world: World) -> Case:
    if world.background is None:
        kinds = position_kinds(world.tokens.pos), None
    else:
        both = position_kinds(np.concatenate([world.tokens.pos, world.background.pos]))
        kinds = both[: world.tokens.n_tokens], both[world.tokens.n_tokens :]
    return _residuals(world, *kinds, "position")


def _token_identity(world: World) -> Case:
    names = [world.tokens.token_id]
    if world.background is not None:
        names.append(world.background.token_id)
    code = np.unique(np.concatenate(names), return_inverse=True)[1].reshape(-1)
    own, other = code[: world.tokens.n_tokens], code[world.tokens.n_tokens :]
    return _residuals(world, own, None if world.background is None else other, "token id")


def _residuals(
    world: World,
    kind: Int[ndarray, " token"],
    background_kind: Int[ndarray, " other"] | None,
    word: str,
) -> Case:
    """Shares less the background, of the prompts that have a token with one."""
    n_prompts = world.profile.n_prompts

    def of(tokens: TokenRouting) -> Residual:
        if world.background is not None:
            return residual_from(
                tokens, kind, world.background, background_kind, n_prompts=n_prompts,
                least=world.least,
            )  # fmt: skip
        return residual(
            tokens, kind, unit=world.design.exchange.unit, topic=world.design.topic,
            least=world.least,
        )  # fmt: skip

    found = of(world.tokens)
    bare = found.covered == 0
    pairs = {p for p in world.profile.pair[bare] if p is not None}
    keep = ~bare & ~np.array([p in pairs for p in world.profile.pair], dtype=bool)
    covered = float(found.covered.sum() / world.tokens.n_tokens)
    if not keep.any():
        raise DesignError(
            f"No prompt has a token whose {word} occurs {world.least} times in other units."
        )
    random = None
    if world.random_index is not None and world.background is None:
        random = np.stack(
            [of(replace(world.tokens, expert_index=draw)).points[keep] for draw in
             world.random_index]
        )  # fmt: skip
    profile = with_points(world.profile, found.points).select(keep)
    source = "other units" if world.background is None else "the background prompts"
    return profile, random, covered, f"each token less the mean of its {word} in {source}"


CASES: dict[str, Callable[[World], Case]] = {
    "none": _none,
    "length": _length,
    "lexical": _lexical,
    "first_choice": _first_choice,
    "plain_shares": _plain_shares,
    "position": _position,
    "token_identity": _token_identity,
}
