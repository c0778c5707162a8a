"""What the arguments of interventions may name: experts and layers that a model has."""

from collections.abc import Iterable, Sequence

from moe_interp.errors import UnsupportedQuantityError
from moe_interp.experts import Expert, ExpertSet
from moe_interp.models import MoEModel


def as_expert_set(
    experts: ExpertSet | Iterable[Expert | tuple[int, int] | str] | str,
) -> ExpertSet:
    """Read experts in any of their forms; a text is a list such as ``"L3E8,L3E9"``."""
    if isinstance(experts, ExpertSet):
        return experts
    return ExpertSet.parse(experts) if isinstance(experts, str) else ExpertSet(experts)


def check_experts(model: MoEModel, experts: ExpertSet) -> None:
    """Refuse experts that the model does not have, and say which it has.

    Raises:
        ValueError: If a layer does not exist or is dense, or an expert does not exist.
    """
    by_layer = experts.by_layer()
    check_layers(model, by_layer)
    for layer, chosen in by_layer.items():
        wrong = [expert for expert in chosen if expert >= model.moe[layer].n_experts]
        if wrong:
            raise ValueError(
                f"Layer {layer} of {model.architecture.model_class!r} has experts "
                f"0–{model.moe[layer].n_experts - 1}, got {', '.join(map(str, wrong))}."
            )


def check_layers(model: MoEModel, layers: Iterable[int]) -> None:
    """Refuse layers that are no MoE layers of the model, and say which are.

    Raises:
        ValueError: If a layer does not exist or is dense.
    """
    facts = model.architecture
    for layer in layers:
        if not 0 <= layer < facts.n_layers:
            raise ValueError(
                f"There is no layer {layer} in {facts.model_class!r}, whose MoE layers are "
                f"{_ranges(list(model.moe))}."
            )
        if layer not in model.moe:
            raise ValueError(
                f"Layer {layer} of {facts.model_class!r} is dense, it has no experts. "
                f"MoE layers: {_ranges(list(model.moe))}."
            )


def check_offered(model: MoEModel, layers: Iterable[int], quantity: str, instead: str = "") -> None:
    """Refuse layers that do not offer a quantity, and say why.

    Args:
        model: The model that will run.
        layers: MoE layers of it.
        quantity: What the intervention needs.
        instead: What to do, as a sentence.

    Raises:
        UnsupportedQuantityError: If a layer does not offer it.
    """
    for layer in layers:
        if quantity in model.moe[layer].refused:
            reason = model.moe[layer].refused[quantity]
            raise UnsupportedQuantityError(
                f"Layer {layer} does not offer `{quantity}`: {reason} {instead}".rstrip()
            )


def check_decoder(model: MoEModel) -> None:
    """Refuse an encoder-decoder: next-token logits after a prompt are not what it computes.

    Raises:
        ValueError: If the model is one.
    """
    if getattr(model.nnsight._module.config, "is_encoder_decoder", False):
        raise ValueError(
            f"{model.architecture.model_class!r} is an encoder-decoder, which reads a prompt and "
            "writes in another sequence; prompts are run, generated from and captured with "
            "decoders only. Trace it yourself: edited(model, interventions).trace(inputs)."
        )


def _ranges(numbers: Sequence[int]) -> str:
    """Write sorted numbers as runs, for example ``1–3, 5``."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}–{run[-1]}" for run in runs)
