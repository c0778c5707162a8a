"""A stand-in for an NDIF server: it speaks NDIF's protocol, and really runs what it is sent.

Jobs are run by a process of `loopback`, which cannot import this project. What is not as on the
real one: nothing is queued, no key is wanted, and blocks run beside the weights.
"""

import tempfile
from contextlib import contextmanager
from pathlib import Path

import huggingface_hub.constants
from fake_ndif import FakeNDIF
from hub_cache import keep
from loopback.backend import Worker


@contextmanager
def stand_in(checkpoints, script=("run",)):
    """A running server of checkpoints, which this machine finds under their names as well.

    Args:
        checkpoints: The folder of each model, by hub id.
        script: As in `FakeNDIF`.
    """
    found, worker = huggingface_hub.constants.HF_HUB_CACHE, Worker()
    with tempfile.TemporaryDirectory() as cache:
        for name, folder in checkpoints.items():
            keep(Path(cache), name, Path(folder).resolve())
        huggingface_hub.constants.HF_HUB_CACHE = cache
        # Nobody has an account on it, as on a real one that was set up without.
        facts = {"/whoami": {"email": None, "tags": []}}
        server = FakeNDIF(script, facts=facts, worker=worker, checkpoints=checkpoints)
        try:
            yield server
        finally:
            huggingface_hub.constants.HF_HUB_CACHE = found
            server.close()
            worker.close()
