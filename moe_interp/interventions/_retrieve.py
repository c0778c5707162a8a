"""RetrieveRouting: tokens are routed in part as the remembered tokens most like them."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from moe_interp.interventions._checks import check_layers
from moe_interp.interventions._intervention import Batch, Edit, PlacedIntervention
from moe_interp.interventions._memory import RoutingMemory, chosen_backend, faiss_search
from moe_interp.interventions._tokens import Tokens
from moe_interp.models import MoEModel
from moe_interp.models._traced_mixture import mix_found, mix_from_memory
from moe_interp.models._traced_parts import LayerParts


@dataclass(frozen=True)
class RetrieveRouting(PlacedIntervention):
    r"""Mix the routing of each token with that of its nearest neighbours in a memory.

    With :math:`s_j = 2^{-d_j^2 / h^2}` the similarity of neighbour :math:`j` at distance
    :math:`d_j`, and 0 where that is below `floor`, the routing is

    .. math:: \lambda \sum_j w_j v_j + (1 - \lambda) r, \quad
              \lambda = \operatorname{mean}_j s_j, \quad w_j = s_j / \sum_i s_i

    with :math:`v_j` what the memory holds and :math:`r` the model's own weights. More experts may
    run than the model chooses. A token that is like nothing in the memory keeps its bits; so does
    every token if the memory is empty. After kNN-MoE [1]; what is alike is our reconstruction.

    Stages: mixed after the model's choice and edits of its weights; edits of outputs and
    contributions then act on the mixed slots.

    [1] Lyu et al. (2026), "Routing by Analogy", arXiv 2601.02144.

    Attributes:
        memory: The memory.
        n_neighbours: Neighbours of each token; all remembered tokens if these are fewer.
        half: Distance at which tokens are half alike, in units of the memory's `spacing`.
        floor: Similarity below which a neighbour counts for nothing.
        layers: Which layers; all those of the memory if not given.
        backend: ``"torch"``, ``"faiss"``, or ``"auto"``: faiss if it is there. Remotely: torch.
        tokens: Where in the prompts: everywhere (None), a span, or a mask of the real tokens.
        phase: ``"prefill"``, ``"decode"`` or ``"both"``.

    Raises:
        ValueError: If a number is out of range, the phase or backend is unknown, or the memory
            lacks a layer.

    Example:
        >>> import moe_interp as mi
        >>> model = mi.load_model("organism:topic")
        >>> data = mi.PromptSet([mi.prompts.Prompt(
        ...     "how should i open the lock to find a missing child ?", response="careful")])
        >>> fitted = mi.fit_routing(model, data, n_steps=3)
        >>> recall = mi.RetrieveRouting(fitted.memory, n_neighbours=1)
        >>> found, own = (mi.run(model, data.texts, one).logits for one in (recall, ()))
        >>> bool((found != own).any())
        True
    """

    memory: RoutingMemory
    n_neighbours: int = field(default=4, kw_only=True)
    half: float = field(default=1.0, kw_only=True)
    floor: float = field(default=0.01, kw_only=True)
    layers: Sequence[int] | None = field(default=None, kw_only=True)
    backend: str = field(default="auto", kw_only=True)
    tokens: Tokens | None = field(default=None, kw_only=True)
    phase: str = field(default="both", kw_only=True)

    def __post_init__(self) -> None:
        if self.n_neighbours < 1:
            raise ValueError(f"`n_neighbours` must be at least 1, got {self.n_neighbours!r}.")
        if not self.half > 0:
            raise ValueError(f"`half` must be positive, got {self.half!r}.")
        if not 0 < self.floor <= 1:
            raise ValueError(f"`floor` must lie above 0 and up to 1, got {self.floor!r}.")
        object.__setattr__(self, "backend", chosen_backend(self.backend))
        known = self.memory.layers
        layers = known if self.layers is None else tuple(sorted(set(self.layers)))
        missing = [layer for layer in layers if layer not in known]
        if missing:
            raise ValueError(
                f"The memory does not hold layer {missing[0]}; it holds layers "
                f"{', '.join(map(str, known))}."
            )
        object.__setattr__(self, "layers", layers)
        self.freeze_place()
        object.__setattr__(self, "_stored", {})

    def check(self, model: MoEModel) -> None:
        """Refuse a model whose experts cannot be called with more slots, or are others.

        Args:
            model: The model that will run.

        Raises:
            ValueError: If a layer does not exist or is dense, calls its experts otherwise than
                with an index, or has fewer experts than the memory names.
        """
        check_layers(model, self.layers)
        for layer in self.layers:
            site, index = model.moe[layer], self.memory.index[layer]
            if site.facts["dispatch"] != "indexed" or site.facts["skips"]:
                raise ValueError(
                    f"Layer {layer} of {model.architecture.model_class!r} does not call its "
                    "experts with an index, so that a token cannot have more of them than the "
                    "model chooses. Use Transplant or Force."
                )
            if len(index) and int(index.max()) >= site.n_experts:
                raise ValueError(
                    f"The memory names expert {int(index.max())} in layer {layer}, which has "
                    f"experts 0 to {site.n_experts - 1}. Fit it to the same model."
                )

    def edits(self, batch: Batch) -> Sequence[Edit]:
        """A mixture for each layer; none if the memory is empty.

        Args:
            batch: The rows that will run.

        Returns:
            The edits.
        """
        if not len(self.memory):
            return []
        where = self.at_tokens(batch)
        made = []
        for layer in self.layers:
            # An index of faiss is of this process; a server searches with torch.
            backend = self.backend if batch.model.connection is None else "torch"
            rule, shared = self._stored.get((layer, backend)) or self._store(layer, backend)
            made.append(Edit(layer, "mixture", rule, where, (), self.edit_phase, shared))
        return made

    def _store(self, layer: int, backend: str) -> tuple:
        """The rule and tensors of a layer, made once, so that batches share them."""
        memory = self.memory
        numbers = (self.n_neighbours, self.half * memory.spacing(layer), self.floor)
        values = (memory.index[layer], memory.weights[layer].float())
        if backend == "torch":
            settings = torch.tensor(numbers, dtype=torch.float64)
            found = (mix_from_memory, (memory.keys[layer], *values, settings))
        else:
            search = faiss_search(memory.keys[layer])
            found = (partial(_mix_with_faiss, search, numbers), values)
        self._stored[layer, backend] = found
        return found


def _mix_with_faiss(
    search: faiss_search,
    numbers: tuple[int, float, float],
    layer: LayerParts,
    seen: Tensor,
    index: Tensor,
    weights: Tensor,
    where: Tensor,
    key_index: Tensor,
    key_weights: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """`mix_from_memory` with the neighbours that faiss finds; runs in this process only."""
    n_neighbours, half, floor = numbers
    found = (one.to(seen.device) for one in search(seen.flatten(0, 1).float(), n_neighbours))
    return mix_found(layer, index, weights, where, *found, key_index, key_weights, half, floor)
