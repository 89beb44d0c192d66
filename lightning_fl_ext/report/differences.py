"""Where two runs first differ: the settings, then the round, the client, and the tensor."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from lightning_fl_ext.files import CHECKPOINTS, TornFilesError, arrays_from_bytes, read_folder
from lightning_fl_ext.report.history import Contribution, History
from lightning_fl_ext.report.tensors import TensorDifference, first_difference
from lightning_fl_ext.results import Arrays
from lightning_fl_ext.server.record import RoundRecord

_SHAPES_FITS = ("model", "data", "clients", "max-epochs", "model-option", "trainer-option", "client-option")

Pair = tuple[Any, Any]
"""A value in the one run and in the other; None where there is none."""


@dataclass(frozen=True)
class ClientDifference:
    """A client whose part in a round differs.

    Attributes:
        client_id: Whose.
        what: What differs: ``"update"``, ``"examples"``, ``"asked"``, ``"left out"``.
        values: What differs, in the one run and in the other.
    """

    client_id: str
    what: str
    values: Pair


@dataclass(frozen=True)
class Comparison:
    """What :func:`compare_runs` found.

    Attributes:
        settings: Settings that differ, by name.
        told: What the command line was told differently about the clients' fits, by name.
        rounds: Numbers of rounds of the two runs.
        server_round: The first round in which who took part, an update or the weights differ; None if they
            are equal in all rounds that both runs have.
        clients: Clients whose part in that round differs, by id.
        outcome: What else of the round differs: ``"weights"``, ``"void"``.
        tensor: The first tensor that differs, in the first client's update, or in the weights after the round
            where all updates are equal.
        tensor_of: Whose it is: a client id, or ``"weights"``; ``""`` if there is none.
        note: Why no tensor could be told; ``""`` if one was, or if there is nothing to tell.
        metrics_round: The first round in which a metric differs; None if all are equal.
        metrics: Metrics that differ in that round, by name.
    """

    settings: Mapping[str, Pair]
    told: Mapping[str, Pair]
    rounds: tuple[int, int]
    server_round: int | None = None
    clients: tuple[ClientDifference, ...] = ()
    outcome: Mapping[str, Pair] = field(default_factory=dict)
    tensor: TensorDifference | None = None
    tensor_of: str = ""
    note: str = ""
    metrics_round: int | None = None
    metrics: Mapping[str, Pair] = field(default_factory=dict)

    @property
    def equal(self) -> bool:
        """Whether the runs have the same settings, and the same rounds with the same outcome."""
        same_rounds = self.server_round is None and self.metrics_round is None
        return same_rounds and not self.settings and self.rounds[0] == self.rounds[1]


def compare_runs(left: History, right: History) -> Comparison:
    """Find the first round, client and tensor in which two runs differ.

    Digests tell rounds and clients. Tensors are read from the updates that both runs kept
    (``RoundLedger(keep_updates=True)``), or, where all updates of the round are equal, from checkpoints of
    that round.

    Args:
        left: One run.
        right: The other.

    Returns:
        What differs; nothing if the runs are equal.
    """
    settings = _pairs(left.fingerprint, right.fingerprint)
    both_told = left.told and right.told
    told = _pairs(left.told, right.told) if both_told else {}
    told = {key: pair for key, pair in told.items() if key.split(" ")[0] in _SHAPES_FITS}
    rounds = (len(left.rounds), len(right.rounds))
    ours = {record.server_round: record for record in left.rounds}
    theirs = {record.server_round: record for record in right.rounds}
    found = Comparison(settings, told, rounds)
    for number in sorted(ours.keys() & theirs.keys()):
        metrics = _pairs(ours[number].metrics, theirs[number].metrics)
        if metrics and found.metrics_round is None:
            found = replace(found, metrics_round=number, metrics=metrics)
        clients = _clients(left, right, ours[number], theirs[number])
        outcome = _outcome(ours[number], theirs[number])
        if clients or outcome:
            tensor, whose, note = _tensor(left, right, number, clients, outcome)
            return replace(
                found,
                server_round=number,
                clients=clients,
                outcome=outcome,
                tensor=tensor,
                tensor_of=whose,
                note=note,
            )
    return found


def _pairs(mine: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Pair]:
    keys = sorted({*mine, *other}, key=_importance)
    pairs = {key: (mine.get(key), other.get(key)) for key in keys}
    return {key: pair for key, pair in pairs.items() if not _same(*pair)}


def _importance(key: str) -> tuple[int, str]:
    """Order settings: the seed, the strategy, the rest, and last the model's arrays, which may be many."""
    ranks = {"seed": 0, "strategy": 1, "model": 3}
    return ranks.get(key.partition(".")[0], 2), key


def _clients(
    left: History, right: History, ours: RoundRecord, theirs: RoundRecord
) -> tuple[ClientDifference, ...]:
    number = ours.server_round
    mine, other = left.contributions.get(number, {}), right.contributions.get(number, {})
    found = []
    for client in sorted({*ours.sampled, *theirs.sampled, *mine, *other, *_reasons(ours), *_reasons(theirs)}):
        pairs: dict[str, Pair] = {
            "asked": (client in ours.sampled, client in theirs.sampled),
            "left out": (_reasons(ours).get(client), _reasons(theirs).get(client)),
            "examples": _attribute(mine.get(client), other.get(client), "num_examples"),
            "update": _attribute(mine.get(client), other.get(client), "digest"),
        }
        found += [ClientDifference(client, what, pair) for what, pair in pairs.items() if pair[0] != pair[1]]
    return tuple(found)


def _reasons(record: RoundRecord) -> dict[str, str]:
    reasons: dict[str, list[str]] = {}
    for r in record.rejected:
        reasons.setdefault(r.client_id, []).append(f"{r.reason} at {r.key}" if r.key else str(r.reason))
    return {client: ", ".join(sorted(listed)) for client, listed in reasons.items()}


def _attribute(mine: Contribution | None, other: Contribution | None, name: str) -> Pair:
    return getattr(mine, name, None), getattr(other, name, None)


def _outcome(ours: RoundRecord, theirs: RoundRecord) -> dict[str, Pair]:
    pairs: dict[str, Pair] = {"weights": (ours.digest, theirs.digest), "void": (ours.void, theirs.void)}
    return {what: pair for what, pair in pairs.items() if pair[0] != pair[1]}


def _same(mine: Any, other: Any) -> bool:
    both_nan = all(isinstance(v, float) and math.isnan(v) for v in (mine, other))
    return both_nan or mine == other


def _tensor(
    left: History,
    right: History,
    number: int,
    clients: tuple[ClientDifference, ...],
    outcome: Mapping[str, Pair],
) -> tuple[TensorDifference | None, str, str]:
    updates = [d.client_id for d in clients if d.what == "update" and None not in d.values]
    if updates:
        whose = updates[0]
        read: Callable[[History], Arrays] = lambda run: _kept_update(run, number, whose)  # noqa: E731
    elif not clients and "weights" in outcome:
        whose, read = "weights", lambda run: _weights_after(run, number)
    else:
        return None, "", ""
    try:
        found = first_difference(read(left), read(right))
    except _NotKept as why:
        return None, "", str(why)
    if found is None:
        return None, "", "what was kept is equal to the bit, so one of the ledgers does not tell the truth"
    return found, whose, ""


class _NotKept(Exception):
    """What would have to be read is not there."""


def _kept_update(run: History, number: int, client: str) -> Arrays:
    file = run.contributions[number][client].file
    folder = run.folder / "updates" / f"round-{number:05d}"
    if not file or not folder.is_dir():
        raise _NotKept(
            f"which tensor differs cannot be told: `{run.name}` did not keep its updates"
            " (RoundLedger(keep_updates=True), or `run --keep-updates`)"
        )
    return _read(folder, file)


def _weights_after(run: History, number: int) -> Arrays:
    folder = run.folder / CHECKPOINTS / f"round-{number:05d}"
    if not folder.is_dir():
        raise _NotKept(
            f"all updates are equal, and only the weights made of them differ; in which tensor cannot be"
            f" told: `{run.name}` has no checkpoint of round {number}"
        )
    return _read(folder, "model.safetensors")


def _read(folder: Path, file: str) -> Arrays:
    try:
        return arrays_from_bytes(read_folder(folder)[file])
    except (TornFilesError, KeyError) as error:
        raise _NotKept(
            f"which tensor differs cannot be told: `{folder / file}` is damaged: {error}"
        ) from None
