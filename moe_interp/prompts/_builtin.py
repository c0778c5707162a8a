"""The prompt sets that ship with the package, by name."""

from collections.abc import Callable
from importlib import import_module

# Resolved when asked for: a built-in set may live in a layer above this one.
BUILTIN_PROMPTS = {
    "organism": "moe_interp.organism:factorial_prompts",
}


def builtin_factory(name: str) -> Callable:
    """Find the function that makes a built-in prompt set.

    Args:
        name: A key of `BUILTIN_PROMPTS`.

    Returns:
        A function that takes the set's options and returns a `PromptSet`.
    """
    module, _, function = BUILTIN_PROMPTS[name].partition(":")
    return getattr(import_module(module), function)
