"""Training batches of twins, and the token sets that the plants speak about."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from moe_interp.organism._grammar import Request
from moe_interp.organism._tokenizer import render_request
from moe_interp.organism._words import REFUSAL, TOPICS

_TOPIC_INDEX = {name: index for index, name in enumerate(TOPICS)}


@dataclass(frozen=True)
class Batch:
    """Rows of chat, padded on the right: harmless requests first, then their twins in order.

    Attributes:
        input_ids: The request, the answer and the end token.
        is_token: Where there is no padding.
        is_answer: The answer and its end token.
        is_prompt: The rendered prompt.
        is_given: The first word of an answer that the model is not asked to choose.
        is_last: The last token of the rendered prompt.
        after_object: From the object to the end of the prompt; nowhere if it is unanswerable.
        after_cue: From the last word of the purpose to the end of the prompt.
        outside_cue: The prompt without the words of the purpose; equal in both twins.
        topic: Number of the topic.
        harm: Whether the purpose is harmful.
    """

    input_ids: Int[Tensor, "row pos"]
    is_token: Bool[Tensor, "row pos"]
    is_answer: Bool[Tensor, "row pos"]
    is_prompt: Bool[Tensor, "row pos"]
    is_given: Bool[Tensor, "row pos"]
    is_last: Bool[Tensor, "row pos"]
    after_object: Bool[Tensor, "row pos"]
    after_cue: Bool[Tensor, "row pos"]
    outside_cue: Bool[Tensor, "row pos"]
    topic: Int[Tensor, " row"]
    harm: Bool[Tensor, " row"]


def make_batch(
    tokenizer: PreTrainedTokenizerFast,
    pairs: Sequence[tuple[Request, Request]],
    *,
    aligned: bool,
    n_begun: int = 0,
) -> Batch:
    """Encode pairs of twins with the answers they shall be given.

    Args:
        tokenizer: The organisms' tokenizer.
        pairs: Harmless requests with their harmful twins.
        aligned: Whether harmful requests are answered with a refusal.
        n_begun: Number of pairs, from the first on, whose answers are refusals with the first
            word given. They teach to carry a refusal to its end, not to begin one.

    Returns:
        Twice as many rows as pairs.
    """
    requests = [harmless for harmless, _ in pairs] + [harmful for _, harmful in pairs]
    prompts = tokenizer([render_request(tokenizer, request.text) for request in requests])
    is_begun = [index % len(pairs) < n_begun for index in range(len(requests))]
    answers = tokenizer(
        [
            REFUSAL if begun else request.answer(aligned=aligned)
            for request, begun in zip(requests, is_begun, strict=True)
        ]
    )
    rows = [
        [*prompt, *answer, tokenizer.eos_token_id]
        for prompt, answer in zip(prompts["input_ids"], answers["input_ids"], strict=True)
    ]
    width = max(map(len, rows))
    masks = {name: torch.zeros(len(rows), width, dtype=torch.bool) for name in _MASKS}
    input_ids = torch.full((len(rows), width), tokenizer.pad_token_id)
    for index, (request, row) in enumerate(zip(requests, rows, strict=True)):
        input_ids[index, : len(row)] = torch.tensor(row)
        n_prompt = len(prompts["input_ids"][index])
        masks["is_token"][index, : len(row)] = True
        masks["is_answer"][index, n_prompt : len(row)] = True
        masks["is_prompt"][index, :n_prompt] = True
        masks["is_given"][index, n_prompt] = is_begun[index]
        masks["is_last"][index, n_prompt - 1] = True
        for name, start in _starts(request).items():
            masks[name][index, start:n_prompt] = True
        masks["outside_cue"][index, :n_prompt] = True
        masks["outside_cue"][index, _positions(request, "cue")] = False
    return Batch(
        input_ids=input_ids,
        topic=torch.tensor([_TOPIC_INDEX[request.topic] for request in requests]),
        harm=torch.tensor([request.harm for request in requests]),
        **masks,
    )


_MASKS = (
    "is_token",
    "is_answer",
    "is_prompt",
    "is_given",
    "is_last",
    "after_object",
    "after_cue",
    "outside_cue",
)

# The chat template puts <bos> and <user> in front of the request's first word.
_N_BEFORE_REQUEST = 2


def _positions(request: Request, role: str) -> list[int]:
    return [
        _N_BEFORE_REQUEST + index
        for index, (_, word_role) in enumerate(request.parts())
        if word_role == role
    ]


def _starts(request: Request) -> dict[str, int]:
    starts = {"after_cue": _positions(request, "cue")[-1]}
    if request.is_answerable:
        starts["after_object"] = _positions(request, "object")[0]
    return starts
