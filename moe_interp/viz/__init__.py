"""Show: tokens, maps of experts, shares beside random routers, and the self-contained report."""

from moe_interp.viz._document import Part, write_document
from moe_interp.viz._explorer import TokenExplorer
from moe_interp.viz._figure import Figure
from moe_interp.viz._plot_causal import plot_causal
from moe_interp.viz._plot_curves import plot_calibration, plot_dose
from moe_interp.viz._plot_decomposition import plot_decomposition
from moe_interp.viz._plot_effects import plot_compare, plot_volcano
from moe_interp.viz._plot_experts import plot_experts
from moe_interp.viz._plot_paths import plot_paths
from moe_interp.viz._report import write_report
from moe_interp.viz._token_view import TokenView
from moe_interp.viz._tokens import show_tokens
from moe_interp.viz._top_tokens import TopTokens, show_top_tokens
from moe_interp.viz._transitions import Transitions, show_transitions

__all__ = [
    "Figure",
    "Part",
    "TokenExplorer",
    "TokenView",
    "TopTokens",
    "Transitions",
    "plot_calibration",
    "plot_causal",
    "plot_compare",
    "plot_decomposition",
    "plot_dose",
    "plot_experts",
    "plot_paths",
    "plot_volcano",
    "show_tokens",
    "show_top_tokens",
    "show_transitions",
    "write_document",
    "write_report",
]
