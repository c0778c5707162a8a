"""A model on a server: what has to be known before its first job, and how each job is sent."""

import platform
import warnings
from importlib.metadata import version
from typing import Any

import nnsight
from nnsight.modeling.transformers import TransformersModel

from moe_interp.errors import UnsupportedOnServerError
from moe_interp.remote._backend import ServerBackend, Traffic
from moe_interp.remote._server import Server

_PACKAGE = "moe_interp"
_COMPARED = ("nnsight", "transformers", "torch")


class VersionDifferenceWarning(UserWarning):
    """The server computes with other releases than those of this machine."""


class Connection:
    """A model on a server.

    Args:
        server: The server.
        model_key: The model, as nnsight's servers know it.
        package_version: The release of this package here.

    Attributes:
        server: The server.
        traffic: What went over the network.
    """

    def __init__(self, server: Server, model_key: str, package_version: str) -> None:
        self.server, self.model_key = server, model_key
        self.package_version = package_version
        self.traffic = Traffic()
        self._trusted = server.trusted
        self._is_known = False

    def backend(self, model: TransformersModel) -> ServerBackend:
        """How one block of the model is run there.

        Args:
            model: The model.

        Returns:
            A backend, for one block.

        Raises:
            RemoteRunError: If the server does not tell what it runs; asked once.
        """
        env = model._remoteable_get_env()
        backend = ServerBackend(self.server, self.model_key, env, self.traffic)
        if not self._is_known:
            self._get_to_know(backend.patiently(lambda: self.server.get("/env")))
        return backend

    def is_trusted(self) -> bool:
        """Whether blocks run beside the weights, so that gradients can be had.

        Returns:
            What the settings say, or else the server; asked once.

        Raises:
            RemoteRunError: If the server does not tell.
        """
        if self._trusted is None:
            identity = self.server.get("/whoami")
            # Without accounts a server knows nobody, and trusts everybody.
            self._trusted = identity.get("email") is None or "trusted" in identity["tags"]
        return self._trusted

    def require_trust(self, what: str, instead: str) -> None:
        """Refuse what the sandbox of a server cannot do, before anything is sent.

        Args:
            what: What is asked for.
            instead: What can be done in its place.

        Raises:
            UnsupportedOnServerError: If the key's blocks run in the sandbox.
        """
        if not self.is_trusted():
            raise UnsupportedOnServerError(
                f"{what} needs gradients, which do not reach code in the sandbox where "
                f"{self.server.host} runs what this API key sends. {instead}, or ask the server's "
                "operators for the `trusted` tag."
            )

    def _get_to_know(self, there: dict[str, Any]) -> None:
        """Ship this package along where the server lacks it, and name other releases."""
        packages = there.get("packages", {})
        if packages.get(_PACKAGE) != self.package_version:
            nnsight.register(_PACKAGE)
        here = {name: version(name) for name in _COMPARED}
        differing = [
            f"{name} {packages[name]} (here {found})"
            for name, found in here.items()
            if name in packages and _release(packages[name]) != _release(found)
        ]
        python = there.get("python_version", "").split(" ")[0]
        if python and _minor(python) != _minor(platform.python_version()):
            differing.append(f"Python {python} (here {platform.python_version()})")
        self._is_known = True
        if differing:
            warnings.warn(
                f"{self.server.host} computes with {', '.join(differing)}. Access was tested with "
                "the releases here; the self-check of load_model tells whether it holds there.",
                VersionDifferenceWarning,
                stacklevel=2,
            )


def _release(number: str) -> str:
    """A version without what tells builds of one release apart."""
    return number.partition("+")[0]


def _minor(number: str) -> tuple[str, ...]:
    return tuple(number.split(".")[:2])
