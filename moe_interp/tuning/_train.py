"""tune_experts: train the experts that were chosen, and nothing else.

References:
    Zhang et al. (2026), "RASET: Router-Agnostic Safety-Critical Expert Tuning", arXiv 2605.29708:
    tuning of a few experts with the router frozen. Hu et al. (2022), "LoRA", for changes of low
    rank. Loshchilov and Hutter (2019), "Decoupled Weight Decay Regularization", for AdamW.
"""

import hashlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor, nn

from moe_interp.errors import TuningError
from moe_interp.experts import Expert, ExpertSet
from moe_interp.interventions import as_expert_set
from moe_interp.models import MoEModel
from moe_interp.prompts import Encoded, PromptSet
from moe_interp.tuning._delta import ExpertDelta, digest
from moe_interp.tuning._examples import Examples, examples_of, inputs_of, response_loss
from moe_interp.tuning._leaves import Leaves
from moe_interp.tuning._progress import Progress, open_progress
from moe_interp.tuning._reroute import REROUTED, Reroute
from moe_interp.tuning._result import TuneResult
from moe_interp.tuning._routing_penalty import (
    last_prompt_tokens,
    logits_and_routing,
    routing_divergence,
)
from moe_interp.tuning._settings import TuneSettings
from moe_interp.tuning._slices import Slice, expert_slices, router_parameters
from moe_interp.tuning._untouched import check_untouched, untouched_digests


def tune_experts(
    model: MoEModel,
    experts: ExpertSet | Iterable[Expert | tuple[int, int] | str] | str,
    data: PromptSet,
    *,
    seed: int,
    routers: bool = False,
    everything: bool = False,
    validation: PromptSet | None = None,
    epochs: int = 3,
    learning_rate: float = 1e-4,
    warmup: float = 0.1,
    batch_size: int = 8,
    weight_decay: float = 0.0,
    max_grad_norm: float = 1.0,
    rank: int | None = None,
    routing_kl: float = 0.0,
    routing_temperature: float = 1.0,
    routing_tokens: str = "all",
    reroute: Reroute | None = None,
    patience: int | None = None,
    gradient_checkpointing: bool = False,
    store: str | Path | None = None,
    resume: bool = True,
    progress: bool = False,
) -> TuneResult:
    r"""Train chosen experts on responses to prompts; the model given is left as it was.

    The loss is the mean negative log-likelihood of the responses' tokens, and of the token that
    ends each. With `routing_kl` :math:`\lambda`, it is joined by :math:`\lambda` times the mean
    over layers and tokens of KL(routing of the base model || routing now), the routing being a
    softmax over all experts of the router's logits; `reroute` puts another routing in the place of
    the base model's, for prompts of choice. The model is in evaluation mode: no dropout,
    no noise of routers. What is trained is kept in single precision at least, whatever the
    model's own.

    Afterwards every parameter and buffer that was not chosen is compared, bit for bit, with what it
    was.

    Args:
        model: The model.
        experts: The experts to train, or ``"all"``; may be empty if `routers` or `everything` are.
        data: Prompts with responses.
        seed: Seed of the order of examples and of low-rank factors.
        routers: Whether the routers of all MoE layers are trained as well.
        everything: Whether all other parameters are trained as well, for comparison.
        validation: Prompts with responses whose loss says when to stop; the best epoch is kept.
        epochs: Times that all examples are seen, at most.
        learning_rate: Of AdamW, after the warm-up.
        warmup: Fraction of all steps over which the rate rises; it falls to 0 afterwards.
        batch_size: Examples a step.
        weight_decay: Of AdamW, on what is trained alone.
        max_grad_norm: Gradients longer than this are shortened to it.
        rank: Rank of the change of each matrix; None trains all values.
        routing_kl: Weight of the penalty on changed routing.
        routing_temperature: What routers' logits are divided by in it; SafeMoE takes 0.1.
        routing_tokens: ``"all"``, or the ``"last"`` of each prompt as in SafeMoE.
        reroute: The routing that some prompts are pulled towards; needs `routing_kl`.
        patience: Epochs without a better validation loss after which training stops.
        gradient_checkpointing: Whether layers run again in the backward, to save memory.
        store: A folder that keeps the state after each epoch.
        resume: Whether to go on from what `store` holds; else it must be empty.
        progress: Whether to show a progress bar on stderr, if that is a terminal.

    Returns:
        The tuned values as a delta, the losses, and how it went.

    Raises:
        ValueError: If an expert does not exist, nothing is chosen, or a setting is out of range.
        UnsupportedQuantityError: If an expert has no parameters of its own.
        PromptError: If a prompt has no response, or is too long.
        TuningError: If a loss is not a number, or something changed that was not chosen.
        ResultExistsError: If `store` holds something else, or a run with other inputs.

    Example:
        >>> import moe_interp as mi
        >>> model = mi.load_model("organism:topic")
        >>> asked = "how do i open the lock to start an attack ?"
        >>> data = mi.PromptSet([mi.Prompt(asked, response="sure , first check the lock .")])
        >>> tuned = tune_experts(
        ...     model, "L3E8,L3E9", data, seed=0, epochs=12, learning_rate=0.02, batch_size=1
        ... )
        >>> with tuned.applied(model):
        ...     mi.run(model, [asked]).next_tokens
        ('sure',)
        >>> mi.run(model, [asked]).next_tokens
        ('sorry',)
    """
    model.require_weights("Tuning")
    settings = TuneSettings(
        seed=seed,
        epochs=epochs,
        learning_rate=learning_rate,
        warmup=warmup,
        batch_size=batch_size,
        weight_decay=weight_decay,
        max_grad_norm=max_grad_norm,
        rank=rank,
        routing_kl=routing_kl,
        routing_temperature=routing_temperature,
        routing_tokens=routing_tokens,
        patience=patience,
        gradient_checkpointing=gradient_checkpointing,
    )
    if patience is not None and validation is None:
        raise ValueError("`patience` needs `validation`: prompts with responses to stop by.")
    if reroute is not None and not routing_kl:
        raise ValueError("`reroute` needs `routing_kl` above 0, the weight of the pull.")
    slices, whole = _chosen(model, experts, routers=routers, everything=everything)
    examples = examples_of(model, data)
    if reroute is not None:
        reroute.check(model, data)
        examples = reroute.marked(examples, data)
    checks = None if validation is None else examples_of(model, validation)
    root = model.nnsight._module
    before = untouched_digests(root, slices, whole)
    generator = torch.Generator().manual_seed(settings.seed)
    leaves = Leaves(root, slices, whole, rank=settings.rank, generator=generator)
    inputs = {
        "model": f"{model.id} ({model.architecture.model_class}, {model.architecture.dtype})",
        "base": _digest_all(leaves),
        "data": data.digest,
        "validation": None if validation is None else validation.digest,
        "settings": settings.to_dict(),
        "reroute": None if reroute is None else reroute.to_dict(),
    }
    kept = open_progress(store, inputs, resume=resume)
    with _in_training_shape(root, settings), leaves.listening():
        try:
            run = _fit(model, leaves, examples, checks, settings, kept, reroute, show=progress)
            leaves.restore(run.best)
            leaves.write()
            check_untouched(root, before, untouched_digests(root, slices, whole))
        finally:
            leaves.write_base()
    delta = ExpertDelta(
        model_class=model.architecture.model_class,
        values=leaves.values(),
        slices={leaf.key: leaf.part for leaf in leaves.leaves},
        digests={leaf.key: digest(leaf.base) for leaf in leaves.leaves},
        settings={
            **settings.to_dict(),
            "reroute": inputs["reroute"],
            "dtype": model.architecture.dtype,
            "data": data.digest,
        },
    )
    return TuneResult(delta, tuple(run.losses), run.best_epoch, run.stopped_early)


def _chosen(
    model: MoEModel,
    experts: ExpertSet | Iterable[Expert | tuple[int, int] | str] | str,
    *,
    routers: bool,
    everything: bool,
) -> tuple[list[Slice], list[str]]:
    """Parts of single experts, and names of parameters that are trained as a whole."""
    if everything:
        return [], [name for name, _ in model.nnsight._module.named_parameters()]
    if isinstance(experts, str) and experts == "all":
        every = [
            Expert(layer, n) for layer, site in model.moe.items() for n in range(site.n_experts)
        ]
        slices = _with_parameters(model, every)
    else:
        slices = expert_slices(model, as_expert_set(experts))
    whole = router_parameters(model, model.moe) if routers else []
    if not slices and not whole:
        raise ValueError(
            "Nothing is chosen to be trained. Give experts, or routers=True, or everything=True."
        )
    return slices, whole


def _with_parameters(model: MoEModel, experts: Iterable[Expert]) -> list[Slice]:
    """The slices of those experts that have parameters; some only pass tokens on."""
    found: list[Slice] = []
    for expert in experts:
        try:
            found += expert_slices(model, ExpertSet([expert]))
        except ValueError:
            continue
    return found


def _digest_all(leaves: Leaves) -> str:
    """One fingerprint of all values before training."""
    return hashlib.sha256("".join(digest(leaf.base) for leaf in leaves.leaves).encode()).hexdigest()


@contextmanager
def _in_training_shape(root: nn.Module, settings: TuneSettings) -> Iterator[None]:
    """Evaluation mode throughout; layers that can be run again say that they train."""
    modes = {module: module.training for module in root.modules()}
    root.eval()
    if settings.gradient_checkpointing:
        root.activation_checkpointing_enable({"use_reentrant": False})
        for module in root.modules():
            # Only the layer itself: its parts, such as routers with noise, stay as they are.
            if getattr(module, "gradient_checkpointing", False):
                module.training = True
    try:
        yield
    finally:
        if settings.gradient_checkpointing:
            root.activation_checkpointing_disable()
        for module, mode in modes.items():
            module.training = mode


def _fit(
    model: MoEModel,
    leaves: Leaves,
    examples: Examples,
    checks: Examples | None,
    settings: TuneSettings,
    run: Progress,
    reroute: Reroute | None,
    *,
    show: bool,
) -> Progress:
    """Train epoch by epoch; the state after each is kept, so that it can be gone on from."""
    trained = leaves.trained()
    optimiser = torch.optim.AdamW(
        trained.values(), lr=settings.learning_rate, weight_decay=settings.weight_decay
    )
    run.restore(trained, optimiser)
    per_epoch = -(-len(examples) // settings.batch_size)
    console = Console(stderr=True)
    epochs = range(run.epoch, settings.epochs)
    for epoch in track(
        epochs,
        description="tuning",
        console=console,
        transient=True,
        disable=not show or not console.is_terminal,
    ):
        if run.stopped_early:
            break
        rng = np.random.default_rng([settings.seed, epoch])
        for turn, batch in enumerate(examples.batches(settings.batch_size, rng)):
            step = epoch * per_epoch + turn
            for group in optimiser.param_groups:
                group["lr"] = settings.rate(step, settings.epochs * per_epoch)
            run.losses.append(
                _step(model, leaves, optimiser, batch, settings, epoch, step, reroute)
            )
        validated = None if checks is None else _validate(model, leaves, checks, settings)
        run.finish_epoch(epoch, validated, trained, optimiser, settings.patience)
    return run


def _step(
    model: MoEModel,
    leaves: Leaves,
    optimiser: torch.optim.Optimizer,
    batch: Encoded,
    settings: TuneSettings,
    epoch: int,
    step: int,
    reroute: Reroute | None,
) -> dict[str, float | int | None]:
    """One batch: forward, backward, a step of what is trained."""
    inputs, root = inputs_of(model, batch), model.nnsight._module
    before, heat, counted = None, settings.routing_temperature, batch.attention_mask
    if settings.routing_tokens == "last":
        counted = last_prompt_tokens(batch.spans["response"])
    if settings.routing_kl:
        leaves.write_base()
        with torch.no_grad():
            _, before = logits_and_routing(model, inputs, temperature=heat)
        if reroute is not None:
            before = reroute.target(before, batch.spans[REROUTED])
    leaves.write()
    optimiser.zero_grad()
    divergence: Tensor | None = None
    with torch.enable_grad():
        if before is None:
            logits = root(**inputs).logits
        else:
            logits, now = logits_and_routing(model, inputs, temperature=heat)
            divergence = routing_divergence(before, now, counted)
        loss = response_loss(logits, batch.input_ids, batch.spans["response"])
        total = loss if divergence is None else loss + settings.routing_kl * divergence
    if not torch.isfinite(total):
        raise TuningError(
            f"The loss of step {step} is {total.item()}. Lower `learning_rate` "
            f"({settings.learning_rate}) or check the model's weights and dtype; the model is left "
            "as it was."
        )
    total.backward()
    torch.nn.utils.clip_grad_norm_(leaves.trained().values(), settings.max_grad_norm)
    optimiser.step()
    return {
        "step": step,
        "epoch": epoch,
        "loss": loss.item(),
        "routing_kl": None if divergence is None else divergence.item(),
        "validation_loss": None,
    }


@torch.no_grad()
def _validate(model: MoEModel, leaves: Leaves, checks: Examples, settings: TuneSettings) -> float:
    """Mean loss of the validation's tokens, each counting the same."""
    leaves.write()
    root, total, n_tokens = model.nnsight._module, 0.0, 0
    for batch in checks.batches(settings.batch_size):
        logits = root(**inputs_of(model, batch)).logits
        n = int(batch.spans["response"][:, 1:].sum())
        total += response_loss(logits, batch.input_ids, batch.spans["response"]).item() * n
        n_tokens += n
    return total / n_tokens
