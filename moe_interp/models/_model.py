"""MoEModel: an nnsight model that knows its MoE layers."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from importlib import import_module
from typing import Any

import torch
from nnsight.modeling.transformers import TransformersModel
from transformers import PretrainedConfig, PreTrainedTokenizerBase

from moe_interp.errors import UnsupportedOnServerError
from moe_interp.models._describe import experts_implementation
from moe_interp.models._hooks import (
    HookInfo,
    HookTable,
    RoutingCache,
    run_with_cache,
    run_with_hooks,
)
from moe_interp.models._site import Site
from moe_interp.models._traced import ModelInTrace, MoELayer
from moe_interp.notebook import Shown
from moe_interp.remote import Connection, ServerBackend


@dataclass(frozen=True)
class Architecture(Shown):
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

    It wraps an nnsight `TransformersModel` and hands out its ``trace``, ``generate``, ``session``,
    ``edit`` and ``scan``. Made by `load_model`.

    Attributes:
        nnsight: The wrapped nnsight model.
        moe: The MoE layers by absolute decoder layer.
        encoder_moe: Those of the encoder, if the model has one.
        architecture: What kind of model it is.
        card: What is known about a packaged organism; None for other models.
        connection: The server that runs it; None if it runs here.
    """

    def __init__(
        self,
        nnsight: TransformersModel,
        sites: tuple[Site, ...],
        *,
        source: str,
        card: dict[str, object] | None = None,
        connection: Connection | None = None,
    ) -> None:
        self.nnsight = nnsight
        self.sites = sites
        self.card = card
        self.connection = connection
        self._exact_sums: dict[str, str] = {}
        self.architecture = describe(nnsight._module, sites, source)
        stacks = {"decoder": [], "encoder": []}
        for site in sites:
            stacks[site.stack].append(MoELayer(nnsight, site.facts()))
        n_layers, model_class = self.architecture.n_layers, self.architecture.model_class
        self.moe = MoELayers(tuple(stacks["decoder"]), n_layers, model_class)
        self.encoder_moe = MoELayers(tuple(stacks["encoder"]), n_layers, model_class)

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
        """The device that inputs go to; a server moves them to its own."""
        return self.nnsight.device if self.connection is None else torch.device("cpu")

    def backend(self) -> ServerBackend | None:
        """What runs the next block on the model's server; None if the model runs here.

        Returns:
            A backend for ``trace(..., backend=)``, good for one block.

        Raises:
            RemoteRunError: If the server cannot be asked what it runs.
        """
        return None if self.connection is None else self.connection.backend(self.nnsight)

    @property
    def passes_gradients(self) -> bool:
        """Whether gradients can be had: not where a server runs blocks in a sandbox."""
        return self.connection is None or self.connection.is_trusted()

    def require_gradients(self, what: str, instead: str) -> None:
        """Refuse what needs gradients where they do not reach, before anything runs.

        Args:
            what: What is asked for.
            instead: What can be done in its place.

        Raises:
            UnsupportedOnServerError: If the model's server runs blocks in a sandbox.
        """
        if self.connection is not None:
            self.connection.require_trust(what, instead)

    def require_weights(self, what: str, instead: str = "") -> None:
        """Refuse what needs the weights themselves where they are on a server.

        Args:
            what: What is asked for.
            instead: What else can be done, to end the sentence that says what to do.

        Raises:
            UnsupportedOnServerError: If the model runs on a server.
        """
        if self.connection is not None:
            host = self.connection.server.host
            raise UnsupportedOnServerError(
                f"{what} needs the weights of {self.id!r}, which are on {host}. Load the model "
                f"without `remote`{instead}."
            )

    @property
    def max_positions(self) -> int | None:
        """The longest input in tokens, or None if the configuration does not say."""
        config = self.config.get_text_config()
        return getattr(config, "max_position_embeddings", None) or getattr(
            config, "max_seq_len", None
        )

    # nnsight finds the user's block by the frame that opens it, so these are handed out as they
    # are instead of being called from here.

    @property
    def trace(self) -> Callable:
        """Open a block that reads and edits one forward: nnsight's ``trace``.

        It takes texts, token ids, or an encoding with ``input_ids`` and ``attention_mask``.
        """
        return self._there(self._up_to_date().trace)

    @property
    def generate(self) -> Callable:
        """Open a block over a generation, or just generate: nnsight's ``generate``.

        With beams, or several sequences per prompt, a layer's ``pos`` axis runs over all rows of
        a prompt.
        """
        return self._there(self._up_to_date().generate)

    @property
    def session(self) -> Callable:
        """Open a session of several traces: nnsight's ``session``."""
        return self._there(self._up_to_date().session)

    @property
    def edit(self) -> Callable:
        """Open a block whose edits stay with the model: nnsight's ``edit``."""
        return self._up_to_date().edit

    @property
    def scan(self) -> Callable:
        """Trace shapes only, where the experts implementation allows it: nnsight's ``scan``."""
        return self._up_to_date().scan

    def edited(
        self,
        interventions: Any,  # noqa: ANN401  Interventions, which this layer knows nothing of.
        *,
        prompts: Any = None,  # noqa: ANN401
    ) -> "MoEModel":
        """Give a model that applies interventions in every trace, generation and run.

        Args:
            interventions: What to change, applied in list order.
            prompts: What the model will be traced with, where interventions name its tokens.

        Returns:
            The edited model, see `moe_interp.edited`; this one stays as it is.

        Raises:
            ValueError: If an intervention does not fit the model.
            TypeError: If something else is among the interventions.

        Example:
            >>> import moe_interp as mi
            >>> quiet = mi.load_model("organism:topic").edited(mi.Ban("L3E8,L3E9"))
            >>> mi.run(quiet, ["how do i open the lock to start an attack ?"]).next_tokens
            ('careful',)
        """
        # By the public name: interventions lie above models, which must not import them.
        return import_module("moe_interp").edited(self, interventions, prompts=prompts)

    def remember_exact_sums(self, experts: Iterable[str]) -> None:
        """Note which experts were seen to return, bit for bit, what their slots add up to.

        Reading such slots then makes the experts' own call needless, while they run as they did.

        Args:
            experts: Paths of the experts modules.
        """
        self._exact_sums = {path: self._runs(path) for path in experts}

    def _up_to_date(self) -> TransformersModel:
        """The wrapped model, once the layers know how its experts run now."""
        for layer in (*self.encoder_moe.values(), *self.moe.values()):
            path = layer.facts["experts"]
            runs = self._runs(path)
            layer.facts["runs"] = runs
            layer.facts["adds_slots_up"] = self._exact_sums.get(path, "") == runs != ""
        return self.nnsight

    def _runs(self, path: str) -> str:
        """How experts run now; transformers lets users change it after loading."""
        return experts_implementation(self.nnsight._module.get_submodule(path))

    def _there(self, opens: Callable) -> Callable:
        """The same, on the model's server if there is one."""
        return opens if self.connection is None else partial(opens, backend=self.backend())

    @property
    def hook_dict(self) -> dict[str, HookInfo]:
        """What can be cached and hooked, under TransformerLens's names: layer, quantity, axes.

        ``blocks.{layer}.mlp.hook_router_logits``, ``hook_expert_indices`` and so on;
        ``encoder_blocks.{layer}...`` in an encoder. What a layer does not offer is left out.
        """
        return self._hook_table().hooks

    def run_with_cache(
        self,
        prompts: object,
        *,
        names_filter: str | Sequence[str] | Callable[[str], bool] | None = None,
        return_type: str | None = "logits",
        remote: bool | str = False,
        backend: object = None,
    ) -> tuple[torch.Tensor | None, RoutingCache]:
        """Run prompts once and keep what the MoE layers computed, as in TransformerLens.

        Args:
            prompts: A text, several, token ids, or an encoding, as `trace` takes them.
            names_filter: Which hooks of `hook_dict` to keep: a name, several, or a function of a
                name; all of them by default, per-expert outputs included.
            return_type: ``"logits"``, or None for the cache alone.
            remote: As in nnsight's ``trace``.
            backend: As in nnsight's ``trace``.

        Returns:
            The logits (or None) and the cache. Padded positions are in both.

        Raises:
            KeyError: If there is no hook of a name, or the filter picks none.
            UnsupportedQuantityError: If the layer does not offer what a name stands for.
            TypeError: If `names_filter` is of another kind.
            ValueError: If `return_type` has another value.

        Example:
            >>> import moe_interp as mi
            >>> model = mi.load_model("organism:topic")
            >>> _, cache = model.run_with_cache("how do i bake bread ?")
            >>> cache.stack("hook_router_logits").shape
            torch.Size([4, 1, 6, 16])
        """
        options = {"remote": remote, "backend": backend or self.backend()}
        nn, table = self._up_to_date(), self._hook_table()
        return run_with_cache(nn, table, prompts, names_filter, return_type, options)

    def run_with_hooks(
        self,
        prompts: object,
        *,
        fwd_hooks: Sequence[tuple[str | Callable[[str], bool], Callable]] = (),
        return_type: str | None = "logits",
        remote: bool | str = False,
        backend: object = None,
    ) -> torch.Tensor | None:
        """Run prompts once with functions that see, and may change, what the layers compute.

        A function is called as ``function(value, hook)``, where ``hook.name`` and
        ``hook.layer()`` say where it is, and returns a new value, or None to change nothing.
        Hooks run in the order in which the model computes their values, functions on one hook in
        list order.

        Args:
            prompts: A text, several, token ids, or an encoding, as `trace` takes them.
            fwd_hooks: Pairs of a hook's name, or a function that picks names, and a function.
            return_type: ``"logits"``, or None for nothing.
            remote: As in nnsight's ``trace``; what functions store outside then stays there.
            backend: As in nnsight's ``trace``.

        Returns:
            The logits, or None.

        Raises:
            KeyError: If there is no hook of a name, or a function picks none.
            UnsupportedQuantityError: If the layer does not offer what a name stands for.
            TypeError: If `fwd_hooks` holds something else, or a function returns no tensor.
            ValueError: If a function gives a value of another shape, or writes what can only be
                read; or if `return_type` has another value.

        Example:
            >>> import moe_interp as mi
            >>> model = mi.load_model("organism:topic")
            >>> name = "blocks.2.mlp.hook_router_logits"
            >>> logits = model.run_with_hooks(
            ...     "how do i bake bread ?", fwd_hooks=[(name, lambda value, hook: -value)]
            ... )
            >>> logits.shape[:2]
            torch.Size([1, 6])
        """
        options = {"remote": remote, "backend": backend or self.backend()}
        nn, table = self._up_to_date(), self._hook_table()
        return run_with_hooks(nn, table, prompts, fwd_hooks, return_type, options)

    def _hook_table(self) -> HookTable:
        return HookTable({"encoder_blocks": self.encoder_moe, "blocks": self.moe})

    def __reduce__(self) -> tuple[type, tuple[object, ...]]:
        """A model named in a block that runs elsewhere arrives there as what the block can use."""
        return ModelInTrace, (self.nnsight, dict(self.moe), dict(self.encoder_moe))

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
    decoder = [site for site in sites if site.stack == "decoder"]
    first = decoder[0] if decoder else sites[0]
    return Architecture(
        model_type=module.config.model_type,
        model_class=type(module).__name__,
        n_layers=int(getattr(text, "num_hidden_layers", None) or sites[-1].layer + 1),
        moe_layers=tuple(site.layer for site in decoder),
        n_experts=first.n_experts,
        top_k=first.top_k,
        d_model=int(getattr(text, "hidden_size", None) or text.d_model),
        has_shared=any(site.shared is not None for site in sites),
        score_function=first.score_function,
        experts_implementation=str(getattr(text, "_experts_implementation", None) or "eager"),
        dtype=str(module.dtype).removeprefix("torch."),
        n_parameters=sum(weight.numel() for weight in module.parameters()),
        source=source,
    )
