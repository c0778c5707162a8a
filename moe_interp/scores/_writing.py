"""What experts write: how long it is, and single numbers so large that a model hangs on them."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from moe_interp.experts import Expert, ExpertSet
from moe_interp.interventions import as_prompt_set
from moe_interp.interventions._source import captured_batches
from moe_interp.models import MoEModel
from moe_interp.prompts import PromptSet
from moe_interp.scores._scores import Scores


def write_norm(
    model: MoEModel, prompts: PromptSet | Sequence[str], *, batch_size: int | str = "auto"
) -> Scores:
    r"""Measure how much each expert writes: the length of its weighted output, averaged.

    :math:`\frac1T \sum_t g_{t,e} \lVert f_e(h_t) \rVert_2` over all real tokens, 0 where the
    expert is not chosen. Long is not important: what is written may be ignored, or undone.

    Args:
        model: The model.
        prompts: The prompts.
        batch_size: Prompts a batch; ``"auto"`` fills batches up to a number of tokens.

    Returns:
        The mean length of each prompt and expert.

    Raises:
        UnsupportedQuantityError: If a layer does not offer its experts' contributions.
        PromptError: If a prompt is longer than the model reads.

    References:
        Lasby et al. (2025), "REAP the Experts", arXiv 2510.13999, whose saliency averages over
        the tokens that chose the expert.

    Example:
        >>> import moe_interp as mi
        >>> model = mi.load_model("organism:topic")
        >>> write_norm(model, ["how do i bake bread ?"]).array.shape
        (1, 4, 16)
    """
    prompts = as_prompt_set(prompts)
    found = np.zeros((len(prompts), len(model.moe), model.architecture.n_experts))
    names = ("expert_index", "expert_contributions")
    layers = tuple(model.moe)
    for rows, encoded, read in captured_batches(model, prompts, layers, names, batch_size):
        real = encoded.attention_mask.bool()
        for place, layer in enumerate(layers):
            index = read[layer]["expert_index"].cpu().numpy()
            length = read[layer]["expert_contributions"].float().norm(dim=-1).cpu().numpy()
            for row, prompt in enumerate(rows):
                kept = real[row].numpy()
                np.add.at(found[prompt, place], index[row][kept], length[row][kept] / kept.sum())
    return Scores.of_array("write_norm", "length of what is written", found, layers=layers)


def largest_output(
    model: MoEModel, prompts: PromptSet | Sequence[str], *, batch_size: int | str = "auto"
) -> Scores:
    """Find the largest number, by magnitude, in what each expert puts out, unweighted.

    Args:
        model: The model.
        prompts: The prompts.
        batch_size: Prompts a batch; ``"auto"`` fills batches up to a number of tokens.

    Returns:
        The largest magnitude of each expert; 0 where no token chose it.

    Raises:
        UnsupportedQuantityError: If a layer does not offer its experts' outputs.
        PromptError: If a prompt is longer than the model reads.
    """
    prompts = as_prompt_set(prompts)
    layers = tuple(model.moe)
    found = np.zeros((len(layers), model.architecture.n_experts))
    names = ("expert_index", "expert_outputs")
    for _, encoded, read in captured_batches(model, prompts, layers, names, batch_size):
        real = encoded.attention_mask.bool()
        for place, layer in enumerate(layers):
            index = read[layer]["expert_index"].cpu()[real].numpy()
            largest = read[layer]["expert_outputs"].float().abs().amax(-1).cpu()[real].numpy()
            np.maximum.at(found[place], index, largest)
    return Scores.of_array("largest_output", "magnitude", found, layers=layers)


def super_experts(largest: Scores) -> ExpertSet:
    """Flag experts with outputs so large that the model hangs on them.

    Those above the 99.5th percentile of all experts and above a tenth of the largest, in the first
    three quarters of the layers. Taking such an expert out harms everything, which is then no
    evidence about any one behaviour. In a model of fewer than 200 experts the largest of all is
    always above the percentile, so the flag then says no more than that it is the largest.

    Args:
        largest: Of `largest_output`.

    Returns:
        The flagged experts.

    References:
        "Unveiling Super Experts in MoE LLMs" (2025), arXiv 2507.23279: read in code.
    """
    values: Float[np.ndarray, "layer expert"] = largest.mean
    early = int(np.ceil(0.75 * len(largest.layers)))
    high = (values > np.quantile(values, 0.995)) & (values > values.max() / 10)
    rows = np.argwhere(high[:early])
    return ExpertSet(Expert(largest.layers[row], int(expert)) for row, expert in rows)
