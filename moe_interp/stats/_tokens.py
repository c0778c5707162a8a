r"""Routing token by token, and what is left of it beyond what tokens of one kind get anyway.

The *background* of a kind of token (one token id, or one position) is how such tokens are routed
in other prompts. It is found in an additive model, :math:`a_t = b_{kind(t)} + d_{topic(t)} + e_t`
with :math:`a_t` the slots of a token as shares, so that a word which one topic uses more than
another does not carry that topic's routing into its background. A prompt's residual is the mean of
:math:`a_t - b_{kind(t)}` over its tokens. Harm is not in the model: whatever harm and the kind of
token could both explain is given to the kind of token.
"""

from dataclasses import dataclass

import numpy as np
from einops import rearrange
from jaxtyping import Bool, Float, Int
from numpy import ndarray
from scipy.sparse import csr_array

# Alternating between kinds and topics; the corrections fall by a factor each time.
_ITERATIONS = 8


@dataclass(frozen=True, eq=False)
class TokenRouting:
    """Which experts the tokens of a span chose, with what may have made them do so.

    Attributes:
        expert_index: Chosen experts, highest weight first.
        n_experts: Number of routed experts in a layer.
        prompt: Row of the token's prompt in the profile.
        token_id: The token's id in the vocabulary.
        pos: Its position in the prompt, from 0.

    Raises:
        ValueError: If the arrays differ in length or an expert does not exist.
    """

    expert_index: Int[ndarray, "token layer top_k"]
    n_experts: int
    prompt: Int[ndarray, " token"]
    token_id: Int[ndarray, " token"]
    pos: Int[ndarray, " token"]

    def __post_init__(self) -> None:
        n_tokens = len(self.expert_index)
        for name in ("prompt", "token_id", "pos"):
            if len(getattr(self, name)) != n_tokens:
                raise ValueError(
                    f"`{name}` has {len(getattr(self, name))} values for {n_tokens} tokens of "
                    f"`expert_index`."
                )
        if n_tokens and not 0 <= self.expert_index.min() <= self.expert_index.max() < (
            self.n_experts
        ):
            raise ValueError(
                f"`expert_index` must lie between 0 and {self.n_experts - 1}, got "
                f"{self.expert_index.min()} to {self.expert_index.max()}."
            )

    @property
    def n_tokens(self) -> int:
        """Number of tokens."""
        return len(self.expert_index)

    @property
    def top_k(self) -> int:
        """Experts chosen per token."""
        return self.expert_index.shape[2]

    def select(self, tokens: Bool[ndarray, " token"]) -> "TokenRouting":
        """Keep some of the tokens.

        Args:
            tokens: Which tokens to keep.

        Returns:
            Those tokens, of the same prompts.
        """
        return TokenRouting(
            self.expert_index[tokens],
            self.n_experts,
            self.prompt[tokens],
            self.token_id[tokens],
            self.pos[tokens],
        )

    def first_choice(self) -> "TokenRouting":
        """Keep each token's first choice only.

        Returns:
            The same tokens with one slot each.
        """
        return TokenRouting(
            self.expert_index[:, :, :1], self.n_experts, self.prompt, self.token_id, self.pos
        )

    def n_in_prompt(self, n_prompts: int) -> Int[ndarray, " prompt"]:
        """Count the tokens of each prompt.

        Args:
            n_prompts: Number of prompts.

        Returns:
            The counts.
        """
        return np.bincount(self.prompt, minlength=n_prompts)

    def shares(self, n_prompts: int) -> Float[ndarray, "prompt layer expert"]:
        """Share of each prompt's slots that went to each expert; 0 where it has no token.

        Args:
            n_prompts: Number of prompts.

        Returns:
            The shares.
        """
        return self._mean(self.prompt, n_prompts)

    def _mean(
        self, group: Int[ndarray, " token"], n_groups: int
    ) -> Float[ndarray, "group layer expert"]:
        sums = _collect(group, n_groups) @ slots_of(self)
        count = np.maximum(np.bincount(group, minlength=n_groups), 1)
        return _layered(sums.toarray(), self) / rearrange(count, "group -> group 1 1")


@dataclass(frozen=True, eq=False)
class Residual:
    """Shares of prompts beyond the background of their tokens.

    Attributes:
        points: Mean over the prompt's tokens of the slots' shares less the background.
        covered: Tokens of each prompt that have a background; the others were left out.
    """

    points: Float[ndarray, "prompt layer expert"]
    covered: Int[ndarray, " prompt"]


def residual(
    tokens: TokenRouting,
    kind: Int[ndarray, " token"],
    *,
    unit: Int[ndarray, " prompt"],
    topic: Int[ndarray, " prompt"],
    least: int,
) -> Residual:
    """Take the background of each kind of token off, told from the prompts of other units.

    Args:
        tokens: Tokens of the prompts.
        kind: Code of each token's kind, from 0.
        unit: Exchange unit of each prompt; a prompt's background is that of other units.
        topic: Topic code of each prompt.
        least: Tokens of a kind that other units must have; tokens of rarer kinds are left out.

    Returns:
        The residual of each prompt; 0 where no token is covered.
    """
    n_prompts, n_kinds = len(unit), int(kind.max(initial=-1)) + 1
    slots = slots_of(tokens)
    by_topic = _topic_shifts(tokens, slots, kind, topic[tokens.prompt])
    shift = csr_array(by_topic)
    # What is left of each token once its topic is accounted for, summed by (unit, kind).
    owner = unit[tokens.prompt]
    cell, place = np.unique(owner * n_kinds + kind, return_inverse=True)
    place = place.reshape(-1)
    count = np.bincount(place, minlength=len(cell))
    topics = csr_array(
        (np.ones(tokens.n_tokens), (place, topic[tokens.prompt])),
        shape=(len(cell), len(by_topic)),
    )
    own = _collect(place, len(cell)) @ slots - topics @ shift
    all_sums = _collect(cell % n_kinds, n_kinds) @ own
    total = np.bincount(kind, minlength=n_kinds)
    others = total[cell % n_kinds] - count
    known = others >= least
    inverse = np.divide(1.0, others, out=np.zeros(len(cell)), where=known)
    # Tokens of a (prompt, unit and kind), so that a background is looked up once for each.
    keep = known[place]
    covered = np.bincount(tokens.prompt[keep], minlength=n_prompts)
    lookup = csr_array(
        (np.ones(int(keep.sum())), (tokens.prompt[keep], place[keep])),
        shape=(n_prompts, len(cell)),
    )
    weighted = lookup @ csr_array((inverse, (np.arange(len(cell)), np.arange(len(cell)))))
    background = (weighted @ _spread(cell % n_kinds, n_kinds)) @ all_sums - weighted @ own
    observed = _collect(tokens.prompt[keep], n_prompts) @ slots[keep]
    points = _layered((observed - background).toarray(), tokens)
    return Residual(points / rearrange(np.maximum(covered, 1), "prompt -> prompt 1 1"), covered)


def residual_from(
    tokens: TokenRouting,
    kind: Int[ndarray, " token"],
    background: TokenRouting,
    background_kind: Int[ndarray, " other"],
    *,
    n_prompts: int,
    least: int,
) -> Residual:
    """Take the background of each kind of token off, told from other prompts altogether.

    Args:
        tokens: Tokens of the prompts.
        kind: Code of each token's kind, from 0.
        background: Tokens of the background prompts.
        background_kind: Codes of their kinds.
        n_prompts: Number of prompts.
        least: Tokens of a kind that the background must have.

    Returns:
        The residual of each prompt; 0 where no token is covered.
    """
    n_kinds = int(max(kind.max(initial=-1), background_kind.max(initial=-1))) + 1
    table = background._mean(background_kind, n_kinds)
    keep = np.bincount(background_kind, minlength=n_kinds)[kind] >= least
    some = tokens.select(keep)
    covered = some.n_in_prompt(n_prompts)
    expected = np.zeros((n_prompts, *table.shape[1:]))
    np.add.at(expected, some.prompt, table[kind[keep]])
    count = rearrange(np.maximum(covered, 1), "prompt -> prompt 1 1")
    return Residual(some.shares(n_prompts) - expected / count, covered)


def slots_of(tokens: TokenRouting) -> csr_array:
    """Share of each token's slots by (layer, expert), as a sparse matrix; 1 a layer in all.

    Args:
        tokens: The tokens.

    Returns:
        One row a token, one column a (layer, expert).
    """
    n_layers = tokens.expert_index.shape[1]
    first = rearrange(np.arange(n_layers) * tokens.n_experts, "layer -> 1 layer 1")
    column = rearrange(tokens.expert_index + first, "token layer top_k -> token (layer top_k)")
    row = np.repeat(np.arange(tokens.n_tokens), column.shape[1])
    values = np.full(column.size, 1 / tokens.top_k)
    return csr_array(
        (values, (row, column.ravel())), shape=(tokens.n_tokens, n_layers * tokens.n_experts)
    )


def _topic_shifts(
    tokens: TokenRouting,
    slots: csr_array,
    kind: Int[ndarray, " token"],
    topic: Int[ndarray, " token"],
) -> Float[ndarray, "topic feature"]:
    """Least-squares shift of each topic beside the kinds of its tokens, by alternating.

    The kinds come first: what a topic's own words could explain is not put down to the topic.
    """
    n_kinds, n_topics = int(kind.max(initial=-1)) + 1, int(topic.max(initial=-1)) + 1
    by_kind, by_topic = _collect(kind, n_kinds), _collect(topic, n_topics)
    table = (by_kind @ by_topic.T).toarray()
    kind_size = np.maximum(table.sum(axis=1, keepdims=True), 1)
    topic_size = np.maximum(table.sum(axis=0)[:, None], 1)
    kind_sums, topic_sums = (by_kind @ slots).toarray(), (by_topic @ slots).toarray()
    shift = np.zeros_like(topic_sums)
    for _ in range(_ITERATIONS):
        background = (kind_sums - table @ shift) / kind_size
        shift = (topic_sums - table.T @ background) / topic_size
    return shift


def _collect(group: Int[ndarray, " token"], n_groups: int) -> csr_array:
    n_tokens = len(group)
    return csr_array((np.ones(n_tokens), (group, np.arange(n_tokens))), shape=(n_groups, n_tokens))


def _spread(group: Int[ndarray, " cell"], n_groups: int) -> csr_array:
    return _collect(group, n_groups).T.tocsr()


def _layered(
    rows: Float[ndarray, "row feature"], tokens: TokenRouting
) -> Float[ndarray, "row layer expert"]:
    return rearrange(rows, "row (layer expert) -> row layer expert", expert=tokens.n_experts)
