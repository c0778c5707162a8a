"""Read a record part by part, so that what is computed of it fits into memory however long it is.

The parts depend on shapes alone. Sums over them are therefore the same numbers, to the last bit,
whether a record is in memory, on disk or spread over the workers of a dask cluster.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
import xarray as xr
from jaxtyping import Bool, Float, Num
from numpy import ndarray

#: What the values of one part may take.
WINDOW_BYTES = 4 * 2**20
# Parts that dask holds at the same time.
_AT_ONCE = 8

#: From the values of some tokens, the prompt of each and how many prompts these are, to a sum.
OfPrompts = Callable[[Mapping[str, ndarray], ndarray, int], ndarray]


def windows(dataset: xr.Dataset, names: Sequence[str]) -> list[slice]:
    """Divide tokens so that some quantities of each part fit into `WINDOW_BYTES`.

    Args:
        dataset: A record's dataset.
        names: The quantities.

    Returns:
        The rows of each part.
    """
    n_tokens = dataset.sizes["token"]
    # What is computed of small integers and halves is as wide as of any other number.
    per_token = sum(
        8 * int(np.prod([n for dim, n in dataset[name].sizes.items() if dim != "token"]))
        for name in names
    )
    # Chunks have a power of two of rows as well, so that none is read twice.
    rows = 2 ** int(np.log2(max(1, WINDOW_BYTES // max(1, per_token))))
    return [slice(low, min(low + rows, n_tokens)) for low in range(0, n_tokens, rows)]


def sum_by_prompt(
    dataset: xr.Dataset,
    names: Sequence[str],
    inside: Bool[ndarray, " token"],
    function: OfPrompts,
    shape: tuple[int, ...],
) -> Float[ndarray, "prompt ..."]:
    """Sum a function of tokens over the tokens of each prompt, part by part.

    Args:
        dataset: A record's dataset; where its arrays are dask's, dask computes the parts.
        names: The quantities that the function needs.
        inside: Which tokens count.
        function: Called with the values of some tokens, the prompt of each, counted from the
            first one, and the number of prompts; returns the sum for each of these.
        shape: Shape of what it returns for one prompt.

    Returns:
        The sums.
    """
    total = np.zeros((dataset.sizes["prompt"], *shape))
    owner = dataset["prompt_index"].values
    # Which arrays hold the quantities, and not the whole dataset: a worker is sent only these.
    arrays = {name: dataset[name].variable for name in names}
    parts = [part for part in windows(dataset, names) if inside[part].any()]
    for part, summed in _computed(arrays, parts, inside, owner, function):
        prompts = owner[part][inside[part]]
        first = int(prompts.min())
        total[first : first + len(summed)] += summed
    return total


def _computed(
    arrays: Mapping[str, xr.Variable],
    parts: Sequence[slice],
    inside: Bool[ndarray, " token"],
    owner: ndarray,
    function: OfPrompts,
) -> Iterator[tuple[slice, ndarray]]:
    """The function's sums, part by part; by dask, a few parts at once, where arrays are its own."""

    def asked(part: slice) -> tuple[ndarray, ndarray, int]:
        chosen = inside[part]
        prompts = owner[part][chosen].astype(np.int64)
        first = int(prompts.min())
        return chosen, prompts - first, int(prompts.max()) - first + 1

    if not any(variable.chunks for variable in arrays.values()):
        for part in parts:
            values = {name: variable[part].values for name, variable in arrays.items()}
            yield part, _of_part(values, *asked(part), function)
        return
    import dask

    later = dask.delayed(_of_part, pure=False)
    for low in range(0, len(parts), _AT_ONCE):
        some = parts[low : low + _AT_ONCE]
        tasks = [
            later(
                {name: variable[part].data for name, variable in arrays.items()},
                *asked(part),
                function,
            )
            for part in some
        ]
        yield from zip(some, dask.compute(*tasks), strict=True)


def _of_part(
    values: Mapping[str, ndarray],
    chosen: Bool[ndarray, " token"],
    owner: ndarray,
    n_prompts: int,
    function: OfPrompts,
) -> ndarray:
    kept = values if chosen.all() else {name: own[chosen] for name, own in values.items()}
    return function(kept, owner, n_prompts)


def read_inside(
    dataset: xr.Dataset, name: str, inside: Bool[ndarray, " token"]
) -> Num[ndarray, "inside ..."]:
    """Read a quantity of some tokens without holding that of the others.

    Args:
        dataset: A record's dataset.
        name: The quantity.
        inside: Which tokens.

    Returns:
        Its values at these tokens.
    """
    variable = dataset[name].variable.transpose("token", ...)
    found = np.empty((int(inside.sum()), *variable.shape[1:]), dtype=variable.dtype)
    place = 0
    for part in windows(dataset, [name]):
        chosen = inside[part]
        n_chosen = int(chosen.sum())
        if n_chosen:
            found[place : place + n_chosen] = variable[part].values[chosen]
        place += n_chosen
    return found


def count_slots(
    values: Mapping[str, ndarray], owner: ndarray, n_prompts: int, n_experts: int
) -> ndarray:
    """Count the slots of each prompt that went to each expert.

    Args:
        values: ``expert_index`` of some tokens.
        owner: The prompt of each.
        n_prompts: Number of prompts.
        n_experts: Number of experts.

    Returns:
        The counts, ``[prompt layer expert]``.
    """
    index = values["expert_index"].astype(np.int64)
    n_layers = index.shape[1]
    # Each slot's place in the flattened (prompt, layer, expert).
    place = (owner[:, None, None] * n_layers + np.arange(n_layers)[None, :, None]) * n_experts
    counts = np.bincount((place + index).ravel(), minlength=n_prompts * n_layers * n_experts)
    return counts.reshape(n_prompts, n_layers, n_experts)
