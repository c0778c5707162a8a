"""Sums over one unit, whose squared lengths do not change when other units are left out."""

from dataclasses import dataclass
from itertools import accumulate, pairwise

import numpy as np
from jaxtyping import Float, Int
from numpy import ndarray
from scipy.sparse import csr_array, vstack

from moe_interp.stats._schemes import Exchange


@dataclass(frozen=True, eq=False)
class Terms:
    """The units of a design whose own squared length is a term of sums of squares.

    Attributes:
        rows: Sparse; what each prompt counts in each term. Prompts count with the sign of their
            harm in units whose labels are flipped.
        topic: Topic of each term's first prompt; its only topic in prompts and parts.
        kinds: Which terms are which: ``"prompt"``, ``"unit"`` (of harm), ``"part"`` (of such a
            unit in one topic) and ``"topic unit"``.
        part_unit: Harm unit of each part.
    """

    rows: csr_array
    topic: Int[ndarray, " term"]
    kinds: dict[str, slice]
    part_unit: Int[ndarray, " part"]


def make_terms(
    topic: Int[ndarray, " prompt"],
    harm: Float[ndarray, " prompt"],
    exchange: Exchange,
    topic_exchange: Exchange,
) -> Terms:
    """Collect the units of a design.

    Args:
        topic: Topic code of each prompt.
        harm: +1 for harmful, -1 for harmless.
        exchange: How harm labels are exchanged.
        topic_exchange: How topic labels are exchanged.

    Returns:
        The terms.
    """
    pairs = np.stack([exchange.unit, topic])
    parts, part = np.unique(pairs, axis=1, return_inverse=True)
    units = {
        "prompt": np.arange(len(topic)),
        "unit": exchange.unit,
        "part": part.reshape(-1),
        "topic unit": topic_exchange.unit,
    }
    signed = ("unit", "part") if exchange.kind == "flip" else ()
    rows = [
        csr_array((harm if kind in signed else np.ones(len(topic)), (unit, np.arange(len(topic)))))
        for kind, unit in units.items()
    ]
    ends = [0, *accumulate(row.shape[0] for row in rows)]
    firsts = [np.unique(unit, return_index=True)[1] for unit in units.values()]
    return Terms(
        rows=csr_array(vstack(rows)),
        topic=topic[np.concatenate(firsts)],
        kinds=dict(zip(units, [slice(*bounds) for bounds in pairwise(ends)], strict=True)),
        part_unit=parts[0],
    )
