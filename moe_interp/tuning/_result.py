"""What tuning gave: the changed values, the losses, and ways to use and save them."""

import shutil
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moe_interp.errors import ResultExistsError
from moe_interp.models import MoEModel
from moe_interp.notebook import Shown
from moe_interp.tuning._delta import ExpertDelta

if TYPE_CHECKING:
    from pandas import DataFrame


@dataclass(frozen=True)
class TuneResult(Shown):
    """A tuning run.

    Attributes:
        delta: The tuned values; they apply to the model that was tuned.
        losses: One row a step: step, epoch, loss and routing_kl in nats, and the validation loss
            at the end of each epoch.
        best_epoch: The epoch whose values these are, counted from 0.
        stopped_early: Whether the validation loss ended it.
    """

    delta: ExpertDelta
    losses: tuple[dict[str, float | int | None], ...] = field(repr=False)
    best_epoch: int
    stopped_early: bool

    def applied(self, model: MoEModel, *, scale: float = 1.0) -> AbstractContextManager[MoEModel]:
        """Use the tuned values for a while; afterwards the model is what it was, bit for bit.

        Args:
            model: The model that was tuned.
            scale: Multiple of the change, see `merge_delta`.

        Returns:
            A context manager.

        Raises:
            ResultError: If it is another model.
        """
        return self.delta.applied(model, scale=scale)

    def save_checkpoint(self, model: MoEModel, folder: str | Path, *, force: bool = False) -> None:
        """Save the tuned model as a plain Hugging Face checkpoint, tokenizer included.

        Args:
            model: The model that was tuned; it is left as it was.
            folder: The folder to make.
            force: Whether a checkpoint that is there may be replaced.

        Raises:
            ResultExistsError: If something is there that is no checkpoint, or `force` is not given.
            ResultError: If it is another model.
        """
        folder = Path(folder)
        if folder.exists() and not (force and (folder / "config.json").is_file()):
            raise ResultExistsError(
                f"{str(folder)!r} exists. Give another folder, or force=True to replace a "
                "checkpoint."
            )
        unfinished = folder.with_name(f".{folder.name}.part")
        shutil.rmtree(unfinished, ignore_errors=True)
        with self.applied(model):
            model.nnsight._module.save_pretrained(unfinished)
        model.tokenizer.save_pretrained(unfinished)
        if folder.exists():
            shutil.rmtree(folder)
        unfinished.replace(folder)

    def to_frame(self) -> "DataFrame":
        """Give the losses, one row a step."""
        import pandas as pd

        return pd.DataFrame(list(self.losses))

    def to_dict(self) -> dict[str, Any]:
        """Give what was tuned and how it went, as JSON-safe values; not the tuned values."""
        return {
            "experts": [str(expert) for expert in self.delta.experts],
            "n_parameters": self.delta.n_parameters,
            "settings": dict(self.delta.settings),
            "losses": list(self.losses),
            "best_epoch": self.best_epoch,
            "stopped_early": self.stopped_early,
        }

    def summary(self) -> str:
        """Say what was trained and how the loss went, in two lines."""
        first, last = self.losses[0]["loss"], self.losses[-1]["loss"]
        checked = [
            row["validation_loss"] for row in self.losses if row["validation_loss"] is not None
        ]
        said = f", best validation loss {min(checked):.3g}" if checked else ""
        early = ", stopped early" if self.stopped_early else ""
        return (
            f"{self.delta.n_parameters} parameters tuned of {self.delta.experts or 'no experts'}\n"
            f"  loss {first:.3g} -> {last:.3g} nats/token in {len(self.losses)} steps{said}; "
            f"values of epoch {self.best_epoch + 1}{early}"
        )
