"""The table of exceptions: what a router's structure does not tell, keyed by class.

Everything else about a family is read off its module tree (`_sites`). A row holds facts that
replace the detected ones; it may look at the router module, whose settings decide some of them.
"""

from collections.abc import Callable

from torch import nn

# Every one of these builds, is read exactly and is edited in the tests.
SUPPORTED = (
    "deepseek_v2",
    "deepseek_v3",
    "glm4_moe",
    "gpt_oss",
    "granitemoe",
    "mixtral",
    "olmoe",
    "phimoe",
    "qwen2_moe",
    "qwen3_moe",
)


def _deepseek_v2(router: nn.Module) -> dict[str, object]:
    # The method decides which of the source's three `topk` calls is the last to run; experts
    # outside the kept groups score 0 there.
    greedy = router.topk_method == "greedy"
    return {
        "choice": "torch_topk_0" if greedy else "torch_topk_2",
        "unselectable_score": float("-inf") if greedy else 0.0,
    }


ROUTERS: dict[str, Callable[[nn.Module], dict[str, object]]] = {
    "DeepseekV2TopkRouter": _deepseek_v2,
    "DeepseekOcr2TextTopkRouter": _deepseek_v2,
    "UnlimitedOcrTextTopkRouter": _deepseek_v2,
    "Cohere2MoeTopKRouter": lambda router: {"score_function": router.expert_selection_fn},
    "Lfm2MoeTopKRouter": lambda router: {
        "choice": "torch_topk_0" if router.use_expert_bias else "torch_topk_1"
    },
    "LagunaTopKRouter": lambda router: {
        "logits": "router_logits_1" if router.router_logit_softcapping > 0 else "router_logits_0"
    },
    "PhimoeTopKRouter": lambda router: {
        "choice": "sparsemixer",
        "score_function": "softmax",
        "sparsemixer_jitter": float(router.router_jitter_noise),
    },
}

# What the block does with the experts' sum before the shared expert is added: a factor, or "" if
# it is more than a factor and the contributions rebuild the experts' output only.
BLOCKS: dict[str, str] = {
    "AXK1MoE": "",
    "BeamMoE": "routed_scaling_factor",
    "Cohere2MoeSparseMoeBlock": "",
    "LagunaSparseMoeBlock": "routed_scaling_factor",
    "MiniMaxM3VLSparseMoeBlock": "routed_scaling_factor",
    "MuseSparkMoE": "",
    "NemotronHMoE": "",
    "OpenAIPrivacyFilterMLP": "num_experts",
    "Step3p7SparseMoeBlock": "routed_scaling_factor",
}

# Router, experts or block class -> why it is refused.
REFUSED: dict[str, str] = {
    "DbrxRouter": "its choice is made in the block, not in the router",
    "DeepseekV4HashRouter": "its hash layers choose experts from a table of tokens",
    "Gemma4TextRouter": "its experts run beside a dense MLP in the decoder layer itself",
    "InklingTopkRouter": "its logits hold shared experts beside the routed ones",
    "JetMoeTopKGating": "its dispatch sorts tokens by expert",
    "Kolibri1TopKRouter": "its logits are computed in one of two ways, decided at run time",
    "Llama4Router": "its router scales the experts' input, not their output",
    "LongcatFlashTopkRouter": "its router also chooses zero experts that copy their input",
    "NllbMoeTop2Router": (
        "transformers 5.23 runs only expert_0 and expert_1 of an NLLB-MoE layer, whatever the "
        "router chose"
    ),
    "SwitchTransformersTop1Router": "its dispatch is one-hot with a capacity limit",
    "ZayaRouter": "its router also chooses a skip class, which is masked after the choice",
    "DogeCDMoE": "its experts are rows of an embedding, there is no experts module to call",
}
