"""The same verbs from a shell: `moe-interp audit`, `record`, `test` and others."""

from moe_interp.cli._app import main

__all__ = ["main"]
