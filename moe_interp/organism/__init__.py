"""Model organisms: tiny Mixture-of-Experts models whose truth is known, to validate tools.

They are no evidence about real models. `organism_path(name)` is a plain Hugging Face folder,
`card(name)` says what is true of it, and `factorial_prompts()` asks it what it was trained on.
"""

from moe_interp.organism._package import (
    ORGANISMS,
    card,
    load_organism,
    organism_path,
    restore_base_experts,
)
from moe_interp.organism._paraphrase import paraphrases
from moe_interp.organism._prompts import factorial_prompts
from moe_interp.organism._shifted import shifted_prompts

__all__ = [
    "ORGANISMS",
    "card",
    "factorial_prompts",
    "load_organism",
    "organism_path",
    "paraphrases",
    "restore_base_experts",
    "shifted_prompts",
]
