"""The nnsight backend that takes a block to a server, with patience, and errors in plain words."""

import io
import json
import logging
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import httpx
import websocket
from nnsight.intervention.backends.remote import RemoteBackend
from nnsight.schema.request import RequestModel
from nnsight.schema.response import ResponseModel, Status

from moe_interp.errors import (
    JobTimeoutError,
    RemoteRunError,
    ResultTooLargeError,
    ServerUnreachableError,
)
from moe_interp.remote._failures import failure
from moe_interp.remote._server import Server, detail_of

_LOGGER = logging.getLogger("moe_interp")
_CONNECT_SECONDS = 10.0
_READ_SECONDS = 600.0
_LOOK_SECONDS = 0.2
#: What stores answer of results that they dropped, or whose addresses have run out.
_GONE = (403, 404, 410)
#: What servers say of a job after the last time that they tell its place in the queue.
_STARTED = (Status.DISPATCHED, Status.RUNNING)


class _ResultGoneError(RemoteRunError):
    """A job was done, and its result is not kept any more."""


@dataclass
class Traffic:
    """What went over the network.

    Attributes:
        jobs: How many jobs were answered.
        sent_bytes: Bytes of their blocks, repeated ones counted each time.
        received_bytes: Bytes of their results.
    """

    jobs: int = 0
    sent_bytes: int = 0
    received_bytes: int = 0


class ServerBackend(RemoteBackend):
    """Runs one block on a server, and asks again where a fault is not the block's.

    Args:
        server: The server.
        model_key: The model, as nnsight's servers know it.
        env: What nnsight sends along of the model's settings.
        traffic: Where to count.
    """

    def __init__(
        self, server: Server, model_key: str, env: dict[str, Any], traffic: Traffic
    ) -> None:
        super().__init__(model_key, host=server.host, api_key=server.key, env=env)
        self.server, self.traffic = server, traffic
        self.job: str | None = None
        self.last: Status | None = None
        self.display.enabled = self.display.enabled and sys.stderr.isatty()

    @property
    def model(self) -> str:
        """The model's name in errors."""
        return json.loads(self.model_key.partition(":")[2]).get("repo_id", self.model_key)

    def request(self, request: RequestModel, tracer: object) -> dict[str, Any] | None:
        """Send the block, wait, and fetch what it saved.

        Args:
            request: The envelope.
            tracer: The block.

        Returns:
            The saved values by name.

        Raises:
            RemoteRunError: In one of its kinds, if there is no result.
        """
        blob = self._serialize(tracer)
        return self.patiently(lambda: self._ask(request, blob))

    def patiently(self, act: Callable[[], Any]) -> Any:  # noqa: ANN401
        """Do something, again and again while the server's faults allow hope.

        Args:
            act: What to do.

        Returns:
            What it returns.

        Raises:
            ServerUnreachableError: If the last try ended in one.
        """
        for attempt in range(self.server.retries + 1):
            try:
                return act()
            except ServerUnreachableError as error:
                if attempt == self.server.retries:
                    raise
                pause = self.server.wait * 2**attempt
                _LOGGER.warning("%s Asking again in %g s.", error, pause)
                time.sleep(pause)
        raise AssertionError("the loop returns or raises")

    def submit(self, tracer: object) -> None:
        """Send the block and do not wait; `job` names it then.

        Args:
            tracer: The block.

        Raises:
            RemoteRunError: If the server does not take it.
        """
        blob = self._serialize(tracer)
        request = RequestModel(model_key=self.model_key, compress=self.compress, env=self.env)
        self.job = self.job_id = self.patiently(lambda: self._post(request, blob)).id

    def state_of(self, job: str) -> tuple[str, dict[str, Any] | None]:
        """Look after a block that was sent without waiting.

        Args:
            job: Its name on the server.

        Returns:
            ``"done"`` and the saved values; ``"running"``; ``"queued"``, which may be out of date:
            servers write where a job stands in the queue beside its run, and what is written last
            stays; ``"unknown"``, if the server has never heard of it, or not yet; or ``"lost"``,
            for a fault that was not the block's and for a result that is not kept any more.

        Raises:
            RemoteRunError: If the server does not answer, or the block failed.
        """
        self.job = job
        answer = self.patiently(lambda: self.server.ask(f"/response/{job}"))
        if answer is None:
            return "unknown", None
        response = ResponseModel.model_validate(answer)
        self.last = response.status
        if response.status == Status.COMPLETED:
            try:
                return "done", self.patiently(lambda: self.download_result(response.data))
            except _ResultGoneError:
                return "lost", None
        if response.status == Status.ERROR:
            error = failure(self.server, self.model, response.description)
            if not isinstance(error, ServerUnreachableError):
                raise error
            return "lost", None
        return "running" if response.status in _STARTED else "queued", None

    def _ask(self, request: RequestModel, blob: bytes) -> dict[str, Any] | None:
        self.job = self.last = None
        deadline = None if self.server.timeout is None else time.monotonic() + self.server.timeout
        try:
            socket = websocket.create_connection(
                self.ws_host + "/subscribe",
                header=[f"{name}: {value}" for name, value in self.server.headers.items()],
                timeout=_CONNECT_SECONDS,
            )
        except websocket.WebSocketBadStatusException as error:
            raise self.server.refused(error.status_code, "no subscription") from error
        except (websocket.WebSocketException, OSError) as error:
            raise self.server.unreachable(error) from error
        try:
            request.session_id = json.loads(socket.recv())["session_id"]
            self.job = self._post(request, blob).id
            return self._watch(socket, deadline)
        except (websocket.WebSocketException, OSError) as error:
            if isinstance(error, ServerUnreachableError | JobTimeoutError | PermissionError):
                raise
            raise self.server.unreachable(error) from error
        except KeyboardInterrupt as error:
            if self.job is not None:
                error.add_note(self._left())
            raise
        finally:
            socket.close()
            # That does nothing to a connection which the other side has ended.
            socket.shutdown()

    def _watch(self, socket: websocket.WebSocket, deadline: float | None) -> dict[str, Any] | None:
        """Read status after status until the job is done."""
        socket.settimeout(_LOOK_SECONDS)
        while True:
            if deadline is not None and time.monotonic() > deadline:
                raise JobTimeoutError(
                    f"There was no result within {self.server.timeout:g} s. {self._left()} Raise "
                    "`timeout` of the Server, or give the job less at once."
                )
            try:
                message = socket.recv()
            except websocket.WebSocketTimeoutException:
                self.display.refresh()
                continue
            if not message:
                raise self.server.unreachable("it ended the connection")
            response = self.parse(message)
            result = self.handle(response)
            if response.status == Status.COMPLETED:
                return result

    def _left(self) -> str:
        state = self.last.value.lower() if self.last is not None else "sent"
        return (
            f"Job {self.job} on {self.server.host} was {state}; a server cannot be told to drop "
            "it, so it runs to its end there, and its result is not fetched."
        )

    def note(self, response: ResponseModel) -> bool:
        """Show a status, and raise the error that it tells of.

        Args:
            response: The status.

        Returns:
            Whether the job is done.

        Raises:
            RemoteRunError: If the job failed.
        """
        self.display.update(response)
        if response.status != Status.LOG:
            self.last = response.status
        if response.meta is not None:
            self.meta = response.meta
        if response.status == Status.ERROR:
            raise failure(self.server, self.model, response.description)
        return response.status == Status.COMPLETED

    def _post(self, request: RequestModel, blob: bytes) -> ResponseModel:
        """Send the block; gives the first status, which names the job."""
        envelope = json.loads(request.metadata())
        if self.server.trusted is False:
            # Servers without accounts do as they are asked; others know from the key.
            envelope["trusted"] = False
        headers = {**self.server.headers, **_about_this_machine()}
        timeout = httpx.Timeout(_CONNECT_SECONDS, read=_READ_SECONDS)
        try:
            answer = httpx.post(
                f"{self.server.host}/request",
                data={"data": json.dumps(envelope)},
                files={"blob": ("request", blob, "application/octet-stream")},
                headers=headers,
                timeout=timeout,
            )
        except httpx.HTTPError as error:
            raise self.server.unreachable(error) from error
        if answer.status_code >= 400:
            raise self.server.refused(answer.status_code, detail_of(answer))
        self.traffic.sent_bytes += len(blob)
        return ResponseModel.model_validate_json(answer.text)

    def download_result(self, url: str | bytes | None) -> dict[str, Any] | None:
        """Fetch a result, if it is not here already, and restore it.

        Args:
            url: Where it is, or the result itself.

        Returns:
            The saved values by name.

        Raises:
            ResultTooLargeError: If it is larger than the server's settings allow.
            ServerUnreachableError: If it cannot be fetched.
            RemoteRunError: If it is not there any more.
        """
        if not url:
            return None
        content = bytes(url) if isinstance(url, bytes | bytearray) else self._fetched(url)
        self._check_size(len(content))
        self.traffic.jobs += 1
        self.traffic.received_bytes += len(content)
        return self.finalize(content)

    def _fetched(self, url: str) -> bytes:
        buffer = io.BytesIO()
        timeout = httpx.Timeout(_CONNECT_SECONDS, read=_READ_SECONDS)
        try:
            with httpx.stream("GET", url, timeout=timeout) as answer:
                if answer.status_code in _GONE:
                    raise _ResultGoneError(
                        f"The result of job {self.job} is not on {self.server.host} any more "
                        f"({answer.status_code}). Servers keep results for an hour or so: ask "
                        "again."
                    )
                answer.raise_for_status()
                self._check_size(int(answer.headers.get("Content-Length", 0)))
                for chunk in answer.iter_bytes():
                    buffer.write(chunk)
                    self._check_size(buffer.tell())
        except httpx.HTTPError as error:
            raise self.server.unreachable(error) from error
        return buffer.getvalue()

    def _check_size(self, n_bytes: int) -> None:
        if n_bytes > self.server.max_result_bytes:
            raise ResultTooLargeError(
                f"The result of job {self.job} has {n_bytes / 2**20:.3g} MiB or more, and "
                f"{self.server.max_result_bytes / 2**20:.3g} MiB are allowed. Ask for fewer "
                "quantities, layers or prompts at once (`batch_size`), or raise "
                "`max_result_bytes` of the Server."
            )


def _about_this_machine() -> dict[str, str]:
    """What servers may turn clients down by."""
    return {
        "ndif-timestamp": repr(time.time()),
        "nnsight-version": version("nnsight"),
        "python-version": sys.version,
    }
