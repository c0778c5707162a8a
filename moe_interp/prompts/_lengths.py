"""How long prompts are, in the unit a caller asks for."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float
from numpy import ndarray

from moe_interp.prompts._promptset import PromptSet

_UNITS = ("words", "characters")


def prompt_lengths(
    prompts: PromptSet, length: str | Sequence[float | int] | ndarray
) -> Float[ndarray, " prompt"]:
    """The length of each prompt.

    Args:
        prompts: The prompts.
        length: ``"words"`` (what white space parts), ``"characters"``, or one number for each
            prompt.

    Returns:
        The lengths.

    Raises:
        ValueError: If `length` names no unit, or is not one finite number for each prompt.
    """
    if isinstance(length, str):
        if length not in _UNITS:
            raise ValueError(
                f"`length` must be one of {_UNITS} or one number for each prompt, such as "
                f"tokenize(tokenizer, prompts).lengths; got {length!r}."
            )
        count = len if length == "characters" else lambda text: len(text.split())
        return np.array([count(text) for text in prompts.texts], dtype=float)
    given = np.asarray(length, dtype=float)
    if given.shape != (len(prompts),) or not np.isfinite(given).all():
        raise ValueError(
            f"`length` needs one finite number for each of the {len(prompts)} prompts, got an "
            f"array of shape {given.shape}."
        )
    return given
