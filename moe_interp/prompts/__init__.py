"""Prompts: their texts, their design, and where their words lie among the tokens."""

from moe_interp.prompts._promptset import Prompt, PromptSet

__all__ = ["Prompt", "PromptSet"]
