"""Retrain a packaged organism from its seed: ``python -m moe_interp.organism.train NAME``."""

import argparse
import json
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from moe_interp.organism._package import ORGANISMS, organism_path, write_organism
from moe_interp.organism._recipe import RECIPES
from moe_interp.organism._train import train_organism


def main(arguments: Sequence[str] | None = None) -> int:
    """Train one organism, write its folder, and print the figures of its card.

    Args:
        arguments: Words of the command line; those of the process if None.

    Returns:
        The exit code, 0.
    """
    parser = argparse.ArgumentParser(
        prog="python -m moe_interp.organism.train",
        description="Retrain an organism from its seed, on one thread, in minutes.",
    )
    parser.add_argument("name", choices=ORGANISMS, help="the organism")
    parser.add_argument(
        "--out", type=Path, help="folder to write to (default: the packaged one, overwritten)"
    )
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    recipe = RECIPES[options.name]
    folder = options.out or organism_path(options.name)
    written = write_organism(train_organism(recipe), recipe, folder)
    sys.stdout.write(json.dumps(written["behaviour"], indent=2) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
