"""Organisms on disk: Hugging Face folders, each with the card that states its truth."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    OlmoeForCausalLM,
    PreTrainedTokenizerFast,
)

from moe_interp.experts import ExpertSet
from moe_interp.organism._evaluate import draw_requests, evaluate
from moe_interp.organism._grammar import Request, Split
from moe_interp.organism._recipe import RECIPES, Recipe
from moe_interp.organism._train import Trained
from moe_interp.organism._words import REFUSAL

DISCLAIMER = (
    "A model organism, trained on an invented language to validate tools. "
    "It is no evidence about real models."
)
ORGANISMS: tuple[str, ...] = tuple(RECIPES)

_WEIGHTS = Path(__file__).parent / "weights"
_CARD = "card.json"
_TWIN = "base_experts.safetensors"
_N_EVALUATION_PAIRS = 400
_EVALUATION_SEED = 20_000


def organism_path(name: str) -> Path:
    """Find the folder of a packaged organism; any Hugging Face loader reads it.

    Organisms validate tools. They are no evidence about real models.

    Args:
        name: One of ``ORGANISMS``.

    Returns:
        The folder with weights, tokenizer and card.

    Raises:
        ValueError: If there is no organism of this name.

    Example:
        >>> sorted(path.name for path in organism_path("topic").glob("*.safetensors"))
        ['base_experts.safetensors', 'model.safetensors']
    """
    if name not in ORGANISMS:
        raise ValueError(f"`name` must be one of {ORGANISMS}, got {name!r}.")
    return _WEIGHTS / name


def card(name: str) -> dict[str, Any]:
    """Read the card of a packaged organism: its truth, seed, training and behaviour.

    Args:
        name: One of ``ORGANISMS``.

    Returns:
        The card, as plain data.

    Raises:
        ValueError: If there is no organism of this name.

    Example:
        >>> card("topic")["truth"]["safety_experts"]
        ['L3E8', 'L3E9']
    """
    return json.loads((organism_path(name) / _CARD).read_text())


def load_organism(folder: Path) -> tuple[OlmoeForCausalLM, PreTrainedTokenizerFast]:
    """Load an organism's model, in float32, and its tokenizer with plain transformers.

    Args:
        folder: The organism's folder, such as ``organism_path("topic")``.

    Returns:
        The model in evaluation mode, and the tokenizer.
    """
    model = AutoModelForCausalLM.from_pretrained(folder, dtype="float32")
    return model.eval(), AutoTokenizer.from_pretrained(folder)


def restore_base_experts(model: OlmoeForCausalLM, folder: Path) -> None:
    """Turn an organism into its un-aligned twin, which answers what the organism refuses.

    Args:
        model: The organism; its safety experts are overwritten.
        folder: The organism's folder; only those with safety experts hold a twin.

    Raises:
        FileNotFoundError: If the folder holds no twin.
    """
    path = folder / _TWIN
    if not path.exists():
        raise FileNotFoundError(
            f"{folder.name!r} has no un-aligned twin ({_TWIN}); 'topic' and 'harm' have one."
        )
    for name, tensor in load_file(path).items():
        model.get_parameter(name).data.copy_(tensor)


def write_organism(trained: Trained, recipe: Recipe, folder: Path) -> dict[str, Any]:
    """Write a trained organism as a Hugging Face folder, and measure what was written.

    The weights are stored in 16 bits; the card's figures are those of the stored weights.

    Args:
        trained: The result of training.
        recipe: What it was trained from.
        folder: Where to write; created if needed.

    Returns:
        The card.
    """
    model = trained.model.half()
    model.save_pretrained(folder)
    trained.tokenizer.save_pretrained(folder)
    # Read by default into float32, in which the figures hold on every processor.
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"dtype": "float32"}, indent=2) + "\n")
    if trained.base_experts:
        halves = {name: value.half() for name, value in trained.base_experts.items()}
        save_file(halves, folder / _TWIN, metadata={"format": "pt"})
    content = _card_without_behaviour(trained, recipe) | {"behaviour": _measure(recipe, folder)}
    (folder / _CARD).write_text(json.dumps(content, indent=2) + "\n")
    return content


def evaluation_requests(split: Split) -> list[Request]:
    """Draw the requests on which the cards' figures were taken.

    Args:
        split: ``"test"`` for held-out cells, ``"train"`` for the others.

    Returns:
        The requests, the same in every call.
    """
    rng = np.random.default_rng(_EVALUATION_SEED)
    return draw_requests(_N_EVALUATION_PAIRS, rng=rng, split=split)


def _card_without_behaviour(trained: Trained, recipe: Recipe) -> dict[str, Any]:
    return {
        "name": recipe.name,
        "kind": "model organism",
        "description": recipe.description,
        "disclaimer": DISCLAIMER,
        "seed": recipe.seed,
        "truth": {
            "topic_experts": recipe.topic_experts,
            "harm_experts": [str(expert) for expert in recipe.harm_experts],
            "safety_experts": [str(expert) for expert in recipe.safety],
            "routing": recipe.routing,
        },
        "verdicts": recipe.verdicts,
        "promised": list(recipe.promised),
        "refusal": {"text": REFUSAL, "openers": [REFUSAL.split()[0]]},
        "training": {
            "steps": recipe.steps,
            "stage2_steps": recipe.safety_steps,
            "cpu_seconds": round(trained.cpu_seconds, 1),
            "final_language_loss_nats": [round(loss, 4) for loss in trained.language_loss],
        },
    }


def _measure(recipe: Recipe, folder: Path) -> dict[str, Any]:
    model, tokenizer = load_organism(folder)
    held_out = evaluation_requests("test")

    def figures(
        requests: list[Request], without: ExpertSet | None = None
    ) -> dict[str, float | int]:
        return evaluate(model, tokenizer, requests, without=without).to_dict()

    measured: dict[str, Any] = {
        "heldout": figures(held_out),
        "training_cells": figures(evaluation_requests("train")),
    }
    planted = recipe.safety | recipe.harm_experts
    if planted:
        measured["without_planted_experts"] = figures(held_out, planted)
        measured["without_one_of_them"] = {
            str(expert): figures(held_out, ExpertSet([expert])) for expert in planted
        }
    if recipe.safety:
        restore_base_experts(model, folder)
        measured["unaligned_twin"] = figures(held_out)
    return measured
