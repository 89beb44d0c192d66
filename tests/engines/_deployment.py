"""SuperLink, SuperNodes and `flwr run` as real processes on loopback."""

import contextlib
import json
import os
import socket
import ssl
import subprocess
import sys
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from _certificates import make_certificates, make_key
from _process import Process

import lightning_fl_ext

_CONNECTION = "loopback"
ENVIRONMENT = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
    "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.2",
    "RAY_USAGE_STATS_ENABLED": "0",
    "PYTHONUNBUFFERED": "1",
    "COLUMNS": "200",
}


class Deployment(contextlib.ExitStack):
    """A SuperLink and any number of SuperNodes, each with a port, a folder and a ``FLWR_HOME`` of its own.

    Entered, the SuperLink answers its health check. Left, in whichever way, every process that was started
    has ended, SuperNodes first. Logs stay: ``<folder>/superlink/log``, ``<folder>/<name of the node>/log``,
    ``<folder>/run-<i>/log``.

    Args:
        folder: A folder of its own.
        secure: Whether everything goes over TLS and SuperNodes authenticate with registered keys.
        simulation: Whether runs are simulated with Ray; there are no SuperNodes then.
        env: Set in the environment of all processes; None takes a variable out.

    Attributes:
        superlink: The SuperLink's process.
        nodes: The SuperNodes' processes by name.

    Example::

        with Deployment(folder) as deployment:
            deployment.add_nodes({f"site-{i}": {"partition-id": i, "num-partitions": 3} for i in range(3)})
            run = deployment.submit(app, {"num-server-rounds": 2})
            run.wait_for("round 1/2", timeout=60)
            deployment.nodes["site-1"].kill()
            run.wait(timeout=120)
            deployment.nodes["site-1"].start()
    """

    def __init__(
        self,
        folder: Path,
        *,
        secure: bool = False,
        simulation: bool = False,
        env: Mapping[str, str | None] | None = None,
    ) -> None:
        super().__init__()
        self.folder = folder.resolve()
        self.nodes: dict[str, Process] = {}
        self._runs = 0
        env = {**os.environ, **ENVIRONMENT, **paths(), **(env or {})}
        self._env = {name: value for name, value in env.items() if value is not None}
        self._tls = self.folder / "tls" if secure else None
        self._port = free_port()
        command = ["flower-superlink", "--database", "state.db", "--disable-runtime-dependency-installation"]
        command += ["--simulation"] if simulation else []
        if self._tls:
            make_certificates(self._tls)
            command += ["--ssl-ca-certfile", self._tls / "ca.crt", "--enable-supernode-auth"]
            command += ["--ssl-certfile", self._tls / "server.pem", "--ssl-keyfile", self._tls / "server.key"]
        else:
            command += ["--insecure"]
        self.superlink = self._server("superlink", command, self._port, self._tls)
        home = self.folder / "user" / "flwr"
        home.mkdir(parents=True)
        trust = f'root-certificates = "{self._tls / "ca.crt"}"' if self._tls else "insecure = true"
        connection = f'[superlink.{_CONNECTION}]\naddress = "127.0.0.1:{self._port}"\n{trust}\n'
        (home / "config.toml").write_text(connection)

    def __enter__(self) -> Self:
        super().__enter__()
        self.callback(self.superlink.stop)
        try:
            self.superlink.start()
        except BaseException:
            self.close()
            raise
        return self

    def add_nodes(self, configs: Mapping[str, Mapping[str, Any]]) -> None:
        """Start SuperNodes side by side, and wait until the SuperLink knows them.

        Args:
            configs: The node config of each by its name, which is its folder's, and the one that it is
                registered with if connections are secure.
        """
        for name, config in configs.items():
            command = ["flower-supernode", "--superlink", f"127.0.0.1:{self._port}"]
            command += ["--node-config", _as_toml(config)]
            if self._tls:
                self.register(name)
                command += ["--root-certificates", self._tls / "ca.crt"]
                command += ["--auth-supernode-private-key", self._tls / name]
            else:
                command += ["--insecure"]
            node = self.nodes[name] = self._server(name, command, free_port(), says="SuperNode ID:")
            self.callback(node.stop)
            node.launch()
        # Runs after the runs are stopped and before any node is: they end side by side.
        self.callback(lambda: [self.nodes[name].terminate() for name in configs])
        for name in configs:
            self.nodes[name].wait_until_ready()

    def register(self, name: str) -> None:
        """Make a key for a SuperNode, and have the SuperLink know it by the name."""
        assert self._tls, "only secure connections know names"
        key = make_key(self._tls / name)
        self.flwr("supernode", "register", f"{key}.pub", _CONNECTION, "--name", name)

    def unregister(self, name: str) -> None:
        """Have the SuperLink forget a SuperNode and its key."""
        node_id = self.nodes[name].log.split("SuperNode ID: ")[1].split()[0]
        self.flwr("supernode", "unregister", node_id, _CONNECTION)

    def submit(
        self,
        app: Path,
        run_config: Mapping[str, Any] | None = None,
        federation_config: Mapping[str, Any] | None = None,
    ) -> Process:
        """Start ``flwr run --stream``.

        Args:
            app: The app's folder.
            run_config: What differs from the app's own.
            federation_config: How to simulate.

        Returns:
            The command's process, which ends when the run has, however that went. Its log holds the run's.
        """
        command = ["flwr", "run", app.resolve(), _CONNECTION, "--stream"]
        command += ["--run-config", _as_toml(run_config)] if run_config else []
        command += ["--federation-config", _as_toml(federation_config)] if federation_config else []
        run = Process(command, self.folder / f"run-{self._runs}", self._environment("user"))
        self._runs += 1
        self.callback(run.stop)
        run.start()
        return run

    def flwr(self, *arguments: object) -> str:
        """Run Flower's command line as the user who submits runs, and give what it says.

        Raises:
            RuntimeError: It failed.
        """
        command = ["flwr", *map(str, arguments)]
        done = subprocess.run(
            command, env=self._environment("user"), capture_output=True, text=True, timeout=60
        )
        if done.returncode:
            raise RuntimeError(f"`{' '.join(command)}` failed:\n{done.stdout}{done.stderr}")
        return done.stdout

    def status(self, run: Process) -> str:
        """Ask the SuperLink how a run is: ``running``, ``finished:completed``, ``finished:failed``, ..."""
        said = run.wait_for("Successfully started run", timeout=30)
        run_id = said.split("Successfully started run ")[1].split()[0]
        answer = self.flwr("list", _CONNECTION, "--run-id", run_id, "--format", "json")
        return str(json.loads(answer[answer.index("{") :])["runs"][0]["status"])

    def _server(
        self, name: str, command: list[Any], port: int, tls: Path | None = None, says: str = ""
    ) -> Process:
        command = [*command, "--host", "127.0.0.1", "--port", port]
        trust = ssl.create_default_context(cafile=tls / "ca.crt") if tls else None
        url = f"{'https' if tls else 'http'}://127.0.0.1:{port}/health"

        def is_ready(process: Process) -> bool:
            if says not in process.log:
                return False
            with contextlib.suppress(OSError), urllib.request.urlopen(url, timeout=5, context=trust):
                return True
            return False

        return Process(command, self.folder / name, self._environment(name), is_ready)

    def _environment(self, name: str) -> dict[str, str]:
        return {**self._env, "FLWR_HOME": str(self.folder / name / "flwr")}


def free_port() -> int:
    """Find a port on loopback that nothing listens on."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def paths() -> dict[str, str]:
    """Have the processes find this environment's programs and this copy of the package."""
    first = {"PATH": Path(sys.executable).parent, "PYTHONPATH": Path(lightning_fl_ext.__file__).parents[1]}
    return {name: f"{path}{os.pathsep}{os.environ.get(name, '')}" for name, path in first.items()}


def _as_toml(config: Mapping[str, Any]) -> str:
    """Write settings as Flower's command line takes them."""
    return " ".join(f"{key}={json.dumps(value)}" for key, value in config.items())
