"""The check at load: what is read is what the model computes, and edits arrive.

A release of transformers may rename an operation, change the order of a tuple or move a factor.
Then a reading would be wrong without a sign of it. A few forwards over ten tokens turn that into
an error that names the layer and the quantity.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import nnsight
import torch
from jaxtyping import Int
from nnsight.modeling.transformers import TransformersModel
from torch import Tensor

from moe_interp.errors import RemoteBodyError, RemoteRunError, RoutingMismatchError
from moe_interp.models._site import Site
from moe_interp.models._traced import MoELayer
from moe_interp.models._traced_check import (
    choose_others,
    negate_logits,
    plain_logits,
    read_all,
    write_back,
)
from moe_interp.models._traced_outputs import add_up

# Largest error relative to the largest entry; the sum over experts is rounded in the model's dtype.
TOLERANCE = {torch.bfloat16: 2e-2, torch.float16: 4e-3}
_OTHERWISE = 1e-5
# Implementations whose products do not depend on what else is computed with them.
_ADDING = ("eager", "batched_mm", "grouped_mm")
_ADVICE = (
    "This release of transformers seems to compute the layer in another way than was tested; "
    "report it, or pass `check=False` to look into it."
)


def check_access(
    model: TransformersModel,
    sites: tuple[Site, ...],
    layers: tuple[MoELayer, ...],
    *,
    backend: object = None,
) -> list[str]:
    """Prove on a few tokens that every layer is read and edited as the model computes it.

    Args:
        model: The wrapped model.
        sites: Its MoE blocks.
        layers: The same, as read in a trace.
        backend: What runs a block on a server, for a model whose weights are there.

    Returns:
        Paths of the experts that return, bit for bit, what their slots add up to.

    Raises:
        RoutingMismatchError: If a quantity of a layer is not what the model computes, or an edit
            does not reach the experts.
        RemoteRunError: If the server does not run a block.
    """
    batch = _tokens(model._module)
    check = _Check(type(model._module).__name__, TOLERANCE.get(model._module.dtype, _OTHERWISE))
    steps = None
    if backend is not None:
        with check.step("the check on the server"):
            steps = iter(_all_there(model, layers, batch, backend))
    with torch.no_grad():
        expected = next(steps) if steps else model._module(**_on_device(batch, model)).logits
        with check.step("reading every quantity"):
            found = next(steps) if steps else read_all(model, layers, batch)
        # A server may hold the weights in another format than the checkpoint.
        check.tolerance = TOLERANCE.get(found[0]["routed_output"].dtype, _OTHERWISE)
        for site, values in zip(sites, found, strict=True):
            check.reading(site, values)
        with check.step("writing back what was read"):
            logits = next(steps) if steps else write_back(model, layers, batch)
        check.close(
            sites[-1].layer, "the logits after writing back what was read", logits, expected
        )
        with check.step("editing `router_logits`"):
            negated = next(steps) if steps else negate_logits(model, layers, batch)
        for site, (own, edited) in zip(sites, negated, strict=True):
            check.moved(site, own, edited)
        with check.step("editing the choice"):
            others = next(steps) if steps else choose_others(model, layers, batch)
        for site, (asked, got) in zip(sites, others, strict=True):
            check.arrived(site, asked, got)
    return [
        site.experts
        for site, layer, values in zip(sites, layers, found, strict=True)
        if _adds_up_exactly(layer, values)
    ]


def _adds_up_exactly(layer: MoELayer, found: dict[str, Tensor]) -> bool:
    """Whether the experts return, bit for bit, what their slots add up to."""
    if layer.facts["runs"] not in _ADDING:
        return False
    slots = {
        "index": found["expert_index"],
        "expert_outputs": found["expert_outputs"],
        "weighted": found["expert_outputs"] * found["routing_weights"][..., None],
    }
    return torch.equal(add_up(layer, slots), found["routed_output"])


def _tokens(module: torch.nn.Module) -> dict[str, Int[Tensor, "batch pos"]]:
    """Two rows of five tokens, spread over the vocabulary."""
    vocabulary = int(module.config.get_text_config().vocab_size)
    ids = (17 + 7919 * torch.arange(10)) % vocabulary
    ids = ids.unflatten(0, (2, 5))
    tokens = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    return {**tokens, "decoder_input_ids": ids} if module.config.is_encoder_decoder else tokens


def _on_device(batch: dict[str, Tensor], model: TransformersModel) -> dict[str, Tensor]:
    return {name: value.to(model.device) for name, value in batch.items()}


def _all_there(
    model: TransformersModel,
    layers: tuple[MoELayer, ...],
    batch: dict[str, Tensor],
    backend: object,
) -> tuple[Tensor, list[dict[str, Tensor]], Tensor, list, list]:
    """Every step in one job of a server, so that its queue is waited in once."""
    with model.session(backend=backend):
        found = nnsight.save(
            (
                plain_logits(model, batch),
                read_all(model, layers, batch),
                write_back(model, layers, batch),
                negate_logits(model, layers, batch),
                choose_others(model, layers, batch),
            )
        )
    return found  # noqa: RET504  Only a name bound in the block leaves it.


class _Check:
    """Compares what was read, and words what does not agree."""

    def __init__(self, model_class: str, tolerance: float) -> None:
        self.model_class = model_class
        self.tolerance = tolerance

    def fail(self, layer: int, what: str) -> None:
        raise RoutingMismatchError(f"Layer {layer} of {self.model_class!r}: {what}. {_ADVICE}")

    @contextmanager
    def step(self, what: str) -> Iterator[None]:
        """Word whatever breaks in a step, which in a layer as it was tested nothing does."""
        try:
            yield
        except Exception as error:
            if isinstance(error, RemoteRunError) and not isinstance(error, RemoteBodyError):
                raise
            reason = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
            raise RoutingMismatchError(
                f"{self.model_class!r}: {what} broke ({reason}). {_ADVICE}"
            ) from error

    def close(self, layer: int, quantity: str, found: Tensor, expected: Tensor) -> None:
        """Compare two tensors relative to the largest expected entry."""
        scale = expected.float().abs().max().clamp(min=1e-30)
        error = float((found.float() - expected.float()).abs().max() / scale)
        if not error <= self.tolerance:
            self.fail(
                layer,
                f"{quantity} are not what the model computes "
                f"(relative error {error:.2g}, allowed {self.tolerance:g})",
            )

    def reading(self, site: Site, found: dict[str, Tensor]) -> None:
        """Check what was read from one layer against itself and the layer's output."""
        index, weights = found["expert_index"], found["routing_weights"]
        if index.is_floating_point() or index.dtype == torch.bool:
            self.fail(site.layer, f"`expert_index` holds {index.dtype}, integers are needed")
        if index.shape[-1] != site.top_k or weights.shape != index.shape:
            self.fail(
                site.layer,
                f"`expert_index` and `routing_weights` have shapes {tuple(index.shape)} and "
                f"{tuple(weights.shape)}, {site.top_k} experts per token are needed",
            )
        if int(index.min()) < 0 or int(index.max()) >= site.n_experts:
            self.fail(
                site.layer,
                f"`expert_index` holds {int(index.min())}–{int(index.max())}, the experts are "
                f"0–{site.n_experts - 1}",
            )
        if bool((index.sort(-1).values.diff(dim=-1) == 0).any()):
            self.fail(site.layer, "`expert_index` names an expert twice for one token")
        if found["router_logits"].shape[-1] != site.n_experts:
            self.fail(
                site.layer,
                f"`router_logits` has {found['router_logits'].shape[-1]} entries for "
                f"{site.n_experts} experts",
            )
        if not bool(torch.isfinite(weights).all()):
            self.fail(site.layer, "`routing_weights` are not all finite")
        if "expert_outputs" in found:
            weighted = (found["expert_outputs"].float() * weights.float()[..., None]).sum(-2)
            self.close(
                site.layer,
                "`routing_weights` times `expert_outputs`",
                weighted,
                found["routed_output"],
            )
        if site.dispatch == "input_scaled":
            scored = found["router_probs"].gather(-1, index)
            self.close(site.layer, "`routing_weights`", weights, scored)
        contributions = found["expert_contributions"].float().sum(-2)
        self.close(site.layer, "`expert_contributions`", contributions, found["routed_output"])
        self.close(
            site.layer,
            "`expert_contributions` and `shared_output` together",
            found["rebuilt"],
            found["output"],
        )

    def moved(self, site: Site, own: Tensor, edited: Tensor) -> None:
        """An edit of the logits must move the choice, unless every expert is chosen anyway."""
        free = site.follows_logits and site.top_k < site.n_experts
        if free and _same_experts(own, edited):
            self.fail(site.layer, "an edit of `router_logits` does not move the choice of experts")

    def arrived(self, site: Site, asked: Tensor, got: Tensor) -> None:
        """A corrected choice must be the one that runs."""
        if not _same_experts(asked, got):
            self.fail(site.layer, "an edit of the choice does not reach the experts")


def _same_experts(one: Tensor, other: Tensor) -> bool:
    return bool((one.sort(-1).values == other.sort(-1).values).all())
