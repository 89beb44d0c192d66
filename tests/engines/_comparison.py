"""Trains one federation on every engine, and compares what comes out: ``make engines``.

Thirteen strategies, one or two rounds, three of four clients in each: in this process, on Flower's Ray
simulation with one and with two actors, and on a SuperLink with four SuperNodes, which are processes of
their own and talk TLS. Prints a table; exits with 1 if a digest differs from that of this process. It takes
about eight minutes on two cores.
"""

import contextlib
import json
import logging
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

HERE = Path(__file__).parent
APP = HERE / "compared_app"
sys.path[:0] = [str(HERE), str(APP)]

from _deployment import Deployment  # noqa: E402

REFERENCE = "this process"
TIMEOUT = 1500.0
THREADS_AS_GIVEN = {"OMP_NUM_THREADS": None}
"""Engines give clients different numbers of threads, unless this says otherwise."""


@dataclass(frozen=True)
class Outcome:
    """What one engine made of the federation.

    Attributes:
        folder: Holds a folder with the ledger of each strategy.
        digests: Digest of the final model by strategy.
        seconds: What the fit took by strategy.
        total: Seconds with starting and stopping everything.
    """

    folder: Path
    digests: dict[str, str]
    seconds: dict[str, float]
    total: float

    def ledger(self, strategy: str) -> bytes:
        """Read the ledger of a strategy: who took part in each round with which update, what came of it."""
        return (self.folder / strategy / "ledger.jsonl").read_bytes()


def run_here(folder: Path, strategies: str) -> None:
    """Run the two apps in this process."""
    import compared_app

    from lightning_fl_ext import run_local

    run_config = {"run-dir": str(folder), "strategies": strategies}
    with (folder / "log").open("w") as log, contextlib.redirect_stdout(log):
        run_local(compared_app.server, compared_app.client, compared_app.CLIENTS, run_config=run_config)


def simulate(folder: Path, strategies: str, actors: int) -> None:
    """Have `flwr run` simulate the clients on Ray: two processors, one or two of them for each client."""
    simulation = {
        "num-supernodes": 4,
        "client-resources-num-cpus": 2 // actors,
        "init-args-num-cpus": 2,
    }
    with Deployment(folder / "servers", simulation=True, env=THREADS_AS_GIVEN) as deployment:
        config = {"run-dir": str(folder), "strategies": strategies}
        deployment.submit(APP, config, simulation).wait(TIMEOUT)


def deploy(folder: Path, strategies: str) -> None:
    """Have `flwr run` reach four SuperNodes, registered under the names that the clients have elsewhere."""
    nodes = {str(i): {"partition-id": i, "num-partitions": 4} for i in range(4)}
    with Deployment(folder / "servers", secure=True, env=THREADS_AS_GIVEN) as deployment:
        deployment.add_nodes(nodes)
        deployment.submit(APP, {"run-dir": str(folder), "strategies": strategies}).wait(TIMEOUT)


ENGINES: dict[str, Callable[[Path, str], None]] = {
    REFERENCE: run_here,
    "Ray simulation, 1 actor": lambda folder, strategies: simulate(folder, strategies, 1),
    "Ray simulation, 2 actors": lambda folder, strategies: simulate(folder, strategies, 2),
    "SuperLink, 4 SuperNodes": deploy,
}


def compare(
    folder: Path,
    say: Callable[[str], object] = print,
    strategies: Sequence[str] = (),
    engines: Mapping[str, Callable[[Path, str], None]] = ENGINES,
) -> dict[str, Outcome]:
    """Run the federation on every engine.

    Args:
        folder: Where everything is kept: ledgers, and the logs of all servers.
        say: Told of each engine as it begins and ends.
        strategies: Their names; all if there are none.
        engines: What runs them, by name.
    """
    outcomes = {}
    for i, (engine, run) in enumerate(engines.items()):
        say(f"{engine} ...")
        own = folder / str(i)
        own.mkdir(parents=True)
        start = time.perf_counter()
        run(own, " ".join(strategies))
        total = time.perf_counter() - start
        if not (own / "outcome.json").exists():
            logs = "\n".join(f"{log}:\n{log.read_text()}" for log in sorted(own.rglob("log")))
            raise RuntimeError(f"{engine}: the run did not come to its end\n{logs}")
        told = json.loads((own / "outcome.json").read_text())
        digests = {strategy: of["digest"] for strategy, of in told.items()}
        seconds = {strategy: of["seconds"] for strategy, of in told.items()}
        outcomes[engine] = Outcome(own, digests, seconds, total)
        say(f"{engine}: {total:.0f} s")
    return outcomes


def table(outcomes: dict[str, Outcome]) -> Table:
    """Show digests and seconds by strategy and engine, and whether the digests are those of this process."""
    shown = Table("strategy", *outcomes, "equal")
    for strategy, digest in outcomes[REFERENCE].digests.items():
        cells = [f"{of.digests[strategy][:8]} {of.seconds[strategy]:5.1f} s" for of in outcomes.values()]
        equal = all(of.digests[strategy] == digest for of in outcomes.values())
        shown.add_row(strategy, *cells, "yes" if equal else "NO")
    shown.add_section()
    shown.add_row("with starting all", *(f"{of.total:14.0f} s" for of in outcomes.values()))
    return shown


def main() -> None:
    logging.getLogger("flwr").setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory(prefix="engines-") as folder:
        outcomes = compare(Path(folder))
    Console(width=130).print(table(outcomes))
    reference = outcomes[REFERENCE].digests
    sys.exit(any(outcome.digests != reference for outcome in outcomes.values()))


if __name__ == "__main__":
    main()
