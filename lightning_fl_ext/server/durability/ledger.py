"""The ledger: a chain of JSON lines in which a changed, moved or missing line shows."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from lightning_fl_ext.errors import LightningFLError
from lightning_fl_ext.files import (
    CHECKPOINTS,
    ForbiddenFilesError,
    TornFilesError,
    arrays_from_bytes,
    list_checkpoints,
    read_folder,
)
from lightning_fl_ext.results import digest

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

GENESIS = "0" * 64
"""What stands for the line before the first."""

SIGNATURE = "ledger.sig"
"""The file beside a ledger that holds the signature of its last line's hash, if the run has a key."""


class LedgerError(LightningFLError):
    """A ledger is damaged, or is not the one of this run."""


class ReplayError(LedgerError):
    """The updates that were kept do not give what the ledger says."""


@dataclass(frozen=True)
class LedgerReport:
    """What :func:`verify_ledger` found.

    Attributes:
        rounds: Number of rounds recorded.
        finished: Whether the last line says that the run ended.
        head: Hash of the last line; compare it with one kept elsewhere, since a chain that is rewritten
            whole is in itself sound.
        signed: Whether there is a signature beside the ledger; it is checked if a key is given.
        problems: One sentence for each, with the line's number.
    """

    rounds: int
    finished: bool
    head: str
    problems: tuple[str, ...]
    signed: bool = False

    @property
    def ok(self) -> bool:
        """Whether there are no problems."""
        return not self.problems


def make_line(previous: str, index: int, event: str, content: Mapping[str, Any]) -> tuple[str, bytes]:
    """Make a line, and give its hash and its bytes.

    Example:
        >>> head, line = make_line(GENESIS, 0, "start", {"seed": 7})
        >>> json.loads(line)["hash"] == head
        True
    """
    body = {"index": index, "event": event, "previous": previous, **content}
    head = hashlib.sha256(_canonical(body)).hexdigest()
    return head, _canonical({**body, "hash": head}) + b"\n"


def check_lines(data: bytes) -> tuple[list[dict[str, Any]], list[str]]:
    """Read the lines of a ledger, and compare each with its hash and with the line before.

    Args:
        data: The file's bytes.

    Returns:
        The lines that can be read, and a sentence for each problem.
    """
    lines: list[dict[str, Any]] = []
    problems: list[str] = []
    head, expected = GENESIS, 0
    for number, raw in enumerate(data.removesuffix(b"\n").split(b"\n") if data else [], start=1):
        try:
            line = json.loads(raw)
            body = {k: v for k, v in line.items() if k != "hash"}
            claimed, previous, index, _ = line["hash"], line["previous"], line["index"], line["event"]
            if _canonical(line) != raw or type(index) is not int or not 0 <= index < 2**53:
                raise ValueError("not as it was written")
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            problems.append(f"line {number} was altered or cut: it is not a line as a ledger writes it")
            expected += 1
            head = ""
            continue
        if hashlib.sha256(_canonical(body)).hexdigest() != claimed:
            problems.append(f"line {number} (entry {index}) was altered: its hash is another")
        if index != expected:
            kind = f"{index - expected} missing before it" if index > expected else "out of place"
            problems.append(f"line {number} is entry {index}, expected entry {expected}: {kind}")
        elif head and previous != head:
            problems.append(f"line {number} (entry {index}) does not follow the line before it")
        head, expected = claimed, index + 1
        lines.append(line)
    if data and not data.endswith(b"\n"):
        problems.append("the last line is cut: it does not end")
    return lines, problems


def verify_ledger(
    path: str | Path,
    checkpoint: str | Path | None = None,
    key: Ed25519PublicKey | str | Path | None = None,
    head: str | None = None,
) -> LedgerReport:
    """Check that every line is as it was written, and in its place.

    Args:
        path: The ledger's file, or the folder with ``ledger.jsonl`` in it.
        checkpoint: A checkpoint's folder; its note of the ledger's head then shows whether lines are missing
            at the end. Default: the newest beside the ledger, if any.
        key: The server's public key, or its PEM file: the last line must then be signed by it.
        head: Hash of a line that was once the last, as noted elsewhere: everything up to it must then be as
            it was.

    Returns:
        A report; empty ``problems`` mean that the chain is whole.

    Raises:
        LedgerError: There is no such file, or ``checkpoint`` is none that knows a ledger.
        KeyFileError: The file ``key`` holds no public Ed25519 key.
        TornFilesError: ``checkpoint`` is incomplete or altered.
    """
    path = Path(path) / "ledger.jsonl" if Path(path).is_dir() else Path(path)
    if not path.is_file():
        raise LedgerError(f"there is no ledger at `{path}`")
    try:
        data = path.read_bytes()
    except OSError as error:
        raise LedgerError(f"cannot read the ledger: {error}") from None
    lines, problems = check_lines(data)
    noted = _newest_head(path.parent) if checkpoint is None else _head_in(Path(checkpoint))
    if noted is None and checkpoint is not None:
        raise LedgerError(f"the checkpoint `{checkpoint}` was written without a ledger")
    if noted is not None and noted not in [line["hash"] for line in lines]:
        problems.append(
            f"lines are missing at the end, after line {len(lines)}: a checkpoint knows a line {noted[:12]}…"
            " that is not here"
        )
    if head is not None and head.strip().lower() not in [line["hash"] for line in lines]:
        problems.append(f"no line has the hash that was noted, {head.strip()[:64]}")
    if not lines and not problems:
        problems.append("the ledger is empty")
    signature = path.with_name(SIGNATURE)
    if key is not None:
        from lightning_fl_ext.server.durability.signing import check_signature, public_key

        signed = signature.read_bytes() if signature.is_file() else None
        problems += check_signature(signed, public_key(key), [line["hash"] for line in lines])
    rounds = sum(line["event"] == "round" for line in lines)
    finished, last = (lines[-1]["event"] == "end", lines[-1]["hash"]) if lines else (False, GENESIS)
    return LedgerReport(rounds, finished, last, tuple(problems), signature.is_file())


def replay_ledger(path: str | Path) -> list[str]:
    """Compute each round's weights once more from the updates that were kept, and compare digests.

    Works for runs with :class:`~lightning_fl_ext.server.ExactFedAvg` and ``RoundLedger(keep_updates=True)``.

    Args:
        path: The folder of the run.

    Returns:
        The digest of every round, as computed.

    Raises:
        LedgerError: The chain is broken, or the run is not one that can be replayed.
        ReplayError: A kept update is not what it was, or a round's digest differs.
    """
    from lightning_fl_ext.aggregation import ExactMean

    folder = Path(path)
    if problems := verify_ledger(folder).problems:
        raise LedgerError(f"ledger in `{folder}`: " + "; ".join(problems))
    lines, _ = check_lines((folder / "ledger.jsonl").read_bytes())
    strategy = lines[0]["fingerprint"].get("strategy")
    if strategy != "ExactFedAvg":
        raise LedgerError(f"only runs with ExactFedAvg can be replayed; this one used {strategy}")
    digests: list[str] = []
    for line in lines:
        if line["event"] != "round":
            continue
        number = line["round"]["server_round"]
        computed = digests[-1] if digests else line["round"]["digest"]
        if not line["round"]["void"]:
            kept = folder / "updates" / f"round-{number:05d}"
            if not kept.is_dir():
                raise LedgerError(f"round {number}: its updates were not kept; use `keep_updates=True`")
            mean: ExactMean | None = None
            for update, arrays in _kept_updates(kept, line["accepted"], number):
                mean = ExactMean(arrays) if mean is None else mean
                mean.add(arrays, update["num_examples"])
            assert mean is not None
            computed = digest({name: np.asarray(array) for name, array in mean.result().items()})
        if computed != line["round"]["digest"]:
            raise ReplayError(
                f"round {number}: expected digest {line['round']['digest']}, the updates give {computed}"
            )
        digests.append(computed)
    return digests


def _kept_updates(
    folder: Path, accepted: list[dict[str, Any]], number: int
) -> Iterator[tuple[dict[str, Any], dict[str, NDArray[Any]]]]:
    try:
        files = read_folder(folder)
        for update in accepted:
            arrays = arrays_from_bytes(files[update["file"]])
            if digest(arrays) != update["digest"]:
                raise ReplayError(f"round {number}: the kept update of `{update['client_id']}` differs")
            yield update, arrays
    except TornFilesError as error:
        raise ReplayError(f"round {number}: {error}") from None
    except KeyError as error:
        raise ReplayError(f"round {number}: there is no kept update {error}") from None


def _newest_head(folder: Path) -> str | None:
    for _, checkpoint in reversed(list_checkpoints(folder / CHECKPOINTS)):
        try:
            head = _head_in(checkpoint)
        except (TornFilesError, ForbiddenFilesError):
            continue
        if head is not None:
            return head
    return None


def _head_in(checkpoint: Path) -> str | None:
    """Give the ledger's head that a checkpoint notes; None if it was written without a ledger."""
    try:
        callbacks = json.loads(read_folder(checkpoint)["state.json"])["callbacks"]
        head = callbacks.get("RoundLedger", {}).get("head")
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError):
        raise TornFilesError(f"`{checkpoint}` is not a checkpoint of this package") from None
    return None if head in (None, GENESIS) else str(head)


def _canonical(data: Mapping[str, Any]) -> bytes:
    return json.dumps(data, sort_keys=True, separators=(",", ":")).encode()
