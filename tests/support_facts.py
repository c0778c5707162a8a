"""Measure what is offered on the models of `zoo`: the rows of the table of families.

Everything is found out by doing it: the model is loaded with its self-check, each quantity is read
and written back, and sums are compared. Only `NOTES` is written by hand.
"""

import math
import re

import nnsight
import torch
import zoo
import zoo_runs
from tiny_models import TEXTS, build_tokenizer
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from moe_interp.errors import MoEInterpError, UnsupportedArchitectureError
from moe_interp.models import MoELayer, load_model
from moe_interp.models._load import _loader
from moe_interp.models._registry import SEVERAL_MODELS
from moe_interp.models._support import OFFERED
from moe_interp.models._traced_read import QUANTITIES

# Model types that hold a family of the zoo and more.
BESIDE = tuple(SEVERAL_MODELS)
SENTENCES = "; or "
OWN_LOOP = "its own loop"
READ_ONLY = {
    "input": "read only; edit an earlier module, or `router_logits` to re-route",
    "router_input": "read only; assign to `router_logits`, which the router makes of it",
    "router_probs": "read only; assign to `router_logits`, which they are made of",
    "shared_output": "read only; it is part of `output`, which can be assigned",
}
# Class of a router or block -> what its families do otherwise.
NOTES = {
    "Cohere2MoeTopKRouter": "score function, shared expert and its averaging are set in the "
    "configuration",
    "DbrxRouter": "the choice is made in the block; weights are divided by their norm, of the "
    "configuration's order",
    "DeepseekV2TopkRouter": "`topk_method` decides whether groups limit the choice",
    "DeepseekV4HashRouter": "the first layers choose by a table of token ids: there an edit of the "
    "logits changes weights, not the choice; `expert_index` can be assigned",
    "Gemma4TextDecoderLayer": "the block is the decoder layer: `input` is what the router sees, "
    "`shared_output` the dense MLP's branch after its norm, `output` what enters "
    "`post_feedforward_layernorm`; weights carry the router's `per_expert_scale`",
    "GraniteMoeHybridMoE": "the shared MLP stands beside the block: `output` is without it",
    "GraniteMoeSWAMoE": "the shared MLP stands beside the block: `output` is without it",
    "GraniteMoeSharedMoE": "the shared MLP stands beside the block: `output` is without it",
    "InklingTopkRouter": "weights are normalised over chosen and shared experts together; "
    "`router_logits` holds those of the routed experts",
    "JetMoeMoE": "the experts of its attention layers are not offered; with one expert per token, "
    "one invoke per trace",
    "Llama4TextMoe": "every expert runs on every token, scaled by its score, 0 if not chosen",
    "LongcatFlashTopkRouter": "identity experts, which return their token, have the last ids",
    "PhimoeTopKRouter": "a weight is a softmax over the experts within twice the jitter of the "
    "best one left: near 1 unless two are close, and then without a gradient",
    "SwitchTransformersSparseMLP": "a token over an expert's capacity keeps its `expert_index` and "
    "has weight 0; `model.encoder_moe` holds the encoder's layers",
    "ZayaRouter": "the last id is the class that skips the experts: its tokens have weight 0 and "
    "`expert_outputs` 0",
    "NemotronHMoE": "with `moe_latent_size` experts write vectors of that width, projected after "
    "the sum",
    "MuseSparkMoE": "experts write vectors of a latent width, projected after the sum",
}


def why(error: Exception) -> str:
    """What an error says about the family itself, without what it says to every caller."""
    text = str(error).partition(": ")[2] if "cannot be read exactly" in str(error) else str(error)
    return text.partition(" Tested families: ")[0].strip()


def measure(name: str) -> dict[str, object]:
    """The row of one entry of the zoo.

    Raises:
        AssertionError: If it is refused and is not in the zoo's list of refusals, or the reverse.
    """
    found = {"model_type": zoo.FAMILIES[name].model_type, "model_class": type_name(name)}
    implementations = zoo_runs.implementations(name) if name in zoo_runs.FAMILIES else (None,)
    opened, skips, reason = {}, [], ""
    try:
        for implementation in implementations:
            model = zoo.build(name, implementation=implementation)
            opened[implementation] = load_model(model, tokenizer=build_tokenizer())
    except UnsupportedArchitectureError as error:
        reason = why(error)
    assert bool(reason) == (name in zoo_runs.REFUSED), (name, reason)
    if reason:
        return {**found, "offered": False, "reason": reason}
    for implementation, model in opened.items():
        if all(site.experts in model._exact_sums for site in model.sites):
            skips.append(implementation or OWN_LOOP)
        # From here on the experts' own call is compared with what is read, and must run.
        model.remember_exact_sums(())
    model = opened[implementations[-1]]
    reads, logits = zoo_runs.read_all(model, zoo_runs.prompts(name), zoo_runs.offered(model))
    return {
        **found,
        "offered": True,
        "reason": "",
        "text_type": text_type(model),
        "settings": [name],
        **structure(model, reads),
        "read": {quantity: read_cell(model, quantity) for quantity in QUANTITIES},
        "write": {q: write_cell(model, name, q, reads, logits) for q in QUANTITIES},
        "implementations": [one or OWN_LOOP for one in opened],
        "skips_call": skips,
        "errors": errors(name, opened),
        "notes": notes(model),
    }


def measure_beside(model_type: str) -> dict[str, object]:
    """The row of a type that is refused by its configuration alone."""
    try:
        _loader(CONFIG_MAPPING[model_type](), False)
    except UnsupportedArchitectureError as error:
        return {
            "model_type": model_type,
            "model_class": "none: refused by its type",
            "offered": False,
            "reason": why(error),
        }
    raise AssertionError(f"{model_type!r} is offered: build it in the zoo.")


def type_name(name: str) -> str:
    return zoo.model_class(name).__name__


def text_type(model) -> str:
    """The type of a composite model's text part."""
    text = model.config.get_text_config()
    return "" if text is model.config else text.model_type


def joined(values, between: str = " or ") -> str:
    """Different texts in the order in which they come up."""
    return between.join(dict.fromkeys(values))


def structure(model, reads) -> dict[str, str]:
    """What stands in the sites of a model and can be seen in its modules."""
    module, sites = model.nnsight._module, model.sites
    part = module.get_submodule
    return {
        "block": joined(site.block_class for site in sites),
        "router": joined(site.router_class for site in sites),
        "experts": joined(type(part(site.experts)).__name__ for site in sites),
        "score_function": joined(site.score_function for site in sites),
        "choice": joined(choice(site, part(site.block), part(site.router)) for site in sites),
        "weights": joined(weights(found) for found in reads.values()),
        "n_experts": joined(meaning(site, part(site.experts)) for site in sites),
        "dispatch": joined(site.dispatch for site in sites),
        "shared": joined(map(shared, sites)),
        "after_sum": joined(formula(site, part) for site in sites),
        "output_from": joined((words(site, part) for site in sites), SENTENCES),
    }


def choice(site, block, router) -> str:
    """How experts are chosen; score functions are monotone, so only what moves them counts."""
    if not site.follows_logits:
        return "table of token ids"
    if site.choice_gives == "sparsemixer":
        return "sparsemixer"
    if site.choice_gives == "argmax":
        return "top-1"
    own = [path for path, _ in (*block.named_parameters(), *block.named_buffers())]
    pattern = re.compile(r"correction_bias|expert_bias|balancing_bias")
    biased = any(pattern.search(path) and not path.startswith("experts") for path in own)
    grouped = max(getattr(router, "num_group", 1), getattr(router, "n_group", 1)) > 1
    text = "top-k + bias" if biased else "top-k"
    return f"{text} in groups" if grouped else text


def weights(found) -> str:
    """What the weights are, from scores and weights that were read."""
    index, weight = found["expert_index"], found["routing_weights"].double()
    score = found["router_probs"].double().gather(-1, index)
    runs = weight != 0
    for text, expected in (("s", score), ("s/Σs", score / score.sum(-1, keepdim=True))):
        ratio = (weight / expected)[runs]
        if float((ratio.max() - ratio.min()) / ratio.abs().max()) < 1e-4:
            return text if abs(float(ratio.mean()) - 1) < 1e-4 else f"f·{text}"
    return "own rule"


def meaning(site, experts) -> str:
    """What the router chooses among."""
    if site.skips:
        return "routed experts and a class that skips them"
    stacked = [weight for weight in experts.parameters(recurse=False) if weight.dim() == 3]
    n_routed = min((weight.shape[0] for weight in stacked), default=site.n_experts)
    return "routed and identity experts" if n_routed < site.n_experts else "routed experts"


def shared(site) -> str:
    if site.shared is None:
        return "none"
    if site.leaves_as == "input":
        return "dense branch"
    if not site.shared_inside:
        return "beside the block"
    return "gated" if site.shared_gate else "plain"


def projects(site, part) -> bool:
    """Whether a projection is one: a configuration may have an identity in its place."""
    return site.projection is not None and type(part(site.projection)).__name__ != "Identity"


def formula(site, part) -> str:
    """What the block makes of the sum Σ and the shared expert's output S."""
    halved = site.shared_scale == 0.5
    total = "P(Σ)" if projects(site, part) else "Σ"
    if site.leaves_as == "input":
        total = "N(Σ)"
    if site.sum_scale != 1:
        total = f"½{total}" if halved else f"f·{total}"
    if site.shared_inside:
        total += " + ½S" if halved else " + S"
    total += " + b" if site.adds_bias else ""
    return f"N({total})" if site.final_norm else total


def words(site, part) -> str:
    """The same in words."""
    steps = ["adds the contributions up"]
    if projects(site, part):
        name, kind = site.projection.rpartition(".")[2], type(part(site.projection)).__name__
        verb = "norms" if "Norm" in kind else "projects"
        steps.append(f"{verb} the sum by `{name}`")
    if site.sum_scale == 0.5:
        steps.append("halves it")
    elif site.sum_scale != 1:
        steps.append(f"multiplies it by a factor of the configuration ({site.sum_scale:g} here)")
    if site.shared_inside:
        name = site.shared.rpartition(".")[2]
        gated = " times the sigmoid of its gate" if site.shared_gate else ""
        halved = "half of " if site.shared_scale == 0.5 else ""
        steps.append(f"adds {halved}the output of `{name}`{gated}")
    if site.adds_bias:
        steps.append("adds a bias")
    if site.final_norm:
        steps.append(f"norms everything by `{site.final_norm.rpartition('.')[2]}`")
    if len(steps) == 1:
        steps.append("nothing else")
    return ", ".join(steps)


def read_cell(model, quantity: str) -> str:
    """Whether all layers give a quantity; it was read if they do."""
    layers = (*model.encoder_moe.values(), *model.moe.values())
    reasons = [layer.refused[quantity] for layer in layers if quantity in layer.refused]
    return joined(reasons) or OFFERED


def write_cell(model, name: str, quantity: str, reads, logits) -> str:
    """Whether a quantity can be assigned; what was read must then give the same logits."""
    if getattr(MoELayer, quantity).fset is None:
        return READ_ONLY[quantity]
    layers = {f"encoder {number}": layer for number, layer in model.encoder_moe.items()}
    layers.update(model.moe)
    refused = joined(
        layer.refused[quantity] for layer in layers.values() if quantity in layer.refused
    )
    if refused:
        return refused
    with torch.no_grad(), model.nnsight.trace(zoo_runs.prompts(name)):
        for number, layer in layers.items():
            setattr(layer, quantity, reads[number][quantity])
        again = nnsight.save(model.nnsight.output.logits)
    assert torch.equal(again, logits), (name, quantity)
    return OFFERED


def errors(name: str, opened) -> dict[str, float | str]:
    """The largest error of the contributions' sum, by number format."""
    first, *_, last = [*opened, *opened]
    half = zoo_runs.wrapped(name, last, torch.bfloat16)
    try:
        # Some families give NaN for a padded row in float64, in transformers too.
        exact = sum_error(zoo_runs.wrapped(name, first, torch.float64), name, TEXTS[:1])
    except RuntimeError as error:
        if isinstance(error, MoEInterpError) or "dtype" not in str(error):
            raise
        exact = "does not run in float64 in transformers"
    return {
        "float64": exact,
        "float32": max(sum_error(model, name) for model in opened.values()),
        "bfloat16": sum_error(half, name),
    }


def sum_error(model, name: str, texts=TEXTS) -> float:
    """How far the contributions' sum is from the experts' output, at worst over the layers."""
    names = ("expert_contributions", "routed_output")
    found, _ = zoo_runs.read_all(model, zoo_runs.prompts(name, texts), names)
    pairs = [
        (read["expert_contributions"].sum(2), read["routed_output"]) for read in found.values()
    ]
    return max(zoo_runs.distance(total, written) for total, written in pairs)


def round_up(value: float | str) -> float | str:
    """An error with one digit, not smaller than it is."""
    if isinstance(value, str) or value == 0:
        return value
    power = math.floor(math.log10(value))
    return float(f"{math.ceil(value / 10**power - 1e-9)}e{power}")


def notes(model) -> list[str]:
    classes = {site.block_class for site in model.sites}
    classes |= {site.router_class for site in model.sites}
    found = [note for name, note in NOTES.items() if name in classes]
    if text_type(model):
        found.append("the text decoder is read; other modalities and their towers are not")
    return found


def merge(rows: list[dict[str, object]]) -> dict[str, object]:
    """One row of the entries of a model type."""
    first = rows[0]
    if len(rows) == 1 or not first["offered"]:
        return first
    merged = dict(first)
    for key, value in first.items():
        if key in ("model_type", "model_class", "reason", "offered"):
            continue
        values = [row[key] for row in rows]
        if isinstance(value, str):
            between = SENTENCES if key == "output_from" else " or "
            merged[key] = joined((part for one in values for part in one.split(between)), between)
        elif key in ("read", "write"):
            merged[key] = {name: cell([one[name] for one in values]) for name in value}
        elif key == "errors":
            merged[key] = {kind: worst([one[kind] for one in values]) for kind in value}
        elif key == "skips_call":
            merged[key] = [one for one in value if all(one in other for other in values)]
        else:
            merged[key] = list(dict.fromkeys(one for other in values for one in other))
    return merged


def cell(cells: list[str]) -> str:
    """One cell of those of several configurations."""
    refusals = [text for text in cells if text != OFFERED]
    if not refusals or len(refusals) == len(cells):
        return joined(cells)
    return f"{OFFERED}, but where {joined(refusals)}"


def worst(found: list[float | str]) -> float | str:
    texts = [one for one in found if isinstance(one, str)]
    return texts[0] if texts else max(found)
