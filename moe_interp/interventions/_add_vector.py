"""AddVector: a vector is added to what leaves a MoE block."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from jaxtyping import Float
from numpy.random import Generator
from torch import Tensor

from moe_interp.experts import Expert
from moe_interp.interventions._checks import check_layers, check_offered
from moe_interp.interventions._intervention import Batch, Edit, PlacedIntervention
from moe_interp.interventions._tokens import Tokens
from moe_interp.models import MoEModel
from moe_interp.models._traced_rules import add_vector


@dataclass(frozen=True)
class AddVector(PlacedIntervention):
    """Add a vector to the output of a MoE block, the routing of that block untouched.

    It is added to ``layer.output``: what the block hands to the residual stream, shared expert
    included.

    Attributes:
        layer: Absolute decoder layer.
        vector: One number for each dimension of the model; kept as a tuple.
        tokens: Where in the prompts: everywhere (None), a span, or a mask of the real tokens.
        phase: ``"prefill"``, ``"decode"`` or ``"both"``.

    Raises:
        ValueError: If the vector has more than one axis or is not finite, the phase is unknown,
            or tokens of the prompt are named for decoding.

    Example:
        >>> AddVector(2, [0.5] * 64, tokens="last")
        AddVector(layer=2, tokens='last', phase='both')
    """

    layer: int
    vector: Float[Tensor, " d_model"] | Float[np.ndarray, " d_model"] | Sequence[float] = field(
        repr=False
    )
    tokens: Tokens | None = field(default=None, kw_only=True)
    phase: str = field(default="both", kw_only=True)

    def __post_init__(self) -> None:
        given = torch.as_tensor(self.vector)
        if given.dim() != 1:
            raise ValueError(f"`vector` must have one axis (d_model), got {tuple(given.shape)}.")
        numbers = tuple(map(float, given.tolist()))
        if not all(map(math.isfinite, numbers)):
            raise ValueError("`vector` must hold finite numbers, but some are not.")
        object.__setattr__(self, "vector", numbers)
        self.freeze_place()

    def check(self, model: MoEModel) -> None:
        """Refuse a model without this layer, or of another width.

        Args:
            model: The model that will run.

        Raises:
            ValueError: If the layer does not exist or is dense, or the vector is too long or
                too short.
            UnsupportedQuantityError: If the layer does not offer its output.
        """
        check_layers(model, [self.layer])
        check_offered(model, [self.layer], "output")
        if len(self.vector) != model.architecture.d_model:
            raise ValueError(
                f"`vector` has {len(self.vector)} numbers, but "
                f"{model.architecture.model_class!r} has {model.architecture.d_model} dimensions."
            )

    def matched(self, places: Mapping[Expert, Expert], rng: Generator) -> "AddVector":
        """Give a vector of the same length in a random direction, at the same layer.

        Args:
            places: Not used: no expert is named.
            rng: Source of randomness.

        Returns:
            The intervention with that vector.
        """
        direction = rng.normal(size=len(self.vector))
        length = np.linalg.norm(self.vector) / np.linalg.norm(direction)
        return replace(self, vector=length * direction)

    def edits(self, batch: Batch) -> Sequence[Edit]:
        """One correction of the block's output.

        Args:
            batch: The rows that will run.

        Returns:
            The edit.
        """
        values = (torch.tensor(self.vector)[None, None],)
        where = self.at_tokens(batch)
        return [Edit(self.layer, "output", add_vector, where, values, self.edit_phase)]
