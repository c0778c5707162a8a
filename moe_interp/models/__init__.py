"""ACCESS: load a MoE model, read and edit its routers and experts inside a trace."""

from moe_interp.models._hooks import HookInfo, RoutingCache
from moe_interp.models._load import load_model
from moe_interp.models._model import Architecture, MoELayers, MoEModel
from moe_interp.models._registry import SUPPORTED, register_block, register_router
from moe_interp.models._site import Site
from moe_interp.models._sites import find_sites
from moe_interp.models._support import FamilySupport, SupportTable, supported_families
from moe_interp.models._traced import MoELayer
from moe_interp.models._traced_choice import ban_experts, choose
from moe_interp.models._traced_read import read, read_layers, scale_weights, set_routing
from moe_interp.models._versions import check_versions

__all__ = [
    "SUPPORTED",
    "Architecture",
    "FamilySupport",
    "HookInfo",
    "MoELayer",
    "MoELayers",
    "MoEModel",
    "RoutingCache",
    "Site",
    "SupportTable",
    "ban_experts",
    "check_versions",
    "choose",
    "find_sites",
    "load_model",
    "read",
    "read_layers",
    "register_block",
    "register_router",
    "scale_weights",
    "set_routing",
    "supported_families",
]
