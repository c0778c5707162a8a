"""What MoE layers compute in an untouched run, token by token, to be used in another run."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import nnsight
import numpy as np
import torch
from jaxtyping import Int, Shaped
from torch import Tensor

from moe_interp.capture import RoutingRecord
from moe_interp.experts import Expert, ExpertSet
from moe_interp.interventions._checks import (
    as_expert_set,
    check_experts,
    check_layers,
    check_offered,
)
from moe_interp.interventions._intervention import Batch
from moe_interp.interventions._rows import as_prompt_set, forward_arguments, planned_batches
from moe_interp.models import MoEModel, read_layers
from moe_interp.prompts import Encoded, PromptSet, tokenize

ROUTING = ("expert_index", "routing_weights")
#: What `outputs_of` can keep, beside the index of the chosen experts.
OUTPUTS = ("expert_outputs", "expert_contributions", "output")

Layers = Sequence[int] | ExpertSet | Iterable[Expert | tuple[int, int] | str] | str | None


@dataclass(frozen=True, eq=False, repr=False)
class CapturedRun:
    """What layers computed at every token of some prompts; made by `routing_of` or `outputs_of`.

    Two captured runs are equal only if they are the same object.

    Attributes:
        ids: Name of each prompt.
        values: By absolute decoder layer and quantity, one tensor ``[token ...]`` a prompt, on the
            CPU; no padding.
    """

    ids: tuple[str, ...]
    values: Mapping[int, Mapping[str, tuple[Tensor, ...]]]

    @property
    def layers(self) -> tuple[int, ...]:
        """The captured layers, in order."""
        return tuple(sorted(self.values))

    @property
    def quantities(self) -> tuple[str, ...]:
        """What was kept of each layer."""
        return tuple(next(iter(self.values.values()), {}))

    def lay(self, layer: int, quantity: str, batch: Batch) -> Shaped[Tensor, "row token ..."]:
        """Lay a quantity over the rows of a batch, prompt by prompt and token by token.

        Args:
            layer: A captured layer.
            quantity: A quantity that was kept.
            batch: The rows; their prompts are taken to be the captured ones, in the same order.

        Returns:
            The values at real tokens, and zeros at padding.

        Raises:
            ValueError: If there are more prompts than captured ones, or one has another number of
                tokens.
        """
        by_prompt, real = self.values[layer][quantity], batch.real_tokens
        laid = by_prompt[0].new_zeros(*real.shape, *by_prompt[0].shape[1:])
        for row, prompt in enumerate(batch.prompt_index):
            if prompt >= len(by_prompt):
                raise ValueError(
                    f"The source holds {len(by_prompt)} prompts, but prompt {prompt} (counted "
                    "from 0) runs. Capture it from as many prompts, in the same order."
                )
            given, n_tokens = by_prompt[prompt], int(real[row].sum())
            if len(given) != n_tokens:
                raise ValueError(
                    f"Prompt {prompt} has {n_tokens} tokens, but prompt {self.ids[prompt]!r} of "
                    f"the source has {len(given)}. What is taken from another run goes token by "
                    "token, so both must have the same number."
                )
            laid[row, real[row]] = given
        return laid

    def __repr__(self) -> str:
        layers = ", ".join(map(str, self.layers))
        kept = ", ".join(self.quantities)
        return f"CapturedRun({len(self.ids)} prompts; layers {layers}; {kept})"


def routing_of(
    model: MoEModel,
    prompts: PromptSet | Sequence[str],
    layers: Sequence[int] | None = None,
    *,
    batch_size: int | str = "auto",
) -> CapturedRun:
    """Capture which experts each token goes to, and with what weights, in the untouched model.

    Args:
        model: The model.
        prompts: The prompts.
        layers: Which MoE layers; all of them if not given.
        batch_size: As in `run`; the same value there makes a `Transplant` bit-identical.

    Returns:
        The routing, as a source for `Transplant`.

    Raises:
        ValueError: If a layer does not exist or is dense.
        PromptError: If a prompt is longer than the model reads.

    Example:
        >>> import moe_interp as mi
        >>> model = mi.load_model("organism:topic")
        >>> routing_of(model, ["how do i bake bread ?"], [1, 2])
        CapturedRun(1 prompts; layers 1, 2; expert_index, routing_weights)
    """
    layers = tuple(model.moe) if layers is None else tuple(sorted(set(layers)))
    check_layers(model, layers)
    return _capture(model, as_prompt_set(prompts), layers, ROUTING, batch_size)


def outputs_of(
    model: MoEModel,
    prompts: PromptSet | Sequence[str],
    where: Layers = None,
    *,
    quantities: Sequence[str] = ("expert_contributions", "output"),
    batch_size: int | str = "auto",
) -> CapturedRun:
    """Capture what experts and blocks put out at every token, in the untouched model.

    It keeps one vector a token, layer and chosen expert, so name the layers that are needed.

    Args:
        model: The model.
        prompts: The prompts.
        where: Experts or layers; all layers if not given.
        quantities: Of ``"expert_outputs"`` (unweighted), ``"expert_contributions"`` (weighted)
            and ``"output"`` (of the block).
        batch_size: As in `run`; the same value there makes a `PatchOutput` bit-identical.

    Returns:
        The outputs, as a source for `PatchOutput`, `PatchBlock` and `Resample`.

    Raises:
        ValueError: If a layer, expert or quantity does not exist.
        UnsupportedQuantityError: If a layer does not offer a quantity.
        PromptError: If a prompt is longer than the model reads.
    """
    unknown = [name for name in quantities if name not in OUTPUTS]
    if unknown or not quantities:
        raise ValueError(f"`quantities` must be some of {OUTPUTS}, got {tuple(quantities)!r}.")
    layers = layers_named(model, where)
    for name in quantities:
        check_offered(model, layers, name, "Leave it out of `quantities`.")
    names = ("expert_index", *dict.fromkeys(quantities))
    return _capture(model, as_prompt_set(prompts), layers, names, batch_size)


def layers_named(model: MoEModel, where: Layers) -> tuple[int, ...]:
    """The layers of experts, or the layers themselves; all MoE layers if None.

    Raises:
        ValueError: If a layer or expert does not exist.
    """
    if where is None:
        return tuple(model.moe)
    if not isinstance(where, str | ExpertSet):
        where = tuple(where)
        if all(isinstance(layer, int | np.integer) for layer in where):
            layers = tuple(sorted({int(layer) for layer in where}))
            check_layers(model, layers)
            return layers
    experts = as_expert_set(where)
    check_experts(model, experts)
    return tuple(sorted(experts.by_layer()))


def as_captured(source: CapturedRun | RoutingRecord) -> CapturedRun:
    """Routing as captured, whether it comes so or as a record.

    Raises:
        TypeError: If it is neither.
    """
    if isinstance(source, CapturedRun):
        return source
    if not isinstance(source, RoutingRecord):
        raise TypeError(
            f"`source` must be what routing_of or record_routing returns, got {source!r}."
        )
    owner = source.dataset["prompt_index"].values
    values: dict[int, dict[str, tuple[Tensor, ...]]] = {}
    for row, layer in enumerate(source.layers):
        values[layer] = {}
        for name in ROUTING:
            if name in source.dataset:
                whole = source.dataset[name].values[:, row]
                whole = torch.tensor(whole.astype(np.int64) if name == "expert_index" else whole)
                parts = (whole[torch.from_numpy(owner == n)] for n in range(source.n_prompts))
                values[layer][name] = tuple(parts)
    return CapturedRun(tuple(source.dataset["id"].values.tolist()), values)


def captured_batches(
    model: MoEModel,
    prompts: PromptSet,
    layers: Sequence[int],
    names: Sequence[str],
    batch_size: int | str,
) -> Iterator[tuple[Int[np.ndarray, " batch"], Encoded, dict[int, dict[str, Tensor]]]]:
    """Run prompts batch by batch, and read quantities of layers.

    Args:
        model: The model.
        prompts: The prompts.
        layers: MoE layers, in order.
        names: Quantities.
        batch_size: Rows in a batch.

    Yields:
        The prompts of a batch, the batch, and by layer and quantity ``[batch pos ...]``.
    """
    root, chosen = model.nnsight, [model.moe[layer] for layer in layers]
    tokenized = tokenize(model.tokenizer, prompts, max_length=model.max_positions)
    for rows in planned_batches(tokenized.lengths, 1, batch_size):
        encoded = tokenized.batch(rows.tolist())
        inputs, options = forward_arguments(model, encoded)
        with torch.no_grad(), root.trace(inputs, backend=model.backend(), **options):
            found = nnsight.save(read_layers(chosen, names))
        yield rows, encoded, found


def _capture(
    model: MoEModel,
    prompts: PromptSet,
    layers: Sequence[int],
    names: Sequence[str],
    batch_size: int | str,
) -> CapturedRun:
    kept: dict[int, dict[str, list]] = {
        layer: {name: [None] * len(prompts) for name in names} for layer in layers
    }
    for rows, encoded, found in captured_batches(model, prompts, layers, names, batch_size):
        real = encoded.attention_mask.bool()
        for layer, quantities in found.items():
            for name, value in quantities.items():
                value = value.cpu()
                for row, prompt in enumerate(rows):
                    kept[layer][name][prompt] = value[row, real[row]].clone()
    values = {
        layer: {name: tuple(parts) for name, parts in quantities.items()}
        for layer, quantities in kept.items()
    }
    return CapturedRun(prompts.ids, values)
