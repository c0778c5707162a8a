"""CaptureJob: a capture that a server goes on with while nobody waits, and any process collects.

Its folder holds what was asked (`job.json`, `prompts.jsonl`) and, part by part, what has come back.
A part is what shares one job of the server. One that was lost is asked for again; one that has
come back never is.
"""

import json
import os
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from moe_interp.capture._arrays import check_finite, empty_arrays, fill_batch, to_dataset
from moe_interp.capture._batches import plan_batches
from moe_interp.capture._capture import checked_quantities
from moe_interp.capture._record import RoutingRecord
from moe_interp.capture._store import check_free
from moe_interp.capture._there import by_layer, parts_of, submit_part
from moe_interp.errors import JobTimeoutError, ResultError
from moe_interp.models import MoEModel, load_model
from moe_interp.notebook import Shown
from moe_interp.prompts import Prompt, PromptSet, TokenizedPrompts, load_prompts, tokenize
from moe_interp.remote import Server

KIND = "moe_interp capture job"
_LOOK_SECONDS = 1.0
#: A part of which nothing has come for so long is asked for again, by what the server says of it.
#: Servers may forget jobs, and may say for ever that a job is queued which has long ended: NDIF
#: writes places in the queue and results beside each other, under one name.
PATIENCE_SECONDS = {"unknown": 120.0, "queued": 120.0, "running": 3600.0}
#: So long after a job that was sent later has come back, one is not queued any more.
OVERTAKEN_SECONDS = 60.0


def jobs_folder() -> Path:
    """Where jobs are kept: ``moe_interp/jobs`` in the user's folder for state.

    Returns:
        The folder, which need not exist.
    """
    state = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(state) / "moe_interp" / "jobs"


class CaptureJob(Shown):
    """A capture on a server that need not be waited for.

    Made by `submit_routing`; `open_job` finds it again, in this process or another.

    Args:
        folder: Its folder.

    Attributes:
        folder: Its folder.
        asked: What was asked: model, server, quantities, spans, parts.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        try:
            self.asked: dict[str, Any] = json.loads((folder / "job.json").read_text("utf-8"))
        except (OSError, ValueError):
            self.asked = {}
        if self.asked.get("kind") != KIND:
            known = ", ".join(sorted(path.name for path in jobs_folder().glob("*"))) or "none"
            raise ResultError(
                f"{str(folder)!r} is no job. Give the folder of one, or its name; known: {known}."
            )

    @property
    def n_parts(self) -> int:
        """How many jobs of the server it takes."""
        return len(self.asked["parts"])

    @property
    def n_done(self) -> int:
        """How many of them have come back."""
        return self.n_parts - len(self._awaited())

    @property
    def prompts(self) -> PromptSet:
        """The prompts."""
        # The same order and fields as they were given, whatever their names.
        kept = load_prompts(self.folder / "prompts.jsonl")
        return PromptSet(kept, source=self.asked["source"])

    def summary(self) -> str:
        """One line: what, where, since when, and how far it is."""
        asked = self.asked
        return (
            f"{self.folder.name}: {asked['model']} on {asked['host']}, {asked['n_prompts']} "
            f"prompts, since {asked['since']}; {self.n_done} of {self.n_parts} parts are here"
        )

    def fetch(self, model: MoEModel) -> int:
        """Take what is ready, and ask again for what was lost.

        Args:
            model: The model, loaded from the same server.

        Returns:
            How many parts are still awaited.

        Raises:
            RemoteRunError: If the server ends a part for a fault that trying again cannot mend.
        """
        looked = {part: self._look(model, part) for part in self._awaited()}
        states = {part: state for part, state in looked.items() if state != "done"}
        queued = [part for part, state in states.items() if state == "queued"]
        last = max(queued, key=lambda part: self.asked["parts"][part][-1]["asked"], default=None)
        overdue = [
            part
            for part, state in states.items()
            if self._is_overdue(part, state, is_last=part == last)
        ]
        self._ask(model, overdue)
        return len(states)

    def wait(self, model: MoEModel | None = None, *, timeout: float | None = None) -> RoutingRecord:
        """Wait until all has come back.

        Args:
            model: The model, loaded from the same server; loaded here if not given.
            timeout: Seconds to wait; without end if not given.

        Returns:
            The record.

        Raises:
            JobTimeoutError: If some parts have not come back by then; they may be fetched later.
            RemoteRunError: If the server ends a part.
        """
        if model is None:
            model = load_model(
                self.asked["model"],
                remote=Server(self.asked["host"]),
                revision=self.asked["revision"],
                check=False,
            )
        deadline = None if timeout is None else time.monotonic() + timeout
        while self.fetch(model):
            if deadline is not None and time.monotonic() > deadline:
                raise JobTimeoutError(
                    f"{self.n_parts - self.n_done} of {self.n_parts} parts of the job "
                    f"{self.folder.name!r} have not come back within {timeout:g} s. Fetch them "
                    f"later: moe-interp jobs --fetch {self.folder.name} --out X.zarr."
                )
            time.sleep(_LOOK_SECONDS)
        return self._record(model)

    def _record(self, model: MoEModel) -> RoutingRecord:
        prompts, tokens = self.prompts, self._tokens(model)
        names = self.asked["quantities"]
        arrays = empty_arrays(model.architecture, tokens, names, n_draws=0)
        for part, batches in enumerate(parts_of(self.asked["batches"])):
            kept = load_file(self._file(part))
            for number, chosen in enumerate(batches):
                prefix = f"{number}/"
                packed = {
                    name.removeprefix(prefix): value
                    for name, value in kept.items()
                    if name.startswith(prefix)
                }
                fill_batch(arrays, by_layer(model, packed), tokens, chosen)
        check_finite(arrays["routing_weights"], model.architecture, tokens, prompts)
        return RoutingRecord(to_dataset(model.architecture, prompts, tokens, arrays, names))

    def _tokens(self, model: MoEModel) -> TokenizedPrompts:
        spans = tuple(self.asked["spans"])
        return tokenize(model.tokenizer, self.prompts, max_length=model.max_positions, spans=spans)

    def _awaited(self) -> list[int]:
        return [part for part in range(self.n_parts) if not self._file(part).is_file()]

    def _look(self, model: MoEModel, part: int) -> str:
        """Keep what came back of a part, or else say what the server says of its newest job.

        An older job counts too: it may have been given up too soon.
        """
        state = "lost"
        for sent in self.asked["parts"][part]:
            state, found = model.backend().state_of(sent["job"])
            if state == "done":
                self._keep(part, found["packed"])
                sent["back"] = time.time()
                self._write()
                break
        return state

    def _is_overdue(self, part: int, state: str, *, is_last: bool) -> bool:
        """Whether to ask for a part again: at once when it is lost first, later with more patience.

        A queue may be long, so of all queued parts only the one that was sent last is asked for
        again while nothing moves, at growing intervals. When it comes back, the others that the
        server still calls queued have been overtaken, which a queue does not do.
        """
        sent, now = self.asked["parts"][part], time.time()
        if not sent:
            return True
        asked, again = sent[-1]["asked"], 2 ** min(len(sent) - 1, 12)
        if state == "lost":
            return now - asked >= again - 1
        patience = PATIENCE_SECONDS[state]
        if state != "queued":
            return now - asked > patience
        later = (job for jobs in self.asked["parts"] for job in jobs if job["asked"] > asked)
        since = min((job["back"] for job in later if job["back"] is not None), default=now)
        overtaken = now - since > OVERTAKEN_SECONDS
        return overtaken or (is_last and now - asked > patience * again)

    def _ask(self, model: MoEModel, parts: Sequence[int]) -> None:
        if not parts:
            return
        tokens, batches = self._tokens(model), parts_of(self.asked["batches"])
        for part in parts:
            job = submit_part(model, tokens, batches[part], self.asked["quantities"])
            self.asked["parts"][part].append({"job": job, "asked": time.time(), "back": None})
            self._write()

    def _keep(self, part: int, packed: Sequence[dict[str, Tensor]]) -> None:
        """Write a part; under its name only once it is whole."""
        flat = {
            f"{number}/{name}": value.contiguous()
            for number, values in enumerate(packed)
            for name, value in values.items()
        }
        draft = self._file(part).with_suffix(".draft")
        save_file(flat, draft)
        draft.replace(self._file(part))

    def _file(self, part: int) -> Path:
        return self.folder / f"part-{part:05d}.safetensors"

    def _write(self) -> None:
        draft = self.folder / "job.json.draft"
        draft.write_text(json.dumps(self.asked, indent=1), encoding="utf-8")
        draft.replace(self.folder / "job.json")

    def __repr__(self) -> str:
        return f"<CaptureJob {self.summary()}>"


def submit_routing(
    model: MoEModel,
    prompts: PromptSet | Sequence[str],
    *,
    quantities: Sequence[str] = ("expert_index", "routing_weights"),
    spans: Sequence[str] = ("user", "prompt", "last"),
    batch_size: int | str = "auto",
    folder: str | Path | None = None,
) -> CaptureJob:
    """Ask a server for the routing of prompts, and do not wait for it.

    Args:
        model: A model on a server.
        prompts: The prompts, or their texts.
        quantities: As in `record_routing`.
        spans: As in `record_routing`.
        batch_size: As in `record_routing`.
        folder: Where to keep the job; in the user's folder for state if not given.

    Returns:
        The job; `open_job` finds it again.

    Raises:
        ValueError: If the model runs here, or an option has another value.
        ResultExistsError: If the folder exists.
        RemoteRunError: If the server does not take the job.
    """
    if model.connection is None:
        raise ValueError(
            f"{model.id!r} runs here, where nothing goes on after this process. Use "
            "record_routing, or load the model with `remote`."
        )
    if not isinstance(prompts, PromptSet):
        prompts = PromptSet(map(Prompt, prompts), source="texts")
    names = checked_quantities(quantities)
    tokens = tokenize(
        model.tokenizer, prompts, max_length=model.max_positions, spans=tuple(dict.fromkeys(spans))
    )
    batches = plan_batches(tokens.lengths, batch_size=batch_size)
    since = datetime.now(UTC)
    name = f"{since:%Y%m%d-%H%M%S}-{model.id.rpartition('/')[2].lower()}"
    place = jobs_folder() / name if folder is None else Path(folder)
    check_free(place)
    place.mkdir(parents=True)
    prompts.to_jsonl(place / "prompts.jsonl")
    asked = {
        "kind": KIND,
        "model": model.id,
        "revision": model.nnsight.revision,
        "host": model.connection.server.host,
        "since": f"{since:%Y-%m-%d %H:%M} UTC",
        "source": prompts.source,
        "n_prompts": len(prompts),
        "quantities": list(names),
        "spans": list(tokens.spans),
        "batches": batches,
        "parts": [[] for _ in parts_of(batches)],
    }
    (place / "job.json").write_text(json.dumps(asked, indent=1), encoding="utf-8")
    job = CaptureJob(place)
    job._ask(model, range(job.n_parts))
    return job


def open_job(name: str | Path) -> CaptureJob:
    """Find a job again.

    Args:
        name: Its name, or its folder.

    Returns:
        The job.

    Raises:
        ResultError: If there is no such job.
    """
    named = jobs_folder() / name
    return CaptureJob(named if named.is_dir() else Path(name))


def all_jobs() -> list[CaptureJob]:
    """The jobs in the user's folder, the oldest first.

    Returns:
        The jobs.
    """
    return [CaptureJob(path.parent) for path in sorted(jobs_folder().glob("*/job.json"))]
