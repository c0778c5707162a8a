"""MoEModel: an nnsight model that knows its MoE layers."""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass

import torch
from nnsight.modeling.transformers import TransformersModel
from transformers import PretrainedConfig, PreTrainedTokenizerBase

from moe_interp.models._sites import Site
from moe_interp.models._traced import ModelInTrace, MoELayer


@dataclass(frozen=True)
class Architecture:
    """What kind of model it is.

    Attributes:
        model_type: Family, as transformers names it.
        model_class: Class of the Hugging Face model.
        n_layers: Number of decoder layers, dense ones included.
        moe_layers: Absolute numbers of the MoE layers.
        n_experts: Routed experts per MoE layer.
        top_k: Experts chosen per token.
        d_model: Width of the residual stream.
        has_shared: Whether shared experts run beside the routed ones.
        score_function: What turns logits into scores: softmax, sigmoid or sqrtsoftplus.
        experts_implementation: How transformers runs the experts.
        dtype: Floating-point format of the weights.
        n_parameters: Number of weights.
        source: Where the model came from.
    """

    model_type: str
    model_class: str
    n_layers: int
    moe_layers: tuple[int, ...]
    n_experts: int
    top_k: int
    d_model: int
    has_shared: bool
    score_function: str
    experts_implementation: str
    dtype: str
    n_parameters: int
    source: str

    def to_dict(self) -> dict[str, object]:
        """The fields as JSON-safe values."""
        return {**asdict(self), "moe_layers": list(self.moe_layers)}

    def summary(self) -> str:
        """One line for people."""
        shared = " + shared" if self.has_shared else ""
        return (
            f"{self.model_class}: {len(self.moe_layers)} MoE layers of {self.n_layers}, "
            f"{self.n_experts} experts{shared}, top {self.top_k} by {self.score_function}, "
            f"{self.dtype}, {self.experts_implementation}"
        )


class MoELayers(Mapping[int, MoELayer]):
    """The MoE layers of a model by absolute decoder layer."""

    def __init__(self, layers: tuple[MoELayer, ...], n_layers: int, model_class: str) -> None:
        self._layers = {layer.layer: layer for layer in layers}
        self._n_layers = n_layers
        self._model_class = model_class

    def __getitem__(self, layer: int) -> MoELayer:
        if layer in self._layers:
            return self._layers[layer]
        known = ", ".join(map(str, self._layers))
        if 0 <= layer < self._n_layers:
            raise KeyError(
                f"Layer {layer} of {self._model_class!r} is dense, it has no experts. "
                f"MoE layers: {known}."
            )
        raise KeyError(f"{self._model_class!r} has no layer {layer}. MoE layers: {known}.")

    def __iter__(self) -> Iterator[int]:
        return iter(self._layers)

    def __len__(self) -> int:
        return len(self._layers)

    def __repr__(self) -> str:
        return f"MoELayers({list(self._layers.values())})"


class MoEModel:
    """A Mixture-of-Experts model whose routers and experts can be read and edited.

    It wraps an nnsight `TransformersModel` and forwards ``trace``, ``generate``, ``session``,
    ``edit`` and ``scan`` to it. Made by `load_model`.

    Attributes:
        nnsight: The wrapped nnsight model.
        moe: The MoE layers by absolute decoder layer.
        architecture: What kind of model it is.
        card: What is known about a packaged organism; None for other models.
    """

    def __init__(
        self,
        nnsight: TransformersModel,
        sites: tuple[Site, ...],
        *,
        source: str,
        card: dict[str, object] | None = None,
    ) -> None:
        self.nnsight = nnsight
        self.sites = sites
        self.card = card
        self.architecture = describe(nnsight._module, sites, source)
        layers = tuple(MoELayer(nnsight, site.facts()) for site in sites)
        self.moe = MoELayers(layers, self.architecture.n_layers, self.architecture.model_class)

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer that traces of text use."""
        return self.nnsight.tokenizer

    @property
    def config(self) -> PretrainedConfig:
        """The Hugging Face configuration."""
        return self.nnsight._module.config

    @property
    def id(self) -> str:
        """Where the model came from: a hub id, a folder, or the name of an organism."""
        return self.architecture.source

    @property
    def device(self) -> torch.device:
        """The device that inputs go to."""
        return self.nnsight.device

    @property
    def max_positions(self) -> int | None:
        """The longest input in tokens, or None if the configuration does not say."""
        config = self.config.get_text_config()
        return getattr(config, "max_position_embeddings", None) or getattr(
            config, "max_seq_len", None
        )

    def trace(self, *inputs: object, **options: object) -> object:
        """Open a trace: one forward, whose block reads and edits it (nnsight's ``trace``).

        Args:
            *inputs: Texts, token ids, or an encoding with ``input_ids`` and ``attention_mask``.
            **options: Passed on to nnsight.

        Returns:
            nnsight's tracer.
        """
        return self.nnsight.trace(*inputs, **options)

    def generate(self, *inputs: object, **options: object) -> object:
        """Open a trace over a generation (nnsight's ``generate``).

        Args:
            *inputs: As for `trace`.
            **options: Passed on to the model's ``generate``, e.g. ``max_new_tokens``.

        Returns:
            nnsight's tracer, or the token ids if it is not used as a block.

        Raises:
            ValueError: If beams or several sequences per prompt are asked for.
        """
        for name in ("num_beams", "num_return_sequences"):
            own = getattr(self.nnsight._module.generation_config, name, None)
            if (options.get(name) or own or 1) > 1:
                raise ValueError(
                    f"`{name}` must be 1, so that each row of a step belongs to one prompt, "
                    f"got {options.get(name) or own}."
                )
        return self.nnsight.generate(*inputs, **options)

    def session(self, *inputs: object, **options: object) -> object:
        """Open a session of several traces (nnsight's ``session``).

        Args:
            *inputs: Passed on to nnsight.
            **options: Passed on to nnsight.

        Returns:
            nnsight's tracer.
        """
        return self.nnsight.session(*inputs, **options)

    def edit(self, *inputs: object, **options: object) -> object:
        """Open a block whose edits stay with the model (nnsight's ``edit``).

        Args:
            *inputs: Passed on to nnsight.
            **options: Passed on to nnsight.

        Returns:
            nnsight's tracer.
        """
        return self.nnsight.edit(*inputs, **options)

    def scan(self, *inputs: object, **options: object) -> object:
        """Trace shapes only (nnsight's ``scan``), where the experts implementation allows it.

        Args:
            *inputs: As for `trace`.
            **options: Passed on to nnsight.

        Returns:
            nnsight's tracer.
        """
        return self.nnsight.scan(*inputs, **options)

    def __reduce__(self) -> tuple[type, tuple[object, ...]]:
        """A model named in a block that runs elsewhere arrives there as what the block can use."""
        return ModelInTrace, (self.nnsight, dict(self.moe))

    def __repr__(self) -> str:
        return f"MoEModel({self.id!r}: {self.architecture.summary()})"


def describe(module: torch.nn.Module, sites: tuple[Site, ...], source: str) -> Architecture:
    """Collect what kind of model a Hugging Face module is.

    Args:
        module: The model.
        sites: Its MoE blocks.
        source: Where it came from.

    Returns:
        The description.
    """
    text = module.config.get_text_config()
    first = sites[0]
    return Architecture(
        model_type=module.config.model_type,
        model_class=type(module).__name__,
        n_layers=int(getattr(text, "num_hidden_layers", None) or sites[-1].layer + 1),
        moe_layers=tuple(site.layer for site in sites),
        n_experts=first.n_experts,
        top_k=first.top_k,
        d_model=int(text.hidden_size),
        has_shared=any(site.shared is not None for site in sites),
        score_function=first.score_function,
        experts_implementation=str(getattr(text, "_experts_implementation", None) or "eager"),
        dtype=str(module.dtype).removeprefix("torch."),
        n_parameters=sum(weight.numel() for weight in module.parameters()),
        source=source,
    )
