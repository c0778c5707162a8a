"""The table of exceptions: what structure does not tell, keyed by class.

Everything else about a family is read off its module tree (`_sites`). A row holds facts that
replace the detected ones; it may look at the module, whose settings decide some of them. Paths in
a row are relative to the block.
"""

from collections.abc import Callable, Mapping

from torch import nn

from moe_interp.models._support import supported_families

Facts = dict[str, object]

# Every one of these builds, is read exactly and is edited in the tests.
SUPPORTED = supported_families().offered
# The facts that a row may set: those of `Site` that structure may tell wrongly. "experts" is the
# name of the experts module, for families whose experts are not known by their signature.
ROUTER_FACTS = (
    "n_experts",
    "top_k",
    "logits",
    "further_logits",
    "logits_in_inference",
    "choice",
    "choice_gives",
    "choice_scores",
    "choice_values",
    "choice_index",
    "follows_logits",
    "score_function",
    "unselectable_score",
    "sparsemixer_jitter",
    "skips",
    "columns_apart",
)
BLOCK_FACTS = (
    "experts",
    "entry",
    "leaving",
    "leaves_as",
    "shared",
    "projection",
    "final_norm",
    "dispatch",
    "sum",
    "adds_bias",
    "sum_scale",
    "shared_scale",
    "refused",
)


def _deepseek_v2(router: nn.Module) -> Facts:
    # The method decides which of the source's three `topk` calls is the last to run; experts
    # outside the kept groups score 0 there, so weights are taken from the scores before that.
    if router.topk_method == "greedy":
        return {"choice": "torch_topk_0"}
    return {"choice": "torch_topk_2", "choice_values": "scores_0", "unselectable_score": 0.0}


def _kolibri(router: nn.Module) -> Facts:
    # On a GPU, in inference, a faster product gives the logits.
    faster = router.weight.device.type in ("cuda", "meta")
    return {
        "logits": "router_logits_1",
        "logits_in_inference": "router_logits_0" if faster else "",
    }


# Router class -> facts.
ROUTERS: dict[str, Callable[[nn.Module], Facts]] = {
    "Cohere2MoeTopKRouter": lambda router: {"score_function": router.expert_selection_fn},
    "DbrxRouter": lambda router: {
        "choice": "block:self_route_tokens_to_experts_0/torch_topk_0",
        "score_function": "softmax",
    },
    "DeepseekOcr2TextTopkRouter": _deepseek_v2,
    "DeepseekV2TopkRouter": _deepseek_v2,
    "DeepseekV4HashRouter": lambda router: {
        "choice": "indices_0",
        "choice_gives": "index",
        "choice_scores": "scores_0",
        "follows_logits": False,
    },
    # Logits of shared experts stand behind those of the routed ones.
    "InklingTopkRouter": lambda router: {"further_logits": router.n_shared_experts},
    "Kolibri1TopKRouter": _kolibri,
    "LagunaTopKRouter": lambda router: {
        "logits": "router_logits_1" if router.router_logit_softcapping > 0 else "router_logits_0"
    },
    "Lfm2MoeTopKRouter": lambda router: {
        "choice": "torch_topk_0" if router.use_expert_bias else "torch_topk_1"
    },
    "Llama4Router": lambda router: {"score_function": "sigmoid"},
    # Identity experts, which copy their token, are chosen like the others.
    "LongcatFlashTopkRouter": lambda router: {
        "choice": "self_get_topk_indices_0/torch_topk_0",
        "choice_values": "scores_0",
        "n_experts": router.n_routed_experts,
        "columns_apart": 2,
    },
    "PhimoeTopKRouter": lambda router: {
        "choice": "router.output",
        "choice_gives": "sparsemixer",
        "score_function": "softmax",
        "sparsemixer_jitter": float(router.router_jitter_noise),
    },
    "SwitchTransformersTop1Router": lambda router: {
        "choice": "router_probs_0",
        "choice_gives": "argmax",
        "choice_index": "torch_argmax_0",
        "top_k": 1,
    },
    "UnlimitedOcrTextTopkRouter": _deepseek_v2,
    # The last class skips the experts; it is masked to expert 0 after the choice.
    "ZayaRouter": lambda router: {"n_experts": router.num_router_classes, "skips": True},
}


def _scaled_by(name: str) -> Callable[[nn.Module], Facts]:
    """A block that multiplies the experts' sum before it adds the shared expert."""
    return lambda block: {"sum_scale": float(getattr(block, name, 1.0))}


def _cohere2(block: nn.Module) -> Facts:
    halved = block.num_shared_experts > 0 and block.shared_expert_combination_strategy == "average"
    return {"sum_scale": 0.5, "shared_scale": 0.5} if halved else {}


# Block class -> facts: other ways to call the experts, and what comes after them.
BLOCKS: dict[str, Callable[[nn.Module], Facts]] = {
    "AXK1MoE": lambda block: {"final_norm": "post_mlp_layernorm"},
    "BeamMoE": _scaled_by("routed_scaling_factor"),
    "Cohere2MoeSparseMoeBlock": _cohere2,
    # The experts stand beside a dense MLP in the decoder layer itself; both are normed, then added.
    "Gemma4TextDecoderLayer": lambda block: {
        "entry": "router",
        "shared": "post_feedforward_layernorm_1",
        "projection": "post_feedforward_layernorm_2",
        "leaving": "post_feedforward_layernorm",
        "leaves_as": "input",
    },
    "JetMoeMoE": lambda block: {
        "dispatch": "sorted",
        "experts": "output_linear",
        "sum": "block:layer_output_0",
        "adds_bias": True,
    },
    "LagunaSparseMoeBlock": _scaled_by("routed_scaling_factor"),
    "Llama4TextMoe": lambda block: {
        "dispatch": "input_scaled",
        "experts": "experts",
        "sum": "block:sum_0",
        "refused": {
            "expert_outputs": "its weight multiplies the expert's input, not its output. Read "
            "`expert_contributions`, what each chosen expert wrote."
        },
    },
    "MiniMaxM3VLSparseMoeBlock": _scaled_by("routed_scaling_factor"),
    "MuseSparkMoE": lambda block: {"projection": "post_expert_proj"},
    "NemotronHMoE": lambda block: {"projection": "fc2_latent_proj"},
    "OpenAIPrivacyFilterMLP": _scaled_by("num_experts"),
    "Step3p7SparseMoeBlock": _scaled_by("routed_scaling_factor"),
    "SwitchTransformersSparseMLP": lambda block: {"dispatch": "one_hot"},
}


def _nllb_runs_other_experts(router: nn.Module) -> str | None:
    """Whether this release of transformers runs other NLLB experts than the router chose."""
    from moe_interp.models._nllb import runs_chosen_experts

    if runs_chosen_experts():
        return None
    return (
        "in this release of transformers the experts of NLLB-MoE take the router's one-hot mask "
        "for ids, so that only expert_0 and expert_1 ever run, whatever was chosen. Use a release "
        "in which this is mended"
    )


# Model types that hold several language models, and what to load instead.
SEVERAL_MODELS = {
    "qwen3_omni_moe": "it holds a thinker and a talker. Load the thinker by itself, "
    "`Qwen3OmniMoeThinkerForConditionalGeneration.from_pretrained(...)`, and pass it on",
}

# What routes beside the MoE layers and is not offered, and why.
NOT_OFFERED = {
    "JetMoeAttention": "attention heads are its experts",
    "JetMoeMoA": "attention heads are its experts",
}

# Class -> why it is refused, or None if it is not.
REFUSED: dict[str, Callable[[nn.Module], str | None]] = {
    "NllbMoeTop2Router": _nllb_runs_other_experts,
    "DogeCDMoE": lambda block: (
        "its experts are rows of an embedding, there is no experts module that could be called "
        "or read; nothing of it is offered"
    ),
    "Ernie4_5_VLMoeMoeBlock": lambda block: (
        "it sends text and image tokens to different experts, so that their rows do not line up "
        "with positions. The text-only models of type ernie4_5_moe are read"
    ),
}


def register_router(
    class_name: str, facts: Mapping[str, object] | Callable[[nn.Module], Mapping[str, object]]
) -> None:
    """Say of a class of routers what its structure does not tell, until the process ends.

    The row holds for models that are loaded afterwards. `docs/errors/unsupported-architecture.md`
    shows how to find the facts; the self-check at load says whether they are right.

    Args:
        class_name: Name of the router's class.
        facts: Facts that replace the detected ones, or a function of the router that gives them.

    Raises:
        ValueError: If the class has a row already, or a fact is none of a router.

    Example:
        >>> register_router("GravelRouter", {"logits": "affinity_0", "choice": "torch_sort_0"})
    """
    _register(ROUTERS, "router", ROUTER_FACTS, class_name, facts)


def register_block(
    class_name: str, facts: Mapping[str, object] | Callable[[nn.Module], Mapping[str, object]]
) -> None:
    """Say of a class of MoE blocks what its structure does not tell, until the process ends.

    Args:
        class_name: Name of the class of the block that holds router and experts.
        facts: Facts that replace the detected ones, or a function of the block that gives them.
            Paths are relative to the block.

    Raises:
        ValueError: If the class has a row already, or a fact is none of a block.

    Example:
        >>> register_block("GravelMoE", lambda block: {"sum_scale": block.output_scale})
    """
    _register(BLOCKS, "block", BLOCK_FACTS, class_name, facts)


def _register(
    rows: dict[str, Callable[[nn.Module], Facts]],
    part: str,
    known: tuple[str, ...],
    class_name: str,
    facts: Mapping[str, object] | Callable[[nn.Module], Mapping[str, object]],
) -> None:
    """Add a row to a table; what a function gives is looked at when a model is loaded."""
    if class_name in rows:
        raise ValueError(
            f"The {part} class {class_name!r} has a row already. Give your class a name of its "
            "own; to replace a row, delete it from moe_interp.models._registry first."
        )

    def checked(given: Mapping[str, object]) -> Facts:
        unknown = [name for name in given if name not in known]
        if unknown:
            raise ValueError(
                f"{unknown[0]!r} is no fact of a {part}, in the row of {class_name!r}. Known: "
                f"{', '.join(known)}."
            )
        return dict(given)

    if callable(facts):
        rows[class_name] = lambda module: checked(facts(module))
    else:
        row = checked(facts)
        rows[class_name] = lambda module: row
