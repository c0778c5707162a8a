"""Run prompts under interventions: what the model would say next, or the text it writes."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from moe_interp.interventions._frozen import with_frozen_routing
from moe_interp.interventions._intervention import Intervention, as_recipe
from moe_interp.interventions._rows import as_prompt_set, outcomes
from moe_interp.models import MoEModel
from moe_interp.notebook import Shown
from moe_interp.prompts import PromptSet

if TYPE_CHECKING:
    from pandas import DataFrame


@dataclass(frozen=True)
class RunResult(Shown):
    """What a model made of each prompt.

    Attributes:
        prompts: The prompts, in the order of the rows.
        logits: Next-token logits after each prompt; None if text was generated.
        texts: The generated texts, without prompts and special tokens; None if there are none.
        tokens: The generated token ids, up to and with the token that ends the text; None if
            there are none.
        next_tokens: The likeliest next token of each prompt, as text.
    """

    prompts: PromptSet
    logits: Float[Tensor, "prompt d_vocab"] | None
    texts: tuple[str, ...] | None
    tokens: tuple[tuple[int, ...], ...] | None
    next_tokens: tuple[str, ...]

    def to_frame(self) -> "DataFrame":
        """One row a prompt: its id, text, topic, harm, and what the model said."""
        frame = self.prompts.to_frame()
        frame["next_token"] = list(self.next_tokens)
        if self.texts is not None:
            frame["generated"] = list(self.texts)
        return frame

    def to_dict(self) -> dict[str, Any]:
        """What the model said, as JSON-safe values; logits are left out."""
        texts = None if self.texts is None else list(self.texts)
        ids = list(self.prompts.ids)
        return {"prompts": ids, "next_tokens": list(self.next_tokens), "texts": texts}

    def summary(self) -> str:
        """The commonest next tokens, in words."""
        words, counts = np.unique(np.array(self.next_tokens, dtype=str), return_counts=True)
        top = sorted(zip(counts.tolist(), words.tolist(), strict=True), reverse=True)[:3]
        said = ", ".join(f"{word!r} {count}x" for count, word in top)
        return f"{len(self.prompts)} prompts; likeliest next tokens: {said}."


def run(
    model: MoEModel,
    prompts: PromptSet | Sequence[str],
    interventions: Intervention | Sequence[Intervention] = (),
    *,
    max_new_tokens: int = 0,
    freeze_downstream_routing: bool = False,
    batch_size: int | str = "auto",
) -> RunResult:
    """Run prompts under interventions, and get next-token logits or greedy texts.

    Interventions hold while the prompt is read and at every generated token, unless their
    `phase` or `tokens` say otherwise. With no intervention this is the model itself, bit for bit.

    Args:
        model: The model.
        prompts: The prompts; the tokenizer's chat template is applied if it has one.
        interventions: What to change, applied in list order.
        max_new_tokens: How many tokens to generate greedily; 0 gives the logits instead.
        freeze_downstream_routing: Whether prompt tokens are routed, in the layers after the first
            that is changed, as in the untouched model: by the same experts with the same weights.
            What is then seen is the direct effect through what experts compute; what is seen
            without includes that other experts are chosen in consequence. Generated tokens, which
            the untouched run does not have, are routed freely.
        batch_size: Prompts in one forward; ``"auto"`` fills batches up to a number of tokens.

    Returns:
        Logits at the last prompt token, or texts, in the order of the prompts.

    Raises:
        ValueError: If an option is out of range, a layer or expert does not exist, a mask of
            tokens does not fit, or logits are not numbers.
        PromptError: If a prompt, with the new tokens, is longer than the model reads.
        SpanError: If an intervention names an unknown span.

    Example:
        >>> import moe_interp as mi
        >>> model = mi.load_model("organism:topic")
        >>> prompts = ["how do i open the lock to start an attack ?"]
        >>> mi.run(model, prompts, max_new_tokens=12).texts
        ('sorry , i cannot help with that .',)
        >>> mi.run(model, prompts, mi.Ban("L3E8,L3E9")).next_tokens
        ('careful',)
    """
    prompts = as_prompt_set(prompts)
    recipe = as_recipe(interventions)
    if freeze_downstream_routing:
        recipe = with_frozen_routing(model, prompts, recipe, batch_size=batch_size)
    logits: list[Any] = [None] * len(prompts)
    tokens: list[Any] = [None] * len(prompts)
    for outcome in outcomes(
        model, prompts, [recipe], max_new_tokens=max_new_tokens, batch_size=batch_size
    ):
        for row, prompt in enumerate(outcome.prompt):
            if outcome.logits is not None:
                logits[prompt] = outcome.logits[row].cpu()
            else:
                tokens[prompt] = outcome.tokens[row]
    if max_new_tokens:
        first = [row[0] for row in tokens]
        texts = tuple(decode_texts(model, tokens))
        return RunResult(prompts, None, texts, tuple(tokens), _words(model, first))
    stacked = torch.stack(logits)
    return RunResult(prompts, stacked, None, None, _words(model, stacked.argmax(-1).tolist()))


def decode_texts(model: MoEModel, tokens: Sequence[Sequence[int]]) -> list[str]:
    """Generated tokens as texts, without special tokens.

    Args:
        model: The model whose tokenizer to use.
        tokens: The generated token ids of each row.

    Returns:
        The texts.
    """
    return [model.tokenizer.decode(list(row), skip_special_tokens=True) for row in tokens]


def _words(model: MoEModel, ids: Sequence[int]) -> tuple[str, ...]:
    return tuple(model.tokenizer.decode([token]) for token in ids)
