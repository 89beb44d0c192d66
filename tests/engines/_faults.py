"""A federation of clients that fail as they are told."""

import json
import sys
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from _deployment import Deployment
from _process import Process

from lightning_fl_ext import run_local
from lightning_fl_ext.engines.local import Faults
from lightning_fl_ext.server import RoundRecord

APP = Path(__file__).with_name("faults_app")
DEFAULTS = tomllib.loads((APP / "pyproject.toml").read_text())["tool"]["flwr"]["app"]["config"]


class Federation(Deployment):
    """A deployment with one client for each name; the name's place is its partition.

    Args:
        folder: See :class:`Deployment`.
        names: The SuperNodes' names.
        secure: See :class:`Deployment`. If so, clients are known by these names, else by their places.

    Attributes:
        run_dir: Where a run leaves its checkpoints and ledger.
    """

    def __init__(self, folder: Path, *names: str, secure: bool = False) -> None:
        super().__init__(folder, secure=secure)
        self.names = names
        self.run_dir = self.folder / "run"
        self._orders = self.folder / "orders"
        self._orders.mkdir()

    def __enter__(self) -> Self:
        super().__enter__()
        try:
            config = {"num-partitions": len(self.names)}
            self.add_nodes({name: {"partition-id": i, **config} for i, name in enumerate(self.names)})
        except BaseException:
            self.close()
            raise
        return self

    def order(self, name: str, server_round: int | str, what: str) -> None:
        """Tell a client what to do in a round: ``raise``, or ``wait`` until it is released.

        ``"2-mask"`` is a step of round 2 under secure aggregation.
        """
        self._order(name, server_round).write_text(what)

    def wait_until_obeyed(self, name: str, server_round: int | str, timeout: float = 120.0) -> None:
        """Wait until the client is in the middle of its fit, or of a step."""
        self.nodes[name].wait_for(f"carrying out {self._order(name, server_round).name}\n", timeout)

    def release(self, name: str, server_round: int | str) -> None:
        """Let a client go on that waits."""
        self._order(name, server_round).unlink()

    def run(self, **config: object) -> Process:
        """Start a run that needs all clients; underscores in names stand for hyphens."""
        return self.submit(APP, self._config(config))

    def run_locally(self, faults: Faults | None = None, **config: object) -> None:
        """Run the app once more, in this process, where no order is carried out."""
        sys.path.insert(0, str(APP))
        from faults_app import client, server

        run_local(
            server.app, client.app, len(self.names), run_config=DEFAULTS | self._config(config), faults=faults
        )

    def rounds(self) -> list[RoundRecord]:
        """Read the run's rounds in its ledger."""
        lines = map(json.loads, (self.run_dir / "ledger.jsonl").read_text().splitlines())
        return [RoundRecord.from_json(line["round"]) for line in lines if line["event"] == "round"]

    def _config(self, config: Mapping[str, object]) -> dict[str, Any]:
        given = {key.replace("_", "-"): value for key, value in config.items()}
        paths = {"output-dir": self.run_dir, "orders": self._orders}
        config = {"min-clients": len(self.names), **paths, **given}
        return {key: str(value) if isinstance(value, Path) else value for key, value in config.items()}

    def _order(self, name: str, server_round: int | str) -> Path:
        return self._orders / f"{self.names.index(name)}-{server_round}"
