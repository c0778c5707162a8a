"""The state of a tuning run between epochs, in memory and on disk."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from moe_interp.errors import ResultExistsError

KIND = "moe_interp tuning run"


@dataclass
class Progress:
    """How far a run has come.

    Attributes:
        inputs: What decides the numbers; a run is only gone on with under the same.
        folder: Where the state is kept; None keeps it in memory alone.
        epoch: The next epoch.
        losses: One row a step.
        best: The trained tensors of the best epoch: of the last one without validation.
        best_epoch: That epoch, counted from 0; -1 before the first.
        best_loss: Its validation loss.
        stopped_early: Whether patience has run out.
    """

    inputs: Mapping[str, Any]
    folder: Path | None
    epoch: int = 0
    losses: list[dict[str, float | int | None]] = field(default_factory=list)
    best: dict[str, Tensor] = field(default_factory=dict)
    best_epoch: int = -1
    best_loss: float | None = None
    stopped_early: bool = False
    _state: dict[str, Tensor] = field(default_factory=dict)

    def restore(self, trained: Mapping[str, Tensor], optimiser: torch.optim.Optimizer) -> None:
        """Put what was kept into the trained tensors and their optimiser."""
        if not self._state:
            return
        for name, tensor in trained.items():
            tensor.data.copy_(self._state[f"now/{name}"])
            optimiser.state[tensor] = {
                what: self._state[f"{what}/{name}"].clone()
                for what in ("step", "exp_avg", "exp_avg_sq")
            }

    def finish_epoch(
        self,
        epoch: int,
        validation_loss: float | None,
        trained: Mapping[str, Tensor],
        optimiser: torch.optim.Optimizer,
        patience: int | None,
    ) -> None:
        """Take stock after an epoch, and keep the state."""
        now = {name: tensor.detach().clone() for name, tensor in trained.items()}
        self.losses[-1]["validation_loss"] = validation_loss
        if validation_loss is None or self.best_loss is None or validation_loss < self.best_loss:
            self.best, self.best_epoch, self.best_loss = now, epoch, validation_loss
        self.stopped_early = patience is not None and epoch - self.best_epoch >= patience
        self.epoch = epoch + 1
        if self.folder is None:
            return
        state = {f"now/{name}": tensor for name, tensor in now.items()}
        for name, tensor in trained.items():
            moments = optimiser.state[tensor]
            for what in ("step", "exp_avg", "exp_avg_sq"):
                state[f"{what}/{name}"] = moments[what].detach().clone()
        state |= {f"best/{name}": tensor.clone() for name, tensor in self.best.items()}
        self._write(state)

    def _write(self, state: Mapping[str, Tensor]) -> None:
        """Write a new state beside the old one, and only then point to it."""
        name = f"epoch-{self.epoch:05d}"
        save_file(
            {key: value.contiguous().cpu() for key, value in state.items()},
            self.folder / f"{name}.safetensors",
        )
        facts = {
            "kind": KIND,
            "inputs": dict(self.inputs),
            "state": name,
            "epoch": self.epoch,
            "losses": self.losses,
            "best_epoch": self.best_epoch,
            "best_loss": self.best_loss,
            "stopped_early": self.stopped_early,
        }
        unfinished = self.folder / ".run.json.part"
        unfinished.write_text(json.dumps(facts), encoding="utf-8")
        unfinished.replace(self.folder / "run.json")
        for old in self.folder.glob("epoch-*.safetensors"):
            if old.stem != name:
                old.unlink()


def open_progress(store: str | Path | None, inputs: Mapping[str, Any], *, resume: bool) -> Progress:
    """Begin a run, or go on with the one that a folder holds.

    Args:
        store: The folder; None keeps nothing.
        inputs: What decides the numbers.
        resume: Whether a run that is there is gone on with.

    Returns:
        The state.

    Raises:
        ResultExistsError: If the folder holds something else, or a run with other inputs.
    """
    if store is None:
        return Progress(inputs, None)
    folder = Path(store)
    if not (folder / "run.json").is_file():
        if folder.exists() and any(not left.name.startswith(".") for left in folder.iterdir()):
            raise ResultExistsError(
                f"{str(folder)!r} holds something that is no tuning run. Give an empty folder."
            )
        folder.mkdir(parents=True, exist_ok=True)
        return Progress(inputs, folder)
    facts = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    if facts.get("kind") != KIND or not resume:
        said = "a tuning run" if facts.get("kind") == KIND else "something that is no tuning run"
        raise ResultExistsError(
            f"{str(folder)!r} holds {said}. Give another folder, or resume=True."
        )
    differ = [name for name, value in inputs.items() if facts["inputs"].get(name) != value]
    if differ:
        raise ResultExistsError(
            f"{str(folder)!r} holds a tuning run with other inputs: {', '.join(differ)} differ. "
            "Give another folder."
        )
    state = load_file(folder / f"{facts['state']}.safetensors")
    best = {key.removeprefix("best/"): t for key, t in state.items() if key.startswith("best/")}
    return Progress(
        inputs,
        folder,
        epoch=facts["epoch"],
        losses=facts["losses"],
        best=best,
        best_epoch=facts["best_epoch"],
        best_loss=facts["best_loss"],
        stopped_early=facts["stopped_early"],
        _state=state,
    )
