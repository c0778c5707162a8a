"""Prompts: their texts, their design, and where their words lie among the tokens."""

from moe_interp.prompts._align import Alignment, align_tokens
from moe_interp.prompts._builtin import BUILTIN_PROMPTS
from moe_interp.prompts._card import DataCard
from moe_interp.prompts._chat import Rendered, render
from moe_interp.prompts._encode import Encoded, TokenizedPrompts, encode, tokenize
from moe_interp.prompts._load import load_prompts
from moe_interp.prompts._pair_report import PairedPrompts, PairReport, pair_report
from moe_interp.prompts._pairing import match_lengths, pair_prompts
from moe_interp.prompts._prompt import Prompt, listed
from moe_interp.prompts._promptset import PromptSet
from moe_interp.prompts._spans import DEFAULT_SPANS, PAIR_SPANS, SPANS
from moe_interp.prompts._split import exchange_units

__all__ = [
    "BUILTIN_PROMPTS",
    "DEFAULT_SPANS",
    "PAIR_SPANS",
    "SPANS",
    "Alignment",
    "DataCard",
    "Encoded",
    "PairReport",
    "PairedPrompts",
    "Prompt",
    "PromptSet",
    "Rendered",
    "TokenizedPrompts",
    "align_tokens",
    "encode",
    "exchange_units",
    "listed",
    "load_prompts",
    "match_lengths",
    "pair_prompts",
    "pair_report",
    "render",
    "tokenize",
]
