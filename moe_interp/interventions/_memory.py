"""A memory of routings: what routers saw at some tokens, and how these were routed."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.random import Generator
from torch import Tensor

from moe_interp.models._traced_mixture import by_distance, nearest

BACKENDS = ("auto", "torch", "faiss")
# Keys whose distance to the others is looked at to set what counts as near.
_SAMPLED = 512


@dataclass(frozen=True, eq=False, repr=False)
class RoutingMemory:
    """Tokens by what the routers saw, with the experts and weights that they were given.

    Two memories are equal only if they are the same object. `fit_routing` makes one whose
    routings raise the likelihood of reference sequences.

    Attributes:
        keys: By absolute decoder layer, the router's input at each token.
        index: By layer, the experts of each token.
        weights: By layer, what multiplied the output of each.
        sequence: Number of the sequence that each token is from.
    """

    keys: Mapping[int, Float[Tensor, "key d_model"]]
    index: Mapping[int, Int[Tensor, "key top_k"]]
    weights: Mapping[int, Float[Tensor, "key top_k"]]
    sequence: Int[np.ndarray, " key"]

    def __post_init__(self) -> None:
        if not self.keys or not set(self.keys) == set(self.index) == set(self.weights):
            raise ValueError(
                f"`keys`, `index` and `weights` must name the same layers, got "
                f"{sorted(self.keys)}, {sorted(self.index)} and {sorted(self.weights)}."
            )
        for layer in self.keys:
            sizes = [len(own[layer]) for own in (self.keys, self.index, self.weights)]
            if {*sizes, len(self.sequence)} != {len(self.sequence)}:
                raise ValueError(
                    f"Layer {layer}: `keys`, `index`, `weights` and `sequence` must have one row "
                    f"a token, got {(*sizes, len(self.sequence))} rows."
                )

    def __len__(self) -> int:
        return len(self.sequence)

    def __repr__(self) -> str:
        layers = ", ".join(map(str, self.layers))
        n = len(np.unique(self.sequence))
        return f"RoutingMemory({len(self)} tokens of {n} sequences; layers {layers})"

    @property
    def layers(self) -> tuple[int, ...]:
        """The layers that are remembered, in order."""
        return tuple(sorted(self.keys))

    def select(self, rows: Sequence[int] | Int[np.ndarray, " row"]) -> "RoutingMemory":
        """Keep some of the tokens.

        Args:
            rows: Their places.

        Returns:
            The memory of these; an empty list gives an empty memory.
        """
        kept = torch.as_tensor(np.asarray(rows, dtype=np.int64))
        parts = [
            {layer: value[kept] for layer, value in own.items()}
            for own in (self.keys, self.index, self.weights)
        ]
        return RoutingMemory(*parts, self.sequence[kept.numpy()])

    def shuffled(self, *, rng: Generator) -> "RoutingMemory":
        """Give each token the routing of another: a control that knows the keys and no values.

        Args:
            rng: Source of randomness.

        Returns:
            The memory with experts and weights dealt anew, in all layers alike.
        """
        order = torch.from_numpy(rng.permutation(len(self)))
        index, weights = (
            {layer: value[order] for layer, value in own.items()}
            for own in (self.index, self.weights)
        )
        return replace(self, index=index, weights=weights)

    def moved(self, distance: float) -> "RoutingMemory":
        """Put all keys elsewhere: a control that knows the values, near to nothing.

        Args:
            distance: How far, in units of `spacing`.

        Returns:
            The memory with every key shifted along all axes alike.
        """
        keys = {}
        for layer, own in self.keys.items():
            reach = distance * self.spacing(layer)
            # Beyond the widest key, so that a shift cannot bring one token close to another.
            reach += 2 * float(own.float().norm(dim=-1).max()) if len(own) else 0.0
            keys[layer] = own + reach / own.shape[-1] ** 0.5
        return replace(self, keys=keys)

    def spacing(self, layer: int) -> float:
        """The usual distance of a token to the nearest token of another sequence.

        Args:
            layer: A remembered layer.

        Returns:
            The median over tokens that have no equal elsewhere; 1 if there is no such token.
        """
        keys = self.keys[layer].float()
        rows = np.unique(np.linspace(0, len(keys) - 1, min(_SAMPLED, len(keys))).astype(int))
        if not len(rows):
            return 1.0
        apart = torch.cdist(keys[rows], keys, compute_mode="donot_use_mm_for_euclid_dist")
        same = torch.from_numpy(self.sequence[rows][:, None] == self.sequence[None])
        found = apart.masked_fill(same, float("inf")).amin(-1)
        found = found[(found > 0) & found.isfinite()]
        return float(found.median()) if len(found) else 1.0

    def search(
        self,
        layer: int,
        queries: Float[Tensor, "query d_model"],
        n_neighbours: int,
        *,
        backend: str = "auto",
    ) -> tuple[Float[Tensor, "query neighbour"], Int[Tensor, "query neighbour"]]:
        """Find the nearest tokens.

        Args:
            layer: A remembered layer.
            queries: What the router sees.
            n_neighbours: How many to find; all if there are fewer.
            backend: ``"torch"``, ``"faiss"`` (exact too), or ``"auto"``: faiss if it is there.

        Returns:
            Squared distances, the nearest first, and the places of the tokens.

        Raises:
            ValueError: If the backend is unknown or not installed.
        """
        if chosen_backend(backend) == "torch":
            return nearest(queries.float(), self.keys[layer].float(), n_neighbours)
        return faiss_search(self.keys[layer])(queries.float(), n_neighbours)


def chosen_backend(backend: str) -> str:
    """Settle what is searched with.

    Args:
        backend: A name, or ``"auto"``.

    Returns:
        ``"torch"`` or ``"faiss"``.

    Raises:
        ValueError: If the name is unknown, or faiss is asked for and not installed.
    """
    if backend not in BACKENDS:
        raise ValueError(f"`backend` must be one of {BACKENDS}, got {backend!r}.")
    there = find_spec("faiss") is not None
    if backend == "faiss" and not there:
        raise ValueError(
            "`backend` is 'faiss', which is not installed. Install faiss-cpu, or take 'torch', "
            "which finds the same neighbours."
        )
    return "faiss" if there and backend != "torch" else "torch"


class faiss_search:  # noqa: N801  A function with an index that is built once.
    """Search keys with faiss's exact index.

    Args:
        keys: The keys.
    """

    def __init__(self, keys: Float[Tensor, "key d_model"]) -> None:
        import faiss

        self._keys = keys.float()
        self._index = faiss.IndexFlatL2(keys.shape[-1])
        self._index.add(np.ascontiguousarray(self._keys.numpy()))

    def __call__(
        self, queries: Float[Tensor, "query d_model"], n_neighbours: int
    ) -> tuple[Float[Tensor, "query neighbour"], Int[Tensor, "query neighbour"]]:
        """Find the nearest keys, as `nearest` does."""
        n, queries = min(n_neighbours, len(self._keys)), queries.detach().cpu()
        rows, n_near = np.ascontiguousarray(queries.numpy()), n
        while True:
            distance, place = self._index.search(rows, n_near)
            reach = distance[:, n - 1]
            if n_near == len(self._keys) or (distance[:, -1] > reach + 1e-3 * (1 + reach)).all():
                break
            # Others may be as near as the last: products of vectors are rounded.
            n_near = min(2 * n_near, len(self._keys))
        return by_distance(queries, self._keys, torch.from_numpy(place), n)
