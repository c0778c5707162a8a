"""The errors a caller may want to catch; every message says what was given, needed, and to do."""

from collections.abc import Iterable
from pathlib import Path


class MoEInterpError(Exception):
    """Base of every error that moe_interp raises on purpose beyond Python's own kinds."""


class NotMoEError(MoEInterpError, ValueError):
    """The model has no layer with routed experts."""


class UnsupportedArchitectureError(MoEInterpError, ValueError):
    """The model routes to experts in a way that is not known to be read exactly."""


class UnsupportedQuantityError(MoEInterpError, ValueError):
    """A layer of this architecture does not offer the quantity asked for."""


class UnsupportedVersionError(MoEInterpError, ImportError):
    """The installed nnsight or transformers lies outside the range that was tested."""


class MissingPackageError(MoEInterpError, ImportError):
    """An optional package that is needed for this is not installed."""


class RoutingMismatchError(MoEInterpError, RuntimeError):
    """What was read from a layer does not rebuild what the layer computed."""


class PromptError(MoEInterpError, ValueError):
    """A prompt, a prompt file or a prompt set cannot be used as given."""


class SpanError(MoEInterpError, ValueError):
    """The tokens of a span cannot be located in a prompt."""


class DesignError(MoEInterpError, ValueError):
    """The prompts' design cannot answer the question asked of it."""


class ResultExistsError(MoEInterpError, FileExistsError):
    """The place to write to already holds a result."""

    @classmethod
    def unless_free(
        cls, folder: str | Path, names: Iterable[str], *, what: str, force: bool
    ) -> None:
        """Refuse a folder that already holds files of a result, before any time is spent.

        Args:
            folder: Where a result is to be written.
            names: The files of a result.
            what: What is to be written, for the message.
            force: Whether an older result may be replaced.

        Raises:
            ResultExistsError: If one of them stands there and `force` is not set, or the folder
                is a file.
        """
        folder = Path(folder)
        if folder.exists() and not folder.is_dir():
            raise cls(f"{str(folder)!r} is a file; {what} needs a folder to write to.")
        standing = [name for name in names if (folder / name).exists()]
        if standing and not force:
            raise cls(
                f"{str(folder)!r} already holds a result ({', '.join(standing)}). "
                "Choose another folder, or pass --force (force=True) to replace it."
            )


class ResultError(MoEInterpError, ValueError):
    """A stored record or result cannot be read as one."""


class StoreFullError(MoEInterpError, OSError):
    """The disk has no room for the next part of a store; what is there is safe."""


class TuningError(MoEInterpError, RuntimeError):
    """Training went wrong: a loss that is no number, or a change where none was allowed."""


class RemoteRunError(MoEInterpError, RuntimeError):
    """A run on a server failed; the children of this error say how."""


class ServerUnreachableError(RemoteRunError, ConnectionError):
    """The server does not answer, or answers that it cannot work now."""


class ApiKeyError(RemoteRunError, PermissionError):
    """The server wants an API key, or does not know the one it was given."""


class ModelNotServedError(RemoteRunError):
    """The server does not run the model and could not start it."""


class JobTimeoutError(RemoteRunError, TimeoutError):
    """A job took longer than the server allows, or than the caller wanted to wait."""


class ResultTooLargeError(RemoteRunError):
    """What a job would send back is larger than the caller allows."""


class RemoteBodyError(RemoteRunError):
    """The block raised an error on the server."""


class UnsupportedOnServerError(RemoteRunError):
    """What is asked for cannot be done on this server; nothing was sent."""
