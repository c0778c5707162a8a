"""From what NDIF says of a job that failed to an error that says what to do."""

from moe_interp.errors import (
    JobTimeoutError,
    ModelNotServedError,
    RemoteBodyError,
    RemoteRunError,
    ServerUnreachableError,
)
from moe_interp.remote._server import Server

# Sentences of NDIF 0.1.2 for faults that are not the job's; the same job may work next time.
_PASSING = (
    "Error submitting request to model deployment",
    "Error provisioning model",
    "Error starting model",
    "Replica was evicted",
    "Critical server error",
    "Your job was cancelled or preempted",
)


def failure(server: Server, model: str, said: str) -> RemoteRunError:
    """The error for a job that the server ended.

    Args:
        server: The server.
        model: The model, as it knows it.
        said: Its description: a sentence if it turned the job down, a traceback if the block
            raised an error.

    Returns:
        The error; a `ServerUnreachableError` if trying again may help.
    """
    said = server.without_key(said.strip())
    first = next(iter(said.splitlines()), "it gave no reason")
    if said.startswith(_PASSING):
        return ServerUnreachableError(
            f"The NDIF server {server.host} lost the job ({first}) Try again later."
        )
    if said.startswith("Could not deploy this model"):
        return ModelNotServedError(
            f"The NDIF server {server.host} does not run {model!r} ({first}) Ask for what it runs "
            "with nnsight.ndif.status(), or have the model deployed."
        )
    if "exceeded the execution timeout" in first:
        return JobTimeoutError(
            f"The NDIF server {server.host} ended the job at its time limit ({first}) Give it "
            "less at once: a smaller `batch_size`, fewer layers or fewer tokens."
        )
    if "architecture on this server doesn't match" in said:
        return RemoteRunError(
            f"The NDIF server {server.host} builds {model!r} from other modules than this machine "
            f"({first}) Install its release of transformers; nnsight.ndif.compare() shows it."
        )
    if said.startswith("Your request payload could not be read"):
        return RemoteRunError(
            f"The NDIF server {server.host} cannot read what was sent: {first} Code that it does "
            "not have travels along only if nnsight.register(...) names its package."
        )
    if "Traceback" in said or "Error" in said.splitlines()[-1]:
        error = RemoteBodyError(
            f"The block raised an error on the NDIF server: {said.splitlines()[-1]}"
        )
        error.add_note(said)
        return error
    return RemoteRunError(f"The NDIF server {server.host} ended the job: {first}")
