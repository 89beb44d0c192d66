"""A federated run on disk: written after a round, read back to go on to the same bytes."""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning_fl_ext.errors import LightningFLError
from lightning_fl_ext.files import (
    CHECKPOINTS,
    MANIFEST,
    TornFilesError,
    arrays_from_bytes,
    arrays_to_bytes,
    list_checkpoints,
    read_folder,
    tensors_from_bytes,
    tensors_to_bytes,
    write_folder,
)
from lightning_fl_ext.metrics.discovery import weights_of
from lightning_fl_ext.results import digest
from lightning_fl_ext.server.durability.lightning_checkpoint import lightning_checkpoint
from lightning_fl_ext.server.durability.strategy_state import encode_strategy, restore_strategy
from lightning_fl_ext.server.record import RoundRecord
from lightning_fl_ext.server.screening.limits import Limits
from lightning_fl_ext.text import shown
from lightning_fl_ext.wire.loading import load_weights

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray

    from lightning_fl_ext.server.fit import FederatedFit

log = logging.getLogger(__name__)

_VERSION = 3


class CheckpointError(LightningFLError):
    """There is no checkpoint to go on from, or it is of another run."""


def fingerprint(trainer: FederatedFit) -> dict[str, Any]:
    """Describe what makes a run the run it is: model, strategy, seed, exchange and screening.

    Args:
        trainer: At the start of a fit, before any round.

    Returns:
        Plain JSON data. The number of rounds is not part of it: a run may be prolonged.
    """
    described: dict[str, Any] = {
        f"model.{name}": f"{array.dtype.name}{list(array.shape)}" for name, array in trainer.arrays.items()
    }
    described |= {f"strategy{name}": value for name, value in _settings(trainer.strategy).items()}
    for name in ("seed", "min_accepted", "on_bad_update", "max_update_norm"):
        described[name] = getattr(trainer, name)
    described["exchange"] = repr(trainer.exchange)
    if trainer.train_config and not callable(trainer.train_config):
        described["train_config"] = repr(dict(sorted(trainer.train_config.items())))
    if trainer.limits != Limits():
        described["limits"] = repr(trainer.limits)
    return described


LIGHTNING = "model.ckpt"
"""The file of a checkpoint's folder that is in Lightning's own form, if asked for."""


def save_checkpoint(trainer: FederatedFit, folder: Path, lightning: bool = False) -> None:
    """Write the state after a round: one folder that appears whole.

    Args:
        trainer: At the end of a round.
        folder: To be made.
        lightning: Whether to write the model in Lightning's own form besides.
    """
    state, tensors = encode_strategy(trainer.strategy)
    data = {
        "version": _VERSION,
        "run_id": trainer.run_id,
        "round": trainer.current_round,
        "fingerprint": trainer.fingerprint,
        "digest": digest(trainer.arrays),
        "strategy": state,
        "rounds": [record.to_json() for record in trainer.rounds],
        "callbacks": {key: callback.state_dict() for key, callback in _keyed(trainer)},
    }
    write_folder(
        folder,
        {
            "model.safetensors": arrays_to_bytes(trainer.arrays),
            "strategy.safetensors": tensors_to_bytes(tensors),
            "state.json": json.dumps(data).encode(),
            **({LIGHTNING: _lightning_bytes(trainer)} if lightning else {}),
        },
    )


def _lightning_bytes(trainer: FederatedFit) -> bytes:
    weights = trainer.exchange.unpack(trainer.arrays, weights_of(trainer.model))
    load_weights(trainer.model, weights)  # tied weights stand under names that do not travel
    return lightning_checkpoint(trainer.model, trainer.current_round)


def load_checkpoint(trainer: FederatedFit, path: str | Path) -> None:
    """Put a trainer where a checkpoint was written.

    Args:
        trainer: At the start of a fit.
        path: A checkpoint's folder; or ``"last"``, for the newest complete one under the trainer's
            ``default_root_dir``. With ``"last"`` and none there, the run starts from the beginning.

    Raises:
        CheckpointError: There is none at ``path``, or it is of another run, and the message lists what
            differs, or of a round after the last one.
        TornFilesError: ``path`` names a checkpoint that is incomplete or altered.
    """
    if path != "last":
        files = read_folder(_checkpoint_at(Path(path)))
    elif (newest := _newest_complete(trainer.default_root_dir / CHECKPOINTS)) is None:
        log.info("no checkpoint under `%s`: starting from the beginning", trainer.default_root_dir)
        return
    else:
        files = newest
    kept = decode_checkpoint(files)
    _refuse_another_run(kept.fingerprint, trainer.fingerprint)
    if kept.server_round > trainer.max_rounds:
        raise CheckpointError(
            f"the checkpoint is of round {kept.server_round}, and the run has {trainer.max_rounds}"
            f" (`max_rounds`): give at least {kept.server_round}, or start anew in another"
            " `default_root_dir`."
        )
    trainer.arrays = kept.arrays
    trainer.run_id, trainer.current_round = kept.run_id, kept.server_round
    with _torn("strategy"):
        restore_strategy(trainer.strategy, kept.strategy, kept.tensors)
    for record in kept.rounds:
        trainer.add_record(record)
    for key, callback in _keyed(trainer):
        with _torn(f"{key} callback"):
            callback.load_state_dict(kept.callbacks.get(key, {}))


@dataclass(frozen=True)
class DecodedCheckpoint:
    """What a checkpoint's files hold."""

    run_id: str
    server_round: int
    fingerprint: dict[str, Any]
    arrays: dict[str, NDArray[Any]]
    strategy: dict[str, Any]
    tensors: dict[str, torch.Tensor]
    rounds: list[RoundRecord]
    callbacks: dict[str, Any]


def decode_checkpoint(files: Mapping[str, bytes]) -> DecodedCheckpoint:
    """Read a checkpoint's files.

    Args:
        files: Contents by name, whose checksums have been looked at.

    Raises:
        CheckpointError: They are in another format.
        TornFilesError: They are not what :func:`save_checkpoint` writes.
    """
    with _torn("state"):
        data = json.loads(files["state.json"])
        if (version := data.get("version")) != _VERSION:
            raise CheckpointError(f"checkpoint format {shown(version)}: expected {_VERSION}")
        kept = DecodedCheckpoint(
            data["run_id"],
            data["round"],
            data["fingerprint"],
            arrays_from_bytes(files["model.safetensors"]),
            data["strategy"],
            tensors_from_bytes(files["strategy.safetensors"]),
            [RoundRecord.from_json(record) for record in data["rounds"]],
            data["callbacks"],
        )
        objects = (kept.fingerprint, kept.strategy, kept.callbacks)
        if not isinstance(kept.run_id, str) or not all(isinstance(o, dict) for o in objects):
            raise TypeError("an entry of another kind")
        if type(kept.server_round) is not int or not 0 <= kept.server_round < 2**53:
            raise ValueError("a round that is none")
        done = [record.server_round for record in kept.rounds if record.server_round][-1:]
        if kept.server_round < 1 or done != [kept.server_round]:
            raise ValueError(f"it says round {kept.server_round}, and its records end elsewhere")
        if digest(kept.arrays) != data["digest"]:
            raise TornFilesError("the checkpoint's weights do not have the digest written beside them")
    return kept


@contextmanager
def _torn(part: str) -> Iterator[None]:
    """Say that a part of a checkpoint is altered, whatever reading it stumbles over."""
    try:
        yield
    except LightningFLError:
        raise
    except Exception as error:
        raise TornFilesError(
            f"the checkpoint's {part} is not as it was written: {type(error).__name__}: {shown(error)}"
        ) from error


def _checkpoint_at(path: Path) -> Path:
    """Refuse a path that cannot be a checkpoint's folder, and say what would be one."""
    if any((path / name).is_file() for name in (MANIFEST, "state.json")):
        return path
    if within := list_checkpoints(path / CHECKPOINTS):
        hint = f"it is a run's folder: its newest checkpoint is `{within[-1][1]}`"
    else:
        hint = (
            "give the folder `round-NNNNN` of one, such as `RoundCheckpoint.best_path`, or"
            " `ckpt_path='last'` for the newest under `default_root_dir`"
        )
    raise CheckpointError(f"there is no checkpoint `{path}`: {hint}")


def _keyed(trainer: FederatedFit) -> list[tuple[str, Any]]:
    """Name callbacks by class, and those of one class by their place as well."""
    seen: Counter[str] = Counter()
    keyed = []
    for callback in trainer.callbacks:
        name = type(callback).__name__
        seen[name] += 1
        keyed.append((f"{name}-{seen[name]}" if seen[name] > 1 else name, callback))
    return keyed


def _newest_complete(root: Path) -> dict[str, bytes] | None:
    for _, path in reversed(list_checkpoints(root)):
        try:
            return read_folder(path)
        except TornFilesError as error:
            log.warning("skipping a checkpoint: %s", error)
    return None


def _refuse_another_run(then: dict[str, Any], now: dict[str, Any]) -> None:
    now = json.loads(json.dumps(now))
    differences = [
        f"  {key}: the checkpoint has {then.get(key, 'nothing')!r}, this run {now.get(key, 'nothing')!r}"
        for key in sorted({*then, *now})
        if then.get(key) != now.get(key)
    ]
    if differences:
        raise CheckpointError(
            "The checkpoint is of another run; going on from it would not give the same model."
            f" {len(differences)} difference(s):\n" + "\n".join(differences) + "\nUse what the checkpoint"
            " was made with, or start anew in another `default_root_dir`."
        )


def _settings(strategy: Any, prefix: str = "") -> dict[str, Any]:
    settings: dict[str, Any] = {prefix: type(strategy).__name__}
    for name, value in vars(strategy).items():
        if isinstance(value, bool | int | float | str):
            settings[f"{prefix}.{name}"] = value
        elif hasattr(value, "aggregate_train"):
            settings |= _settings(value, f"{prefix}.{name}")
    return settings
