"""Show: tokens, maps of experts, shares beside random routers, and the self-contained report."""

from moe_interp.viz._document import Part, write_document
from moe_interp.viz._plot_causal import plot_causal
from moe_interp.viz._plot_decomposition import plot_decomposition
from moe_interp.viz._plot_experts import plot_experts
from moe_interp.viz._report import write_report
from moe_interp.viz._tokens import TokenView, show_tokens

__all__ = [
    "Part",
    "TokenView",
    "plot_causal",
    "plot_decomposition",
    "plot_experts",
    "show_tokens",
    "write_document",
    "write_report",
]
