"""A real NDIF server for the tests that are marked `ndif`, and clients of it."""

import importlib.util
import os
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

import pytest
from hub_cache import keep

import moe_interp as mi
from moe_interp.remote import VersionDifferenceWarning

# Its files run in the server's environment, and import what is there.
collect_ignore = ["rig"]

RIG = Path(__file__).parent / "rig"
ENVIRONMENT = Path(__file__).parents[2] / ".ndif" / "venv"


def rig(name):
    """A module of the rig, which is no package: its files also run in the server's environment."""
    spec = importlib.util.spec_from_file_location(f"ndif_rig_{name}", RIG / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def server(request, tmp_path_factory):
    """The server: one that runs already, where NDIF_STATE names its folder, or a new one."""
    if request.config.getoption("jaxtyping_packages"):
        pytest.fail("Code that travels must be as users have it, unchecked: use `make ndif`.")
    if running := os.environ.get("NDIF_STATE"):
        yield rig("server").Control(running)
        return
    checkpoints = rig("checkpoints").write(tmp_path_factory.mktemp("served"))
    install = ["bash", str(RIG / "install.sh"), str(ENVIRONMENT)]
    subprocess.run(install, env={**os.environ, "PYTHON": sys.executable}, check=True)
    # Ray puts sockets there, whose paths must be short.
    with tempfile.TemporaryDirectory(prefix="ndif-", ignore_cleanup_errors=True) as state:
        command = [sys.executable, str(RIG / "server.py"), str(ENVIRONMENT), checkpoints, state]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        # Its input ends with this process, even if that is killed, and it ends with its input.
        with subprocess.Popen(command, **pipes) as keeper:
            assert keeper.stdout.readline(), "the server did not start; the reason is above"
            yield rig("server").Control(state)
            keeper.stdin.close()


@pytest.fixture(scope="session")
def checkpoints(server):
    return server.checkpoints


@pytest.fixture(scope="session")
def hub_cache(checkpoints, tmp_path_factory):
    """What this machine would have of the hub: the models' files, as a download leaves them."""
    cache = tmp_path_factory.mktemp("hub")
    for folder in checkpoints.glob("*/*"):
        keep(cache, f"{folder.parent.name}/{folder.name}", folder)
    keep(cache, "tiny/absent", checkpoints / "tiny" / "mixtral")
    patch = pytest.MonkeyPatch()
    patch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
    yield cache
    patch.undo()


@pytest.fixture(scope="session")
def connect(server, hub_cache):
    """A function that loads a served model without weights."""

    def load(name, **settings):
        options = {"timeout": 240.0, "retries": 8, **settings}
        with warnings.catch_warnings():
            # The server has the last nnsight that this NDIF deploys models with.
            warnings.simplefilter("ignore", VersionDifferenceWarning)
            check = options.pop("check", True)
            there = mi.Server(server.url, **options)
            return mi.load_model(name, remote=there, check=check)

    return load
