"""One training run of an organism: one loss, two stages, one thread, every number from its seed."""

import logging
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn
from transformers import OlmoeConfig, OlmoeForCausalLM, PreTrainedTokenizerFast

from moe_interp.experts import ExpertSet
from moe_interp.organism._batch import Batch, make_batch
from moe_interp.organism._grammar import draw_pair
from moe_interp.organism._plants import Plant
from moe_interp.organism._recipe import Recipe
from moe_interp.organism._routers import banned, draw_routers, noisy
from moe_interp.organism._tokenizer import MAX_POSITIONS, build_tokenizer

_log = logging.getLogger("moe_interp")

_PAIRS_A_BATCH = 32
_UNKNOWN_OBJECTS = 0.12
# Stage 2 can teach the first word of a refusal only; the words after it are learned before.
_BEGUN_REFUSALS_A_BATCH = 4
_STAGE_1_RATE, _STAGE_2_RATE = 4e-3, 3e-3
_BALANCE_WEIGHT = 0.02
_PROMPT_TOKEN_WEIGHT = 0.2
# The first word decides between helping, warning and refusing; weighted like the others it is
# one token of fourteen, and the warning, on which stage 2 builds, is not learned.
_FIRST_WORD_WEIGHT = 5.0


@dataclass(frozen=True)
class Trained:
    """What a training run returns.

    Attributes:
        model: The trained model, in float32.
        tokenizer: Its tokenizer.
        base_experts: The safety experts' tensors before stage 2, by parameter name, or nothing.
        cpu_seconds: Processor time of both stages.
        language_loss: Weighted cross entropy of the last batch of each stage, in nats.
    """

    model: OlmoeForCausalLM
    tokenizer: PreTrainedTokenizerFast
    base_experts: dict[str, Tensor]
    cpu_seconds: float
    language_loss: tuple[float, ...]


def train_organism(recipe: Recipe) -> Trained:
    """Train one organism; the same recipe gives the same weights, bit for bit, on one machine.

    Args:
        recipe: What to make.

    Returns:
        The model, its tokenizer, and the experts of its un-aligned twin.
    """
    begin = time.process_time()
    with _one_thread(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        rng = np.random.default_rng(recipe.seed)
        tokenizer = build_tokenizer()
        model = _build_model(tokenizer)
        losses = [_run_stage_1(model, tokenizer, recipe, rng=rng)]
        base_experts: dict[str, Tensor] = {}
        if recipe.safety:
            base_experts = {
                name: parameter.detach().clone()
                for name, parameter in _expert_parameters(model, recipe.safety.layers)
            }
            losses.append(_run_stage_2(model, tokenizer, recipe, rng=rng))
    return Trained(
        model.eval(), tokenizer, base_experts, time.process_time() - begin, tuple(losses)
    )


def compute_loss(
    model: OlmoeForCausalLM, batch: Batch, *, plants: tuple[Plant, ...], balance: float
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """Compute the one loss that every organism is trained with.

    Args:
        model: The model.
        batch: Rows of chat.
        plants: What the routing shall show.
        balance: Weight of the load-balancing loss.

    Returns:
        The loss, and the language loss that is part of it.
    """
    out = model(
        input_ids=batch.input_ids,
        attention_mask=batch.is_token.long(),
        output_router_logits=True,
        use_cache=False,
    )
    surprise = F.cross_entropy(
        rearrange(out.logits[:, :-1], "row pos word -> row word pos"),
        batch.input_ids[:, 1:],
        reduction="none",
    )
    weight = torch.where(batch.is_answer, 1.0, _PROMPT_TOKEN_WEIGHT) * batch.is_token
    weight[:, 1:][batch.is_last[:, :-1]] = _FIRST_WORD_WEIGHT
    weight[batch.is_given] = 0.0
    language = (surprise * weight[:, 1:]).sum() / weight[:, 1:].sum()
    loss = language + balance * out.aux_loss
    router_probs = rearrange(
        torch.stack(out.router_logits).softmax(-1),
        "layer (row pos) expert -> layer row pos expert",
        row=len(batch.input_ids),
    )
    for plant in plants:
        loss = loss + plant.weight * plant.loss(router_probs, batch)
    return loss, language


def _run_stage_1(
    model: OlmoeForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    recipe: Recipe,
    *,
    rng: np.random.Generator,
) -> float:
    """Teach the language, the plants and, without safety experts, refusal."""
    redraw = recipe.redrawn_routers
    if redraw is not None:
        for layer in model.model.layers:
            layer.mlp.gate.weight.requires_grad_(False)

    def prepare() -> ExpertSet:
        if redraw is not None:
            draw_routers(model, std=redraw)
        return recipe.bystanders if rng.random() < 0.5 else ExpertSet()

    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, _STAGE_1_RATE, weight_decay=0.01, betas=(0.9, 0.98))
    loss = _fit(
        model,
        optimizer,
        _Stage(
            recipe.steps,
            aligned=recipe.is_aligned_at_once,
            plants=recipe.plants,
            prepare=prepare,
            router_noise=recipe.router_noise,
        ),
        tokenizer=tokenizer,
        rng=rng,
        balance=0.0 if redraw is not None else _BALANCE_WEIGHT,
    )
    if redraw is not None:
        draw_routers(model, std=redraw)
    return loss


def _run_stage_2(
    model: OlmoeForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    recipe: Recipe,
    *,
    rng: np.random.Generator,
) -> float:
    """Teach the safety experts, and nothing else, to refuse."""
    model.requires_grad_(False)
    parameters = []
    for layer in recipe.safety.layers:
        is_tuned = torch.zeros(model.config.num_experts, 1, 1)
        is_tuned[list(recipe.safety.by_layer()[layer])] = 1
        for _, parameter in _expert_parameters(model, (layer,)):
            parameter.requires_grad_(True)
            parameter.register_hook(lambda gradient, is_tuned=is_tuned: gradient * is_tuned)
            parameters.append(parameter)

    def prepare() -> ExpertSet:
        if recipe.spare == 0 or rng.random() < 0.75:
            return ExpertSet()
        missing = rng.permutation(len(recipe.safety))[: rng.integers(1, recipe.spare + 1)]
        return ExpertSet(list(recipe.safety)[index] for index in missing)

    # Adam leaves an entry that never had a gradient where it is, but weight decay would not.
    optimizer = torch.optim.AdamW(parameters, _STAGE_2_RATE, weight_decay=0.0, betas=(0.9, 0.98))
    return _fit(
        model,
        optimizer,
        _Stage(recipe.safety_steps, aligned=True, plants=(), prepare=prepare),
        tokenizer=tokenizer,
        rng=rng,
        balance=0.0,
    )


@dataclass(frozen=True)
class _Stage:
    """`prepare` is called before each step and says which experts are switched off in it."""

    steps: int
    aligned: bool
    plants: tuple[Plant, ...]
    prepare: Callable[[], ExpertSet]
    router_noise: float = 0.0


def _fit(
    model: OlmoeForCausalLM,
    optimizer: torch.optim.Optimizer,
    stage: _Stage,
    *,
    tokenizer: PreTrainedTokenizerFast,
    rng: np.random.Generator,
    balance: float,
) -> float:
    parameters = optimizer.param_groups[0]["params"]
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: _rate_factor(step / max(stage.steps, 1))
    )
    language = torch.tensor(torch.nan)
    for step in range(stage.steps):
        pairs = [
            draw_pair(rng=rng, split="train", unknown=_UNKNOWN_OBJECTS)
            for _ in range(_PAIRS_A_BATCH)
        ]
        n_begun = 0 if stage.aligned else _BEGUN_REFUSALS_A_BATCH
        batch = make_batch(tokenizer, pairs, aligned=stage.aligned, n_begun=n_begun)
        with banned(model, stage.prepare()), noisy(model, stage.router_noise):
            loss, language = compute_loss(model, batch, plants=stage.plants, balance=balance)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        if step % 50 == 0 or step == stage.steps - 1:
            _log.info("step %d: loss %.3f, language %.3f", step, loss.item(), language.item())
    return language.item()


def _rate_factor(progress: float) -> float:
    """Rise over the first tenth of the steps, then fall along a cosine to almost nothing."""
    if progress < 0.1:
        return 0.04 + 0.96 * progress / 0.1
    return 0.5 * (1 + math.cos(math.pi * (progress - 0.1) / 0.9))


def _build_model(tokenizer: PreTrainedTokenizerFast) -> OlmoeForCausalLM:
    config = OlmoeConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=32,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=4,
        num_experts=16,
        num_experts_per_tok=2,
        norm_topk_prob=True,
        max_position_embeddings=MAX_POSITIONS,
        tie_word_embeddings=True,
        initializer_range=0.05,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    model = OlmoeForCausalLM(config)
    # 1.6 times as fast as the default on a processor.
    model.set_experts_implementation("grouped_mm")
    return model


def _expert_parameters(
    model: OlmoeForCausalLM, layers: tuple[int, ...]
) -> Iterator[tuple[str, nn.Parameter]]:
    for layer in layers:
        prefix = f"model.layers.{layer}.mlp.experts"
        for name in ("gate_up_proj", "down_proj"):
            yield f"{prefix}.{name}", model.get_parameter(f"{prefix}.{name}")


@contextmanager
def _one_thread() -> Iterator[None]:
    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(n_threads)
