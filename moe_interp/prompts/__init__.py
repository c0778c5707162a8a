"""Prompts: their texts, their design, and where their words lie among the tokens."""

from moe_interp.prompts._builtin import BUILTIN_PROMPTS
from moe_interp.prompts._card import DataCard
from moe_interp.prompts._chat import Rendered, render
from moe_interp.prompts._encode import SPANS, Encoded, TokenizedPrompts, encode, tokenize
from moe_interp.prompts._load import load_prompts
from moe_interp.prompts._prompt import Prompt, listed
from moe_interp.prompts._promptset import PromptSet

__all__ = [
    "BUILTIN_PROMPTS",
    "SPANS",
    "DataCard",
    "Encoded",
    "Prompt",
    "PromptSet",
    "Rendered",
    "TokenizedPrompts",
    "encode",
    "listed",
    "load_prompts",
    "render",
    "tokenize",
]
