"""The same verbs from a shell: `moe-interp audit | record | report | models | prompts`."""

from moe_interp.cli._app import main

__all__ = ["main"]
