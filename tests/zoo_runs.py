"""Runs of the models of `zoo`, plain and traced, on the same prompts, each made once.

The plain run is seen by `zoo_oracle`; the traced one is read with the package. A test module asks
for family after family, so the caches are short.
"""

import functools

import nnsight
import torch
import zoo
import zoo_oracle
from tiny_models import VOCABULARY, build_tokenizer, encode

from moe_interp.models import load_model, read_layers

IMPLEMENTATIONS = ("eager", "batched_mm", "grouped_mm")
QUANTITIES = (
    "input",
    "router_input",
    "router_logits",
    "router_probs",
    "expert_index",
    "routing_weights",
    "expert_outputs",
    "expert_contributions",
    "routed_output",
    "shared_output",
    "output",
)
N_NEW = 4

# Families that transformers' experts implementations do not reach run in their own one only.
NATIVE = {
    "dbrx": "loops over experts",
    "jetmoe": "loops over sorted tokens",
    "llama4": "runs all experts on all tokens",
    "llama4_text": "runs all experts on all tokens",
    "longcat_flash": "loops over experts",
    "step3p7": "loops over experts",
    "switch_transformers": "loops over experts",
}
REFUSED = {
    "diffusion_gemma": "no causal language model",
    "doge": "experts are rows of an embedding",
    "ernie4_5_vl_moe": "sends text and image tokens to different experts",
    "openai_privacy_filter": "no causal language model",
    "nllb-moe": "only expert_0 and expert_1 ever run",
}
# Quantities that only some families lack, with words of the reason that must be given.
SCALED_INPUT = {"expert_outputs": "multiplies the expert's input, not its output"}
NOT_OFFERED = {"llama4": SCALED_INPUT, "llama4_text": SCALED_INPUT}
NO_SHARED = {"shared_output": "no shared expert"}
WITHOUT_SHARED = (
    "beam",
    "cohere2_moe",
    "dbrx",
    "flex_olmo",
    "gpt_oss",
    "granitemoe",
    "inkling2",
    "inkling2_text",
    "jamba",
    "jetmoe",
    "lfm2_moe",
    "lfm2_moe-unbiased",
    "longcat_flash",
    "mellum",
    "mellum-plain",
    "mimo_v2_flash",
    "minimax",
    "minimax_m2",
    "mixtral",
    "muse_spark",
    "olmoe",
    "olmoe-renormalised",
    "phimoe",
    "qwen3_moe",
    "qwen3_moe-renormalised",
    "qwen3_omni_moe_thinker",
    "qwen3_vl_moe",
    "switch_transformers",
    "zaya",
)
# Families with a step in float32 whatever the dtype of their weights, and how far that reaches.
FLOAT32_INSIDE = {
    "hy_v3": 1e-7,  # The sum with the shared expert.
    "nemotron_h": 1e-7,  # Experts.
    "nemotron_h-wide": 1e-7,
}
# Their router casts the tokens to float32, but not its own weights.
NOT_IN_FLOAT64 = ("inkling2", "inkling2_text")
# Its compressor's maps are kept in float32, and what enters them is not.
NOT_IN_FLOAT16 = ("deepseek_v4",)
FAMILIES = tuple(name for name in zoo.FAMILIES if name not in REFUSED)


def implementations(name: str) -> tuple[str | None, ...]:
    """What the experts of a family can be run by; None for a family's own code."""
    return (None,) if name in NATIVE else IMPLEMENTATIONS


def not_offered(name: str) -> dict[str, str]:
    """The quantities that a family cannot give, and words of the reason."""
    return {**NOT_OFFERED.get(name, {}), **(NO_SHARED if name in WITHOUT_SHARED else {})}


def case_id(value: object) -> str:
    """The id of a parameter: no implementation is a family's own code."""
    return "own-code" if value is None else str(value)


def prompts(name: str, texts=None, side: str = "left") -> dict[str, torch.Tensor]:
    """A padded batch of two prompts of different length, as a family takes it."""
    batch = encode(side=side) if texts is None else encode(texts, side=side)
    if name == "switch_transformers":
        start = torch.tensor([[0, 45, 46, 47]])
        return {**batch, "decoder_input_ids": start.expand(len(batch["input_ids"]), -1)}
    positions = (batch["attention_mask"].cumsum(-1) - 1).clamp(min=0)
    return {**batch, "position_ids": positions}


def invoked_together(name: str) -> dict[str, torch.Tensor]:
    """The batch that two invokes of one prompt each make: encoder-decoders are padded right."""
    return prompts(name, side="right" if name == "switch_transformers" else "left")


@functools.lru_cache(maxsize=4)
def wrapped(name: str, implementation: str | None = "grouped_mm", dtype=torch.float32):
    """A model of the package, which tests must leave as it is."""
    model = zoo.build(name, dtype=dtype, implementation=implementation)
    return load_model(model, tokenizer=build_tokenizer(), check=False)


@functools.lru_cache(maxsize=4)
def plain(name: str, implementation: str | None = "grouped_mm", dtype=torch.float32):
    """The same model as plain Hugging Face module."""
    return zoo.build(name, dtype=dtype, implementation=implementation)


@functools.lru_cache(maxsize=4)
def plain_prefill(name: str, implementation: str | None = "grouped_mm", dtype=torch.float32):
    """What the oracle saw in one forward."""
    return see(name, implementation, prompts(name), dtype)


def see(name: str, implementation: str | None, batch: dict, dtype=torch.float32):
    """What the oracle sees in one forward of a batch."""
    return zoo_oracle.observe(plain(name, implementation, dtype), lambda model: model(**batch))


@functools.lru_cache(maxsize=16)
def early_end(name: str) -> int:
    """A token that ends one row of a generation early and leaves the other row running."""
    batch = generation_prompts(name)
    model = plain(name, implementations(name)[0])
    tokens = model.generate(**batch, **greedy(len(VOCABULARY)))[:, -N_NEW:].tolist()
    for row, other in ((0, 1), (1, 0)):
        for token in tokens[row][:-1]:
            if token not in tokens[other]:
                return token
    raise AssertionError(f"Both rows of {name!r} generate the same tokens; change its seed.")


def greedy(end: int) -> dict[str, object]:
    """Settings of a greedy generation that ends at a token."""
    return {
        "max_new_tokens": N_NEW,
        "do_sample": False,
        "eos_token_id": end,
        "pad_token_id": 0,
    }


def generation_prompts(name: str) -> dict[str, torch.Tensor]:
    """A batch for a generation, which makes positions itself."""
    batch = prompts(name)
    return {key: batch[key] for key in ("input_ids", "attention_mask")}


@functools.lru_cache(maxsize=4)
def plain_decode(name: str, implementation: str | None = "grouped_mm"):
    """What the oracle saw in a generation of which one row ends early."""
    batch, settings = generation_prompts(name), greedy(early_end(name))
    return zoo_oracle.observe(
        plain(name, implementation), lambda model: model.generate(**batch, **settings)
    )


def offered(model) -> tuple[str, ...]:
    """The quantities that all layers of a model offer, in the order of `QUANTITIES`."""
    layers = (*model.encoder_moe.values(), *model.moe.values())
    return tuple(name for name in QUANTITIES if all(name in layer.offered for layer in layers))


@functools.lru_cache(maxsize=4)
def traced_prefill(name: str, implementation: str | None = "grouped_mm", dtype=torch.float32):
    """All quantities of all layers in one forward, and the logits."""
    model = wrapped(name, implementation, dtype)
    return read_all(model, prompts(name), offered(model))


def read_all(model, batch, names) -> tuple[dict[object, dict[str, torch.Tensor]], torch.Tensor]:
    """Quantities of all layers in one forward of a batch, and the logits."""
    encoder, layers = tuple(model.encoder_moe.values()), tuple(model.moe.values())
    with torch.no_grad(), model.nnsight.trace(batch):
        before = nnsight.save(read_layers(encoder, names))
        found = nnsight.save(read_layers(layers, names))
        logits = nnsight.save(model.nnsight.output.logits)
    return {**found, **{f"encoder {layer}": read for layer, read in before.items()}}, logits


@functools.lru_cache(maxsize=4)
def traced_decode(name: str, implementation: str | None = "grouped_mm"):
    """All quantities of all layers at every step of a generation, and its tokens."""
    model = wrapped(name, implementation)
    layers, names = tuple(model.moe.values()), offered(model)
    n_steps = len(next(iter(plain_decode(name, implementation).calls.values())))
    settings = greedy(early_end(name))
    with torch.no_grad(), model.nnsight.generate(**settings) as tracer:
        with tracer.invoke(generation_prompts(name)):
            steps = nnsight.save([])
            for _ in tracer.iter[:n_steps]:
                steps.append(read_layers(layers, names))
        with tracer.invoke():
            tokens = nnsight.save(tracer.result)
    return steps, tokens


def distance(found: torch.Tensor, expected: torch.Tensor) -> float:
    """The largest difference, relative to the largest value."""
    scale = float(expected.detach().abs().max().double()) or 1.0
    return float((found.detach().double() - expected.detach().double()).abs().max()) / scale
