"""What the server of the tests leaves behind: nothing, however the one who started it ends."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

RIG = Path(__file__).parent / "rig"
# The server with one process in place of all of its own, which tells its id.
SCRIPT = f"""
import sys, time
sys.path.insert(0, {str(RIG)!r})
import server

def start(self):
    (self.state / "logs").mkdir()
    self.run("only", "sleep", "1000")
    print(self.processes["only"].pid, flush=True)

server.Server.start = start
"""
STARTER = "import subprocess, sys; subprocess.Popen(sys.argv[1:], stdin=subprocess.PIPE).wait()"


def is_running(pid):
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def ends(pid, seconds=20):
    deadline = time.monotonic() + seconds
    while is_running(pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    return not is_running(pid)


@pytest.fixture
def keeper(tmp_path):
    """The command of a server, up to how it goes on."""
    return [sys.executable, "-c", SCRIPT + "server.main()", "none", tmp_path, tmp_path]


def test_it_ends_with_its_input(keeper):
    with subprocess.Popen(keeper, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as kept:
        pid = int(kept.stdout.readline())
        assert is_running(pid)
        kept.stdin.close()
        assert kept.wait(20) == 0
    assert ends(pid)


def test_it_ends_if_who_started_it_is_killed(keeper):
    command = [sys.executable, "-c", STARTER, *map(str, keeper)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as starter:
        pid = int(starter.stdout.readline())
        assert is_running(pid)
        starter.kill()
    assert ends(pid)


def test_what_it_started_ends_if_it_is_killed_itself(keeper):
    with subprocess.Popen(keeper, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as kept:
        pid = int(kept.stdout.readline())
        assert is_running(pid)
        kept.kill()
    assert ends(pid)


def test_it_ends_when_it_is_told_to(keeper):
    with subprocess.Popen(keeper, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as kept:
        pid = int(kept.stdout.readline())
        kept.terminate()
        assert kept.wait(20) == 0
    assert ends(pid)
