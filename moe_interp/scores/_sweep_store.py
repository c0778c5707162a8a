"""A sweep on disk: a folder that says what is measured, and one file for each part that is done.

A part is one layer on some of the prompts. Its file appears whole or not at all, so that a sweep
that was stopped, however it was, goes on where it stood.
"""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from numpy import ndarray

from moe_interp.errors import ResultExistsError

KIND = "moe_interp sweep"
SCHEMA_VERSION = 1
_MANIFEST = "sweep.json"


@dataclass(frozen=True)
class Part:
    """What was measured of one layer on some of the prompts.

    Attributes:
        effects: The effect of each expert of the layer on each of the prompts.
        n_rows: Pairs of an expert and a prompt that were run.
        n_tokens: Tokens that were run, padding included.
        n_forwards: Forwards that were run.
    """

    effects: Float[ndarray, "prompt expert"]
    n_rows: int
    n_tokens: int
    n_forwards: int


class SweepStore:
    """The folder of one sweep.

    Args:
        path: The folder; it is made if it is not there.
        inputs: What is measured: by name, values that JSON can hold.
        resume: Whether to go on with a sweep that is there.

    Raises:
        ResultExistsError: If something else is there, a sweep of other inputs, or any sweep where
            it is not to be resumed.
    """

    def __init__(self, path: str | Path, inputs: Mapping[str, Any], *, resume: bool) -> None:
        self.path = Path(path)
        self.notes: dict[str, Any] = {}
        inputs = json.loads(json.dumps({"schema_version": SCHEMA_VERSION, **inputs}))
        if self.path.exists():
            self.notes = self._check(inputs, resume=resume)
        self._inputs = inputs

    def _check(self, inputs: Mapping[str, Any], *, resume: bool) -> dict[str, Any]:
        """Refuse what is not this sweep; returns what was noted about it."""
        where = repr(str(self.path))
        try:
            found = json.loads((self.path / _MANIFEST).read_text(encoding="utf-8"))
            known = found["inputs"] if found["kind"] == KIND else None
        except (OSError, ValueError, KeyError, TypeError):
            known = None
        if known is None:
            raise ResultExistsError(
                f"{where} exists and is no sweep. It was left as it is; choose another `store`."
            )
        names = [name for name in {**known, **inputs} if known.get(name) != inputs.get(name)]
        if names:
            told = "; ".join(
                f"{name} {_short(known.get(name))} there, {_short(inputs.get(name))} now"
                for name in names
            )
            raise ResultExistsError(
                f"{where} holds a sweep of something else ({told}). It was left as it is; choose "
                "another `store`."
            )
        if not resume:
            raise ResultExistsError(
                f"{where} holds this sweep already. It was left as it is; choose another `store`, "
                "or pass resume=True to go on with it."
            )
        return dict(found["notes"])

    def begin(self, notes: Mapping[str, Any]) -> None:
        """Make the folder, unless it is there.

        Args:
            notes: What a sweep that goes on must do as this one does.
        """
        if self.path.exists():
            return
        self.path.mkdir(parents=True)
        self.notes = dict(notes)
        manifest = {"kind": KIND, "inputs": self._inputs, "notes": self.notes}
        self._write(_MANIFEST, json.dumps(manifest, indent=1).encode())

    def load(self, name: str) -> Part | None:
        """Read a part.

        Args:
            name: Its name.

        Returns:
            The part; None if it is not done.
        """
        path = self.path / f"{name}.npz"
        if not path.exists():
            return None
        with np.load(path) as kept:
            return Part(kept["effects"], *(int(n) for n in kept["counts"]))

    def save(self, name: str, part: Part) -> None:
        """Write a part.

        Args:
            name: Its name.
            part: The part.
        """
        draft = self.path / f".{name}.{os.getpid()}.npz"
        counts = np.array([part.n_rows, part.n_tokens, part.n_forwards])
        np.savez(draft, effects=part.effects, counts=counts)
        draft.replace(self.path / f"{name}.npz")

    def _write(self, name: str, content: bytes) -> None:
        draft = self.path / f".{name}.{os.getpid()}"
        draft.write_bytes(content)
        draft.replace(self.path / name)


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def digest(values: Sequence[object]) -> str:
    """A short name for values, the same in every process.

    Args:
        values: Anything with a faithful `repr`.

    Returns:
        Sixteen hexadecimal digits.
    """
    return hashlib.sha256(repr(tuple(values)).encode()).hexdigest()[:16]
