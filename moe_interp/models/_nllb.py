"""Whether NLLB-MoE runs the experts that its router chose: it did not in transformers 5.23.

There the router returns a one-hot mask where its experts expect ids. A tiny block tells.
"""

import functools

import torch


@functools.cache
def runs_chosen_experts() -> bool:
    """Run a tiny NLLB-MoE block and compare the experts that ran with those that were chosen."""
    from transformers.models.nllb_moe import NllbMoeConfig
    from transformers.models.nllb_moe.modeling_nllb_moe import NllbMoeSparseMLP

    config = NllbMoeConfig(d_model=8, num_experts=4, expert_capacity=16, moe_token_dropout=0.0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        block = NllbMoeSparseMLP(config, ffn_dim=8).eval()
        hidden = torch.randn(1, 12, config.d_model)
    ran = set()
    for name, expert in block.experts.items():
        expert.register_forward_hook(lambda *_, name=name: ran.add(name))
    with torch.no_grad():
        best = block.router.classifier(hidden).argmax(-1)
        block(hidden)
    return ran >= {f"expert_{int(expert)}" for expert in best.unique()}
