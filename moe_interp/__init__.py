"""Exact, loud, honest interpretability of Mixture-of-Experts language models.

    >>> import moe_interp as mi
    >>> model = mi.load_model("organism:topic")
    >>> prompts = mi.load_prompts("organism", per_topic=4)
    >>> record = mi.record_routing(model, prompts)

The public names load on first use, so that importing the package stays cheap.
"""

from importlib import import_module

__version__ = "0.1.0"

# Public name -> the module that defines it. One line a name: this table is the public list.
_PUBLIC = {
    "MoEInterpError": "errors",
    "Expert": "experts",
    "ExpertSet": "experts",
    "Prompt": "prompts",
    "PromptSet": "prompts",
    "load_prompts": "prompts",
    "pair_prompts": "prompts",
    "pair_report": "prompts",
    "MoEModel": "models",
    "MoELayer": "models",
    "RoutingCache": "models",
    "load_model": "models",
    "Server": "remote",
    "RefusalLogOdds": "metrics",
    "RefusalOpening": "metrics",
    "RefusalRate": "metrics",
    "LogitDifference": "metrics",
    "RoutingRecord": "capture",
    "record_routing": "capture",
    "open_record": "capture",
    "submit_routing": "capture",
    "open_job": "capture",
    "check_confounds": "capture",
    "decoding_baselines": "capture",
    "Intervention": "interventions",
    "Ban": "interventions",
    "Zero": "interventions",
    "Renormalise": "interventions",
    "Mean": "interventions",
    "Resample": "interventions",
    "Scale": "interventions",
    "Force": "interventions",
    "Steer": "interventions",
    "Transplant": "interventions",
    "RetrieveRouting": "interventions",
    "RoutingMemory": "interventions",
    "PatchOutput": "interventions",
    "PatchBlock": "interventions",
    "AddVector": "interventions",
    "mean_outputs": "interventions",
    "outputs_of": "interventions",
    "routing_of": "interventions",
    "edited": "interventions",
    "patch": "interventions",
    "run": "interventions",
    "measure_effect": "interventions",
    "Scores": "scores",
    "selection_frequency": "scores",
    "mean_routing_weight": "scores",
    "mean_router_prob": "scores",
    "risk_difference": "scores",
    "contrastive_sensitivity": "scores",
    "attribution": "scores",
    "gradient_sensitivity": "scores",
    "integrated_attribution": "scores",
    "direction_attribution": "scores",
    "mean_difference": "scores",
    "logit_direction": "scores",
    "compare": "scores",
    "ablation_effect": "scores",
    "ablation_curve": "scores",
    "sweep": "scores",
    "select_experts": "scores",
    "stability_selection": "scores",
    "write_norm": "scores",
    "greedy_ablation": "scores",
    "matched_null": "scores",
    "matched_ranks": "scores",
    "mesa_select": "scores",
    "off_target": "scores",
    "RoutingProfile": "stats",
    "routing_shares": "stats",
    "harm_test": "stats",
    "expert_tests": "stats",
    "negligible": "stats",
    "naive_token_test": "stats",
    "conditional_mi": "stats",
    "power": "stats",
    "random_router_baseline": "stats",
    "transfer_auc": "stats",
    "verdict": "stats",
    "mcnemar": "stats",
    "concentration": "stats",
    "paired_permutation_test": "stats",
    "design_effect": "stats",
    "swap_distances": "stats",
    "confound_sensitivity": "stats",
    "routing_claim": "stats",
    "detect_harm": "stats",
    "load_features": "stats",
    "tune_experts": "tuning",
    "fit_routing": "tuning",
    "mesa_tune": "tuning",
    "freeze_except": "tuning",
    "routing_drift": "tuning",
    "merge_delta": "tuning",
    "load_delta": "tuning",
    "show_tokens": "viz",
    "show_top_tokens": "viz",
    "show_transitions": "viz",
    "plot_experts": "viz",
    "plot_decomposition": "viz",
    "plot_causal": "viz",
    "plot_volcano": "viz",
    "plot_compare": "viz",
    "plot_dose": "viz",
    "plot_paths": "viz",
    "plot_calibration": "viz",
    "write_report": "viz",
    "AuditResult": "audit",
    "examine_routing": "audit",
    "run_audit": "audit",
}

__all__ = [*_PUBLIC, "__version__"]


def __getattr__(name: str) -> object:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'moe_interp' has no attribute {name!r}")
    value = getattr(import_module(f"moe_interp.{_PUBLIC[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
