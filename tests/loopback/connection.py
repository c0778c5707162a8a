"""A connection whose server is the process of `worker.py`: for whole functions of the library."""

from types import SimpleNamespace

from loopback.backend import Loopback

from moe_interp.errors import UnsupportedOnServerError


class LoopbackConnection:
    """What a model's `connection` is asked for, answered by a worker.

    Args:
        worker: The worker.
        trusted: Whether it lets gradients through.
    """

    def __init__(self, worker, model, *, trusted=True):
        self.worker, self.model, self.trusted = worker, model, trusted
        self.server = SimpleNamespace(host="a worker")
        self.jobs = 0

    def backend(self, nnsight):
        self.jobs += 1
        return Loopback(self.model, self.worker)

    def is_trusted(self):
        return self.trusted

    def require_trust(self, what, instead):
        if not self.trusted:
            raise UnsupportedOnServerError(f"{what} needs gradients. {instead}.")


def on_worker(model, worker):
    """The model with its blocks run by the worker; it must have been loaded from a folder."""
    model.connection = LoopbackConnection(worker, model)
    return model
