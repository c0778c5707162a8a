"""Server: which NDIF server runs a model, with what key, and how patiently it is waited for."""

import os
from dataclasses import dataclass, field
from typing import Any

import httpx
from nnsight.schema.config import CONFIG

from moe_interp.errors import ApiKeyError, RemoteRunError, ServerUnreachableError

_CONNECT_SECONDS = 10.0
_ANSWER_SECONDS = 60.0


@dataclass(frozen=True)
class Server:
    """An NDIF server, and how to deal with it.

    Attributes:
        host: Its address, ``https://...``.
        key: The API key, which is never shown; the one of nnsight's configuration or of the
            environment variable ``NDIF_API_KEY`` if not given.
        timeout: Seconds to wait for one job, queue included; None waits as long as it takes.
        retries: How often a job is asked for again after a fault of connection or server.
        wait: Seconds before the first of these; each further wait is twice as long.
        max_result_bytes: The largest result of one job that is fetched.
        trusted: Whether the key may run code beside the weights, which gradients need; None asks
            the server.
    """

    host: str = ""
    key: str = field(default="", repr=False)
    timeout: float | None = 3600.0
    retries: int = 5
    wait: float = 1.0
    max_result_bytes: int = 2**30
    trusted: bool | None = None

    def __post_init__(self) -> None:
        host = (self.host or CONFIG.API.HOST).rstrip("/")
        if not host.startswith(("http://", "https://")):
            raise ValueError(
                f"`host` must be an address that begins with http:// or https://, got {host!r}."
            )
        object.__setattr__(self, "host", host)
        key = self.key or os.environ.get("NDIF_API_KEY", "") or CONFIG.API.APIKEY or ""
        object.__setattr__(self, "key", key)

    @classmethod
    def of(cls, remote: "bool | str | Server") -> "Server":
        """The server that a `remote=` argument means.

        Args:
            remote: True for nnsight's configured server, an address, or a server.

        Returns:
            The server.

        Raises:
            TypeError: If it is something else.
            ValueError: If an address has no scheme.
        """
        if isinstance(remote, Server):
            return remote
        if remote is True:
            return cls()
        if isinstance(remote, str):
            return cls(remote)
        raise TypeError(
            f"`remote` must be True, the address of a server or a Server, got {remote!r}."
        )

    @property
    def headers(self) -> dict[str, str]:
        """What every request carries: the key, if there is one."""
        return {"ndif-api-key": self.key} if self.key else {}

    def get(self, path: str) -> dict[str, Any]:
        """Ask the server for a fact that it must know.

        Args:
            path: Where it is found.

        Returns:
            The answer.

        Raises:
            RemoteRunError: If it does not know it, or as `ask` does.
        """
        answer = self.ask(path)
        if answer is None:
            raise self.refused(404, f"there is no {path}")
        return answer

    def ask(self, path: str) -> dict[str, Any] | None:
        """Ask the server for a fact.

        Args:
            path: Where it is found.

        Returns:
            The answer; None if there is nothing.

        Raises:
            ServerUnreachableError: If the server does not answer, or with an error of its own.
            ApiKeyError: If it wants another key.
            RemoteRunError: If it refuses for another reason.
        """
        timeout = httpx.Timeout(_CONNECT_SECONDS, read=_ANSWER_SECONDS)
        try:
            answer = httpx.get(f"{self.host}{path}", timeout=timeout, headers=self.headers)
        except httpx.HTTPError as error:
            raise self.unreachable(error) from error
        if answer.status_code == 404:
            return None
        if answer.status_code >= 400:
            raise self.refused(answer.status_code, detail_of(answer))
        return answer.json()

    def unreachable(self, reason: object) -> ServerUnreachableError:
        """The error for a server that does not answer.

        Args:
            reason: What was seen instead.

        Returns:
            The error.
        """
        seen = self.without_key(str(reason) or type(reason).__name__)
        return ServerUnreachableError(
            f"The NDIF server {self.host} does not answer ({seen}). Check the address and the "
            "network; nothing is lost by trying again later."
        )

    def refused(self, status: int, detail: str) -> RemoteRunError:
        """The error for a request that the server turned down.

        Args:
            status: The HTTP status.
            detail: What the server said.

        Returns:
            The error, of the kind that the status means.
        """
        said = self.without_key(detail)
        if status in (401, 403) or "API key" in said:
            had = "does not know the API key it was given" if self.key else "wants an API key"
            return ApiKeyError(
                f"The NDIF server {self.host} {had} ({status}). Set the environment variable "
                "NDIF_API_KEY, or run `nnsight login`."
            )
        if status >= 500 or status == 429:
            return ServerUnreachableError(
                f"The NDIF server {self.host} cannot work now ({status}: {said}). Try again later."
            )
        return RemoteRunError(f"The NDIF server {self.host} refused ({status}: {said}).")

    def without_key(self, text: str) -> str:
        """A text in which the key does not stand.

        Args:
            text: What may hold it: servers quote malformed keys.

        Returns:
            The text with the key struck out.
        """
        return text.replace(self.key, "[hidden]") if self.key else text


def detail_of(answer: httpx.Response) -> str:
    """What a server says of its own to a request it turns down.

    Args:
        answer: Its answer.

    Returns:
        The reason, as it words it.
    """
    try:
        body = answer.json()
    except ValueError:
        return answer.text.strip()[:200] or answer.reason_phrase
    return str(body.get("detail", body) if isinstance(body, dict) else body)
