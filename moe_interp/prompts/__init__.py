"""Prompts: their texts, their design, and where their words lie among the tokens."""

from moe_interp.prompts._builtin import BUILTIN_PROMPTS
from moe_interp.prompts._load import load_prompts
from moe_interp.prompts._prompt import Prompt
from moe_interp.prompts._promptset import PromptSet

__all__ = ["BUILTIN_PROMPTS", "Prompt", "PromptSet", "load_prompts"]
