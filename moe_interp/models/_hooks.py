"""Hooks by TransformerLens's names: which there are, a cache of their values, functions on them.

Where TransformerLens 4.3 has the name (its `TransformerBridge`; it has no other model class any
more), layout and values are its own. What runs in a trace stands in ``_traced_hooks``.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches

import nnsight
import torch
from jaxtyping import Shaped
from nnsight.modeling.transformers import TransformersModel
from torch import Tensor

from moe_interp.errors import UnsupportedQuantityError
from moe_interp.models._traced import MoELayer
from moe_interp.models._traced_hooks import READ_ONLY, read_hooked, run_hooked, spread

# Hook -> the layer's quantity and the axes of the value.
HOOKS: dict[str, tuple[str, tuple[str, ...]]] = {
    "hook_in": ("input", ("batch", "pos", "d_model")),
    "hook_router_logits": ("router_logits", ("batch", "pos", "expert")),
    "hook_router_probs": ("router_probs", ("batch", "pos", "expert")),
    "hook_expert_indices": ("expert_index", ("token", "top_k")),
    "hook_expert_weights": ("routing_weights", ("token", "expert")),
    "hook_expert_outputs": ("expert_outputs", ("batch", "pos", "top_k", "d_model")),
    "hook_expert_contributions": ("expert_contributions", ("batch", "pos", "top_k", "d_model")),
    "hook_shared_output": ("shared_output", ("batch", "pos", "d_model")),
    "hook_out": ("output", ("batch", "pos", "d_model")),
}
_FLAT = ("expert_index", "routing_weights")
_RETURN_TYPES = ("logits", None)

NamesFilter = str | Sequence[str] | Callable[[str], bool] | None
Hook = tuple[str | Callable[[str], bool], Callable]


@dataclass(frozen=True)
class HookInfo:
    """What a hook name stands for.

    Attributes:
        name: The name, ``blocks.{layer}.mlp.hook_...``.
        layer: Absolute decoder layer (encoder layer for ``encoder_blocks.``).
        quantity: What `MoELayer` calls it.
        axes: The axes of its value; ``token`` is batch and pos in one, row by row.
        writable: Whether a function on the hook may return a new value.
    """

    name: str
    layer: int
    quantity: str
    axes: tuple[str, ...]
    writable: bool


class RoutingCache(Mapping[str, Tensor]):
    """The values of hooks in one forward, detached; padded positions are there.

    ``cache["blocks.7.mlp.hook_router_logits"]`` and ``cache["hook_router_logits", 7]`` are the
    same; `stack` joins the layers.

    Attributes:
        shape: Number of prompts and of positions.
    """

    def __init__(
        self, values: dict[str, Tensor], hooks: Mapping[str, HookInfo], shape: tuple[int, int]
    ) -> None:
        self._values = values
        self._hooks = hooks
        self.shape = shape

    def __getitem__(self, key: str | tuple[str, int]) -> Shaped[Tensor, "..."]:
        name = key
        if isinstance(key, tuple):
            hook, layer = key
            name = f"blocks.{layer}.mlp.{_full(hook)}"
        if name in self._values:
            return self._values[name]
        raise KeyError(f"The cache has no {name!r}. {_suggest(name, self._values)}It holds {self}.")

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __str__(self) -> str:
        found: dict[str, list[int]] = {}
        for name in self._values:
            found.setdefault(name.rpartition(".")[2], []).append(self._hooks[name].layer)
        rows = [f"{hook} of layers {', '.join(map(str, held))}" for hook, held in found.items()]
        return "; ".join(rows)

    def __repr__(self) -> str:
        n_prompts, n_pos = self.shape
        return f"RoutingCache({n_prompts} prompts, {n_pos} positions: {self})"

    def layers(self, hook: str) -> tuple[int, ...]:
        """The decoder layers whose values of a hook are there, in order: the rows of `stack`.

        Args:
            hook: Last part of the name, such as ``"hook_router_logits"``.

        Returns:
            Absolute layer numbers.

        Raises:
            KeyError: If no layer has it.
        """
        ending = f".mlp.{_full(hook)}"
        names = [name for name in self._values if name.startswith("blocks.")]
        found = tuple(self._hooks[name].layer for name in names if name.endswith(ending))
        if not found:
            raise KeyError(f"The cache has no layer's {_full(hook)!r}. It holds {self}.")
        return found

    def stack(self, hook: str) -> Shaped[Tensor, "layer batch pos ..."]:
        """The values of one hook in all layers, with batch and position always apart.

        Args:
            hook: Last part of the name, such as ``"hook_router_logits"``.

        Returns:
            One tensor, layers first, in the order of `layers`.

        Raises:
            KeyError: If no layer has it.
            ValueError: If the layers differ in their number of experts or of choices.
        """
        values = [self[hook, layer] for layer in self.layers(hook)]
        if len({value.shape for value in values}) > 1:
            shapes = {layer: tuple(self[hook, layer].shape) for layer in self.layers(hook)}
            raise ValueError(
                f"The values of {_full(hook)!r} differ in shape between layers and cannot be "
                f"stacked: {shapes}. Take them one by one."
            )
        stacked = torch.stack([value.to(values[0].device) for value in values])
        flat = HOOKS[_full(hook)][0] in _FLAT
        return stacked.unflatten(1, self.shape) if flat else stacked


class HookTable:
    """The hooks of a model, in the order in which it computes them.

    Attributes:
        hooks: What each name stands for.
    """

    def __init__(self, stacks: Mapping[str, Mapping[int, MoELayer]]) -> None:
        self._stacks = stacks
        self._layers = {
            (stack, number): layer
            for stack, layers in stacks.items()
            for number, layer in layers.items()
        }
        self.hooks: dict[str, HookInfo] = {}
        for (stack, number), layer in self._layers.items():
            for hook, (quantity, axes) in HOOKS.items():
                name = f"{stack}.{number}.mlp.{hook}"
                if quantity in layer.offered:
                    info = HookInfo(name, number, quantity, axes, quantity not in READ_ONLY)
                    self.hooks[name] = info

    def require(self, name: str) -> str:
        """The name, or an error that says why there is no such hook."""
        if name in self.hooks:
            return name
        stack, _, rest = name.partition(".")
        number, _, last = rest.partition(".mlp.")
        if stack in self._stacks and number.isdigit() and last in HOOKS:
            layer = self._stacks[stack][int(number)]
            quantity = HOOKS[last][0]
            raise UnsupportedQuantityError(
                f"There is no {name!r}: {layer.refused.get(quantity, 'it is not offered')}"
            )
        raise KeyError(
            f"No hook is named {name!r}. {_suggest(name, self.hooks)}"
            "`model.hook_dict` lists all of them."
        )

    def select(self, names_filter: NamesFilter, argument: str) -> list[str]:
        """The hooks that a filter picks, in order; an error if there are none."""
        if names_filter is None:
            return list(self.hooks)
        if isinstance(names_filter, str):
            return [self.require(names_filter)]
        if callable(names_filter):
            chosen = [name for name in self.hooks if names_filter(name)]
        elif isinstance(names_filter, Sequence) and all(isinstance(n, str) for n in names_filter):
            asked = {self.require(name) for name in names_filter}
            chosen = [name for name in self.hooks if name in asked]
        else:
            raise TypeError(
                f"`{argument}` takes a hook's name, several names, or a function of a name that "
                f"says True or False, got {names_filter!r}."
            )
        if not chosen:
            example = next(iter(self.hooks))
            raise KeyError(
                f"`{argument}` picks none of the {len(self.hooks)} hooks of this model, which "
                f"are named like {example!r}."
            )
        return chosen

    def by_layer(self, names: Sequence[str]) -> list[tuple[MoELayer, list[HookInfo]]]:
        """The layers that names lie in, in order of depth, each with its hooks."""
        found: dict[tuple[str, int], list[HookInfo]] = {}
        for name in names:
            key = (name.partition(".")[0], self.hooks[name].layer)
            found.setdefault(key, []).append(self.hooks[name])
        return [(layer, found[key]) for key, layer in self._layers.items() if key in found]


def run_with_cache(
    nn: TransformersModel,
    table: HookTable,
    prompts: object,
    names_filter: NamesFilter,
    return_type: str | None,
    options: dict[str, object],
) -> tuple[Tensor | None, RoutingCache]:
    """Run the model once and keep the values of hooks; see `MoEModel.run_with_cache`.

    Args:
        nn: The wrapped nnsight model.
        table: Its hooks.
        prompts: What ``trace`` takes.
        names_filter: Which hooks.
        return_type: ``"logits"`` or None.
        options: Goes to ``trace``.

    Returns:
        The logits, or None, and the cache.
    """
    names = table.select(names_filter, "names_filter")
    chosen = table.by_layer(names)
    with_logits = _with_logits(return_type)
    layers = [layer for layer, _ in chosen]
    wanted = [_quantities(hooks) for _, hooks in chosen]
    with nn.trace(prompts, **options):
        found = nnsight.save(read_hooked(nn, layers, wanted, with_logits))
    values, logits = found
    shape = next(iter(values[-1].values())).shape[:2]
    kept = {}
    for (layer, hooks), read in zip(chosen, values, strict=True):
        for hook in hooks:
            value = read[hook.quantity].detach()
            if hook.quantity == "routing_weights":
                value = spread(read["expert_index"], value, layer.n_experts)
            kept[hook.name] = value.flatten(0, 1) if hook.quantity == "expert_index" else value
    return logits, RoutingCache(kept, table.hooks, tuple(shape))


def run_with_hooks(
    nn: TransformersModel,
    table: HookTable,
    prompts: object,
    fwd_hooks: Sequence[Hook],
    return_type: str | None,
    options: dict[str, object],
) -> Tensor | None:
    """Run the model once with functions on hooks; see `MoEModel.run_with_hooks`.

    Args:
        nn: The wrapped nnsight model.
        table: Its hooks.
        prompts: What ``trace`` takes.
        fwd_hooks: Pairs of a hook's name, or a function that picks names, and a function.
        return_type: ``"logits"`` or None.
        options: Goes to ``trace``.

    Returns:
        The logits, or None.
    """
    functions: dict[str, list[Callable]] = {}
    for pair in fwd_hooks:
        picks, function = _checked_pair(pair)
        for name in table.select(picks, "fwd_hooks"):
            functions.setdefault(name, []).append(function)
    chosen = table.by_layer(list(functions))
    with_logits = _with_logits(return_type)
    layers = [layer for layer, _ in chosen]
    plans = [
        {hook.quantity: (hook.name, functions[hook.name]) for hook in hooks} for _, hooks in chosen
    ]
    with nn.trace(prompts, **options):
        logits = nnsight.save(run_hooked(nn, layers, plans, with_logits))
    return logits  # noqa: RET504  Only a name bound in the block leaves it.


def _quantities(hooks: Sequence[HookInfo]) -> list[str]:
    """What to read for some hooks of a layer; weights are laid out by the experts' index."""
    names = [hook.quantity for hook in hooks]
    if "routing_weights" in names and "expert_index" not in names:
        names.append("expert_index")
    return names


def _with_logits(return_type: str | None) -> bool:
    if return_type not in _RETURN_TYPES:
        raise ValueError(
            f"`return_type` must be one of {_RETURN_TYPES}, got {return_type!r}. A loss is made "
            "of the logits."
        )
    return return_type == "logits"


def _checked_pair(pair: object) -> Hook:
    if (
        isinstance(pair, tuple | list)
        and len(pair) == 2
        and (isinstance(pair[0], str) or callable(pair[0]))
        and callable(pair[1])
    ):
        return pair[0], pair[1]
    raise TypeError(
        "`fwd_hooks` holds pairs (name or function of a name, function of value and hook), "
        f"got {pair!r}."
    )


def _full(hook: str) -> str:
    return hook if hook.startswith("hook_") else f"hook_{hook}"


def _suggest(name: str, known: Mapping[str, object]) -> str:
    close = get_close_matches(name, list(known), n=3)
    return f"Did you mean {' or '.join(map(repr, close))}? " if close else ""
