"""Show prompts token by token, coloured by a number, in a notebook or a page of their own."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr

from moe_interp.experts import Expert, as_expert
from moe_interp.viz._circuitsvis import coloured_tokens, symmetric_bound
from moe_interp.viz._explorer import TokenExplorer, explore
from moe_interp.viz._sample import weights_of
from moe_interp.viz._tables import Recorded
from moe_interp.viz._token_view import TokenView, lines_of

Numbers = Expert | tuple[int, int] | str | np.ndarray | xr.DataArray | Sequence[Any]


def show_tokens(
    source: Recorded | Sequence[str] | Sequence[Sequence[str]],
    values: Expert
    | tuple[int, int]
    | str
    | np.ndarray
    | xr.DataArray
    | Sequence[Any]
    | None = None,
    *,
    prompts: Sequence[int] | None = None,
    labels: Sequence[str] | None = None,
    name: str | None = None,
    bound: float | None = None,
) -> TokenView | TokenExplorer:
    """Show tokens coloured by numbers, or by how much an expert was used for each of them.

    Blue is positive, red negative, white zero; the scale is symmetric around zero and shared by
    all that can be selected. Special tokens stay visible, no token's text is read as HTML, and a
    token without a value (NaN) is dotted beneath and not taken for zero.

    A record alone, or a record with one number for each token, layer and expert, gives a view
    with selectors of prompt, layer and expert; everything else gives one picture.

    Args:
        source: The tokens of one prompt, those of several prompts, or a routing record.
        values: One number for each token. For a record: nothing (routing weights of every
            expert), an expert (its routing weights, 0 where a token did not choose it), an array
            ``[token]``, ``[token layer expert]``, or ``[token layer top_k]`` in the order of the
            record's ``expert_index``, such as contributions to a direction.
        prompts: For a record, which of its prompts to show; by default the first four, or a
            sample balanced over topics and harm where there are selectors.
        labels: What to write above each prompt.
        name: What the numbers are, with their unit.
        bound: The magnitude painted fully; by default the largest one shown.

    Returns:
        The view; a notebook displays it, ``.save(path)`` writes a page.

    Raises:
        ValueError: If lengths differ, a number is infinite, or the record lacks the expert's
            layer or a prompt.

    Example:
        >>> view = show_tokens(["<bos>", "hello"], [0.0, -0.5])
        >>> view.bound
        0.5
    """
    if isinstance(source, Recorded):
        if values is None or getattr(values, "ndim", 0) == 3:
            return explore(source, values, prompts=prompts, name=name, bound=bound)
        tokens, numbers, found, said = _of_record(source, values, prompts)
        labels, name = labels if labels is not None else found, name or said
    else:
        tokens, numbers = _of_lists(source, values)
    labels = list(labels) if labels is not None else [f"prompt {i}" for i in range(len(tokens))]
    if len(labels) != len(tokens):
        raise ValueError(f"`labels` has {len(labels)} entries for {len(tokens)} prompts.")
    limit = symmetric_bound([value for line in numbers for value in line], bound)
    for line, line_values in zip(tokens, numbers, strict=True):
        coloured_tokens(line, line_values, bound=limit)
    return TokenView(
        prompts=tuple(map(tuple, tokens)),
        values=tuple(map(tuple, numbers)),
        labels=tuple(labels),
        name=name or "value",
        bound=limit,
    )


def _of_lists(
    source: Sequence[Any],
    values: Any,  # noqa: ANN401
) -> tuple[list[list[str]], list[list[float]]]:
    if values is None:
        raise ValueError("`values` is missing: give one number for each token.")
    several = len(source) > 0 and not isinstance(source[0], str)
    tokens = [list(line) for line in source] if several else [list(source)]
    given = list(values) if several else [values]
    if len(given) != len(tokens):
        raise ValueError(
            f"`source` has {len(tokens)} prompts and `values` has {len(given)}; "
            "give one list of values for each prompt."
        )
    return tokens, [[float(value) for value in line] for line in given]


def _of_record(
    record: Recorded,
    values: Any,  # noqa: ANN401
    prompts: Sequence[int] | None,
) -> tuple[list[list[str]], list[list[float]], list[str], str]:
    dataset = record.dataset
    n_prompts = dataset.sizes["prompt"]
    wanted = list(prompts) if prompts is not None else list(range(min(4, n_prompts)))
    outside = [prompt for prompt in wanted if not 0 <= prompt < n_prompts]
    if outside:
        raise ValueError(f"`prompts` must lie in 0 to {n_prompts - 1}, got {outside}.")
    if getattr(values, "ndim", 0) == 1:
        per_token, name = np.asarray(values, dtype=float), "value"
        if len(per_token) != dataset.sizes["token"]:
            raise ValueError(
                f"`values` has {len(per_token)} numbers for the {dataset.sizes['token']} tokens "
                "of the record; give one for each."
            )
    else:
        expert = as_expert(values)
        per_token, name = weights_of(record, expert), f"routing weight of {expert}"
    return *lines_of(record, per_token, wanted), name
