"""What a run's folder tells about it: the ledger, read."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from lightning_fl_ext.server.durability.ledger import LedgerError, check_lines, verify_ledger
from lightning_fl_ext.server.record import RoundRecord
from lightning_fl_ext.server.screening.rejection import Reason, Rejection

SETTINGS_FILE = "run.toml"
"""Where the command line leaves what a run was told, beside the ledger."""


@dataclass(frozen=True)
class Contribution:
    """A client's part of a round that counted.

    Attributes:
        client_id: Whose.
        num_examples: Its weight in the mean.
        score: The update's deterministic score, as written.
        digest: Digest of the update.
        file: Name of the kept update within the round's folder; ``""`` if it was not kept.
    """

    client_id: str
    num_examples: int
    score: str
    digest: str
    file: str = ""


@dataclass(frozen=True)
class History:
    """A run, as its ledger tells it.

    Attributes:
        folder: Where the run is.
        fingerprint: Model, strategy, seed, exchange and screening, as plain data.
        told: What the command line was told, if that made the run: the settings in ``run.toml``, which the
            ledger does not vouch for.
        rounds: A record of every round, by round.
        contributions: For each round, by its number, the clients whose updates counted, by id.
        finished: Whether the last line says that the run ended.
        head: Hash of the last line.
        test: How the final model did on the test data, if it was tested.
        problems: What is wrong with the ledger, one sentence each; empty if it is sound.
    """

    folder: Path
    fingerprint: Mapping[str, Any] = field(default_factory=dict)
    told: Mapping[str, Any] = field(default_factory=dict)
    rounds: tuple[RoundRecord, ...] = ()
    contributions: Mapping[int, Mapping[str, Contribution]] = field(default_factory=dict)
    finished: bool = False
    head: str = ""
    test: RoundRecord | None = None
    problems: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The folder's name."""
        return self.folder.name

    @property
    def digest(self) -> str:
        """Digest of the weights after the last round; ``""`` before the first."""
        return self.rounds[-1].digest if self.rounds else ""

    @property
    def clients(self) -> list[str]:
        """Ids of all clients that were asked, counted or were left out, sorted."""
        seen = {
            client
            for record in self.rounds
            for client in (*record.sampled, *record.accepted, *(r.client_id for r in record.rejected))
        }
        return sorted(seen)


def left_out(record: RoundRecord) -> list[Rejection]:
    """Give the clients whose update or evaluation was left out of a round.

    A client without examples is not: it had nothing to give. Nor is one of which a metric alone is missing.
    """
    return [r for r in record.rejected if r.reason not in (Reason.METRIC, Reason.IDLE)]


def read_history(path: str | Path) -> History:
    """Read the ledger of a run.

    Args:
        path: The run's folder, or its ``ledger.jsonl``.

    Returns:
        What could be read; ``problems`` says what is wrong with the rest.

    Raises:
        LedgerError: There is no ledger, or it has no readable line.
    """
    report = verify_ledger(path)
    file = Path(path) / "ledger.jsonl" if Path(path).is_dir() else Path(path)
    lines, _ = check_lines(file.read_bytes())
    if not lines:
        raise LedgerError(f"`{file}` is no ledger: {'; '.join(report.problems)}")
    folder = file.resolve().parent
    history = History(folder, told=_read_told(folder), finished=report.finished, head=report.head)
    problems, rounds, contributions = list(report.problems), {}, {}
    for line in lines:
        try:
            if line["event"] == "start":
                history = replace(history, fingerprint=dict(line["fingerprint"]))
            elif line["event"] == "round":
                record = _read_record(line["round"])
                rounds[record.server_round] = record
                entries = [Contribution(**entry) for entry in line["accepted"]]
                contributions[record.server_round] = {entry.client_id: entry for entry in entries}
            elif line["event"] == "end" and "test" in line:
                history = replace(history, test=_read_record(line["test"]))
        except (AttributeError, KeyError, OverflowError, TypeError, ValueError):
            problems.append(f"entry {line['index']} does not hold what a ledger's entries hold")
    return replace(
        history,
        rounds=tuple(rounds[number] for number in sorted(rounds)),
        contributions=contributions,
        problems=tuple(problems),
    )


def _read_told(folder: Path) -> dict[str, Any]:
    try:
        content = tomllib.loads((folder / SETTINGS_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    told: dict[str, Any] = {}
    for key, value in content.items():
        told |= {f"{key} {k}": v for k, v in value.items()} if isinstance(value, dict) else {key: value}
    return told


def _read_record(data: Mapping[str, Any]) -> RoundRecord:
    record = RoundRecord.from_json(data)
    names = (*record.sampled, *record.accepted, record.digest, *record.metrics, *record.sites)
    numbers = (record.server_round, *record.metrics.values())
    texts = [text for rejection in record.rejected for text in vars(rejection).values()]
    if not (
        all(isinstance(name, str) for name in names)
        and all(isinstance(number, int | float) for number in numbers)
        and all(isinstance(text, str | int) for text in texts)
    ):
        raise ValueError
    return replace(record, metrics={name: float(value) for name, value in record.metrics.items()})
