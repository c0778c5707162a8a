r"""Profiles with a confound taken out, ready for the same shares and tests as any profile.

Two kinds. *Adjusted* profiles regress Hellinger points on properties of the prompt, length or
words, with one level for each topic, and take the fitted part off; random routers' profiles are
treated alike. *Residual* profiles hold shares less the background of the tokens. A residual has
no root, so that its points are the shares themselves and distances Euclidean: rare experts count
less than on the Hellinger scale, and residual results are to be read beside those of plain shares.

Harm is in neither regression: what harm and the confound could both explain is given to the
confound. Tests are therefore conservative where the two go together, and a harm effect that is
gone under a control has not been shown to be absent.
"""

from dataclasses import dataclass

import numpy as np
from einops import rearrange
from jaxtyping import Bool, Float, Int
from numpy import ndarray
from scipy.sparse import csr_array

from moe_interp.stats._profile import RoutingProfile
from moe_interp.stats._tokens import TokenRouting

MAX_COMPONENTS = 10
MAX_POSITIONS = 32
N_FOLDS = 8
_RANK = 1e-9


@dataclass(frozen=True, eq=False)
class AdjustedProfile(RoutingProfile):
    """A profile whose points are adjusted for covariates of the prompts.

    Attributes:
        covariates: Properties of each prompt.
    """

    covariates: Float[ndarray, "prompt column"] | None = None

    def points(
        self,
        rows: Int[ndarray, " chosen"],
        shares: Float[ndarray, "chosen row expert"] | None = None,
    ) -> Float[ndarray, "chosen row expert"]:
        """Return the Hellinger points less what the covariates explain within topics.

        Args:
            rows: Rows of the prompts.
            shares: Shares of those prompts; the profile's own if None.

        Returns:
            The points.
        """
        points = super().points(rows, shares)
        given = self.covariates[rows]
        inside = given - _topic_means(given, self.topic[rows])
        slopes = np.linalg.pinv(inside, rcond=_RANK) @ rearrange(points, "p row e -> p (row e)")
        fitted = (given - given.mean(axis=0)) @ slopes
        return points - rearrange(fitted, "p (row e) -> p row e", e=points.shape[2])

    def select(self, prompts: Bool[ndarray, " prompt"] | Int[ndarray, " chosen"]) -> RoutingProfile:
        """Keep some of the prompts.

        Args:
            prompts: Mask over the prompts, or their rows in the order wanted.

        Returns:
            The profile of those prompts alone.
        """
        return _subclassed(super().select(prompts), self, covariates=self.covariates[prompts])


@dataclass(frozen=True, eq=False)
class ResidualProfile(RoutingProfile):
    """A profile whose points were found elsewhere, such as shares less a background.

    Attributes:
        residual: The points. Random routers' profiles count as points, too.
    """

    residual: Float[ndarray, "prompt layer expert"] | None = None

    def points(
        self,
        rows: Int[ndarray, " chosen"],
        shares: Float[ndarray, "chosen row expert"] | None = None,
    ) -> Float[ndarray, "chosen row expert"]:
        """Return the points as they are.

        Args:
            rows: Rows of the prompts.
            shares: Points of those prompts; the profile's own if None.

        Returns:
            The points.
        """
        return (self.residual[rows] if shares is None else shares).astype(np.float64)

    def select(self, prompts: Bool[ndarray, " prompt"] | Int[ndarray, " chosen"]) -> RoutingProfile:
        """Keep some of the prompts.

        Args:
            prompts: Mask over the prompts, or their rows in the order wanted.

        Returns:
            The profile of those prompts alone.
        """
        return _subclassed(super().select(prompts), self, residual=self.residual[prompts])


def adjusted(
    profile: RoutingProfile, covariates: Float[ndarray, "prompt column"]
) -> AdjustedProfile:
    """Let a profile's points be adjusted for covariates.

    Args:
        profile: The profile.
        covariates: Properties of each prompt.

    Returns:
        The adjusted profile.
    """
    return AdjustedProfile(**vars(profile), covariates=covariates)


def with_points(
    profile: RoutingProfile, points: Float[ndarray, "prompt layer expert"]
) -> ResidualProfile:
    """Put other points in the place of a profile's.

    Args:
        profile: The profile.
        points: The points that shares and tests shall use.

    Returns:
        The profile with these points.
    """
    return ResidualProfile(**vars(profile), residual=points)


def length_basis(length: Int[ndarray, " prompt"]) -> Float[ndarray, "prompt column"]:
    """Describe length by broken lines with knots at its quartiles, flexible enough for a bend.

    Args:
        length: Tokens read at the end of each prompt's span.

    Returns:
        Columns; none if all prompts are equally long.
    """
    knots = np.unique(np.quantile(length, [0.0, 0.25, 0.5, 0.75]))
    columns = np.maximum(length[:, None] - knots, 0.0)
    return _scaled(columns)


def position_kinds(pos: Int[ndarray, " token"]) -> Int[ndarray, " token"]:
    """Number the positions; neighbours share a number if there are too many positions.

    Args:
        pos: Position of each token.

    Returns:
        Codes from 0, at most 32 of them, each of about equally many tokens if positions share.
    """
    distinct, code = np.unique(pos, return_inverse=True)
    if len(distinct) <= MAX_POSITIONS:
        return code.reshape(-1)
    edges = np.unique(np.quantile(pos, np.arange(1, MAX_POSITIONS) / MAX_POSITIONS))
    return np.unique(np.searchsorted(edges, pos, side="left"), return_inverse=True)[1].reshape(-1)


def lexical_basis(
    tokens: TokenRouting, profile: RoutingProfile, unit: Int[ndarray, " prompt"]
) -> Float[ndarray, "prompt column"]:
    """Describe the words of prompts: leading components, and how harmful the words look.

    How harmful they look is what a ridge regression of harm (within topics) on the words of
    other units predicts, an eighth of each topic and harm level at a time. It catches words that
    carry the label and are too rare for a leading component, if they do so in other units as well.

    Args:
        tokens: Tokens of the whole prompts.
        profile: The prompts' labels.
        unit: Exchange unit of each prompt.

    Returns:
        Columns: up to ten components and the score.
    """
    word, code = np.unique(tokens.token_id, return_inverse=True)
    counts = csr_array(
        (np.ones(tokens.n_tokens), (tokens.prompt, code.reshape(-1))),
        shape=(profile.n_prompts, len(word)),
    ).toarray()
    # Roots of shares, so that a word that everybody uses often does not outweigh all others.
    bag = np.sqrt(counts / np.maximum(counts.sum(axis=1, keepdims=True), 1))
    bag -= bag.mean(axis=0)
    left, size, _ = np.linalg.svd(bag, full_matrices=False)
    n_kept = max(1, min(MAX_COMPONENTS, len(np.unique(unit)) // 5))
    real = size[:n_kept] > _RANK * max(size[0], _RANK)
    components = (left * size)[:, :n_kept][:, real]
    harm = np.where(profile.harm, 1.0, -1.0)[:, None]
    harm -= _topic_means(harm, profile.topic)
    kernel = bag @ bag.T
    # As much ridge as there is variance on average; the leave-fold-out form needs one inverse.
    ridge = max(float(np.trace(kernel)) / len(kernel), _RANK)
    smooth = kernel @ np.linalg.inv(kernel + ridge * np.eye(len(kernel)))
    error = harm - smooth @ harm
    score = np.empty_like(harm)
    fold = _folds(profile, unit)
    for own in (np.flatnonzero(fold == number) for number in np.unique(fold)):
        left_out = np.linalg.solve(np.eye(len(own)) - smooth[np.ix_(own, own)], error[own])
        score[own] = harm[own] - left_out
    return _scaled(np.concatenate([components, score], axis=1))


def _folds(profile: RoutingProfile, unit: Int[ndarray, " prompt"]) -> Int[ndarray, " prompt"]:
    """Deal whole units into folds, each with its part of every topic and harm level."""
    names, first = np.unique(unit, return_index=True)
    fold = np.empty(len(names), dtype=int)
    cells = [f"{profile.harm[row]}{profile.topic[row]}" for row in first]
    for cell in dict.fromkeys(cells):
        own = [number for number, name in enumerate(cells) if name == cell]
        fold[own] = np.arange(len(own)) % N_FOLDS
    return fold[np.searchsorted(names, unit)]


def _scaled(columns: Float[ndarray, "prompt column"]) -> Float[ndarray, "prompt kept"]:
    columns = columns - columns.mean(axis=0)
    spread = columns.std(axis=0)
    real = spread > _RANK
    return columns[:, real] / spread[real]


def _topic_means(
    values: Float[ndarray, "prompt column"], topic: ndarray
) -> Float[ndarray, "prompt column"]:
    names = topic.astype(str)
    _, code = np.unique(names, return_inverse=True)
    code = code.reshape(-1)
    sums = np.zeros((code.max() + 1, values.shape[1]))
    np.add.at(sums, code, values)
    return (sums / np.bincount(code)[:, None])[code]


def _subclassed(
    plain: RoutingProfile, profile: RoutingProfile, **own: Float[ndarray, "..."]
) -> RoutingProfile:
    return type(profile)(**vars(plain), **own)
