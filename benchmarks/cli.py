"""How much processor time the command line takes, against `python -c "import lightning"`.

    python benchmarks/cli.py

Processor time, user and system, of a process of its own: the least of several. A busy machine slows all of
them; compare the lines with each other.
"""

from __future__ import annotations

import resource
import subprocess
import sys
import tempfile
from pathlib import Path

from lightning_fl_ext.server.durability.ledger import GENESIS, make_line
from lightning_fl_ext.server.record import RoundRecord, SiteEvaluation

ROUNDS, CLIENTS = 200, 50
CLI = (sys.executable, "-m", "lightning_fl_ext")


def write_run(folder: Path) -> None:
    """Write the ledger of a run with evaluations at every site."""
    clients = tuple(f"site-{i:02d}" for i in range(CLIENTS))
    lines, head = [], GENESIS
    head, line = make_line(head, 0, "start", {"fingerprint": {"strategy": "ExactFedAvg", "seed": 0}})
    lines.append(line)
    entry = {"num_examples": 100, "score": "1.0", "digest": "d" * 64, "file": ""}
    for number in range(1, ROUNDS + 1):
        f1 = 1 - 1 / (number + 1)
        sites = {c: SiteEvaluation(100, {"val_f1": f1, "val_loss": 1 - f1}) for c in clients}
        metrics = {"val_f1": f1, "val_loss": 1 - f1, "train_loss": 1 - f1, "bytes_up": 1e6, "bytes_down": 1e6}
        record = RoundRecord(number, clients, clients, metrics=metrics, digest="a" * 64, sites=sites)
        content = {"round": record.to_json(), "accepted": [{"client_id": c, **entry} for c in clients]}
        head, line = make_line(head, number, "round", content)
        lines.append(line)
    (folder / "ledger.jsonl").write_bytes(b"".join(lines))


def seconds(*command: str, times: int = 3) -> float:
    """Give the processor time of a command."""

    def spent() -> float:
        usage = resource.getrusage(resource.RUSAGE_CHILDREN)
        return usage.ru_utime + usage.ru_stime

    found = []
    for _ in range(times):
        before = spent()
        subprocess.run(command, check=True, capture_output=True)
        found.append(spent() - before)
    return min(found)


def main() -> None:
    """Measure and print."""
    with tempfile.TemporaryDirectory() as name:
        write_run(Path(name))
        rows = {
            'python -c "import lightning"': seconds(sys.executable, "-c", "import lightning"),
            "lightning-fl-ext --help": seconds(*CLI, "--help"),
            f"lightning-fl-ext show, {ROUNDS} rounds of {CLIENTS} clients": seconds(*CLI, "show", name),
        }
    for what, time in rows.items():
        print(f"{what:55} {time:5.2f} s")


if __name__ == "__main__":
    main()
