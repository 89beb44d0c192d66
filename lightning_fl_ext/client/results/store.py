"""Where a bridge holds its results: in memory, or in a folder that another process can write for it."""

from __future__ import annotations

import dataclasses
import shutil
import tempfile
import uuid
import weakref
from pathlib import Path
from typing import Any

from lightning_fl_ext.client.results.spool import ResultT, SpooledArrays, read_result, write_result
from lightning_fl_ext.errors import LightningFLError
from lightning_fl_ext.results import ClientUpdate, EpochResult

UPDATE, EVALUATION = "update", "evaluation"
"""The two kinds of outcome: of a fit, and of a validation or test."""


class ResultStore:
    """Holds the epochs' results and the outcomes of a fit and an evaluation.

    They stay in memory, unless there is a ``spool_dir``, or the strategy runs the fit in processes that it
    launches (``ddp_spawn``, ``ddp_fork``). Such strategies bring back the module's weights only: what a
    callback set in a worker is lost. So the folder's name is fixed when the store is made, rank 0 writes into
    it as it goes, and the caller's copy finds what it wrote, also after a crash.

    The folder has mode 0700. Outside a ``spool_dir`` it is removed with the store that was constructed;
    pickled copies leave it alone, deep copies have one of their own. A store that has seen no run tells what
    the deep copy of it tells that ran last: some libraries run copies of the callbacks they are given.

    Args:
        spool_dir: Parent of the folder. Default: the system's folder for temporary files.
        owner: Whose results these are, in messages.
    """

    def __init__(self, spool_dir: str | None = None, owner: str = "this client") -> None:
        self._spool_dir = spool_dir
        self._owner = owner
        self._on_disk = False
        self._epochs: list[EpochResult] = []
        self._outcomes: dict[str, ClientUpdate] = {}
        self._failures: dict[str, str] = {}
        self._has_run = False
        self._origin: ResultStore | None = None
        self._copy_that_ran: ResultStore | None = None
        self.folder = Path(spool_dir or tempfile.gettempdir()) / f"flower-bridge-{uuid.uuid4().hex}"
        if spool_dir is None:
            weakref.finalize(self, shutil.rmtree, self.folder, ignore_errors=True)

    def start_fit(self, trainer: Any) -> None:
        """Forget the runs before, and choose where this fit's results go."""
        self._note_run()
        self._epochs, self._outcomes, self._failures = [], {}, {}
        self._on_disk = self._spool_dir is not None or _is_launched(trainer)
        if trainer.is_global_zero:
            shutil.rmtree(self.folder, ignore_errors=True)
            if self._on_disk:
                self._open_folder()
                self._epochs_folder.mkdir()

    def start_evaluation(self, trainer: Any) -> None:
        """Forget the evaluation before, and choose where this one's outcome goes."""
        self._note_run()
        for kind in (EVALUATION, "validate", "test"):
            self.drop(kind)
        self._on_disk = self._spool_dir is not None or _is_launched(trainer)

    @property
    def epochs(self) -> list[EpochResult]:
        """The held epochs' results, by epoch. With a ``spool_dir``, arrays are read when looked up."""
        if self._copy_that_ran is not None:
            return self._copy_that_ran.epochs
        if not self._epochs_folder.exists():
            return list(self._epochs)
        found = [read_result(path, EpochResult) for path in sorted(self._epochs_folder.glob("*.safetensors"))]
        lasting = self._on_disk or self._spool_dir is not None
        return found if lasting else [_in_memory(result) for result in found]

    def add(self, result: EpochResult) -> None:
        """Hold one more epoch."""
        if self._on_disk:
            write_result(self._epoch_path(result), result)
        else:
            self._epochs.append(result)

    def remove(self, result: EpochResult) -> None:
        """Let go of an epoch."""
        self._epochs = [held for held in self._epochs if held.epoch != result.epoch]
        self._epoch_path(result).unlink(missing_ok=True)

    def get(self, kind: str) -> ClientUpdate:
        """Give the outcome of that kind, with its arrays in memory.

        Raises:
            LightningFLError: There is none; the message says why, and what there is.
        """
        if self._copy_that_ran is not None:
            return self._copy_that_ran.get(kind)
        path = self._outcome_path(kind)
        if path.exists():
            return _in_memory(read_result(path, ClientUpdate))
        if kind not in self._outcomes:
            raise LightningFLError(self._why_none(kind))
        return self._outcomes[kind]

    def has(self, kind: str) -> bool:
        """Tell whether there is an outcome of that kind."""
        if self._copy_that_ran is not None:
            return self._copy_that_ran.has(kind)
        return kind in self._outcomes or self._outcome_path(kind).exists()

    def put(self, kind: str, outcome: ClientUpdate) -> None:
        """Hold an outcome in the place of the one before."""
        self.drop(kind)
        if self._on_disk:
            self._open_folder()
            write_result(self._outcome_path(kind), outcome)
        else:
            self._outcomes[kind] = outcome

    def fail(self, kind: str, reason: str) -> str:
        """Let go of the outcome of that kind since its run raised, and say what is left."""
        self.drop(kind)
        self._failures[kind] = reason
        return self._why_none(kind)

    def drop(self, kind: str) -> None:
        """Let go of the outcome of that kind, if there is one."""
        self._failures.pop(kind, None)
        self._outcomes.pop(kind, None)
        self._outcome_path(kind).unlink(missing_ok=True)

    def _why_none(self, kind: str) -> str:
        none = f"{self._owner} has no {kind}: "
        if kind not in self._failures:
            run = "fit" if kind == UPDATE else "validation or test"
            return (
                f"{none}no {run} has ended with its bridge among the Trainer's callbacks (where the script"
                " runs once per device: in the process of rank 0)."
            )
        epochs = [result.epoch for result in self.epochs]
        left = f"{len(epochs)}, the last of which is epoch {epochs[-1]}" if epochs else "none"
        return f"{none}{self._failures[kind]}. Complete epochs in `results`: {left}."

    @property
    def _epochs_folder(self) -> Path:
        return self.folder / "epochs"

    def _epoch_path(self, result: EpochResult) -> Path:
        return self._epochs_folder / f"{result.epoch:06d}.safetensors"

    def _outcome_path(self, kind: str) -> Path:
        return self.folder / f"{kind}.safetensors"

    def _open_folder(self) -> None:
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)

    def _note_run(self) -> None:
        self._has_run, self._copy_that_ran = True, None
        origin = self._origin
        while origin is not None:
            if not origin._has_run:
                origin._copy_that_ran = self
            origin = origin._origin

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_origin": None, "_copy_that_ran": None}

    def __deepcopy__(self, _memo: dict[int, Any]) -> ResultStore:
        twin = ResultStore(self._spool_dir, self._owner)
        twin._origin, twin._has_run = self, self._has_run
        twin._epochs, twin._outcomes = list(self._epochs), dict(self._outcomes)
        twin._failures = dict(self._failures)
        if self.folder.exists():
            shutil.copytree(self.folder, twin.folder)
        return twin


def _is_launched(trainer: Any) -> bool:
    """Tell whether the strategy runs everything in processes that it forks or spawns."""
    return getattr(trainer.strategy.launcher, "_start_method", None) is not None


def _in_memory(result: ResultT) -> ResultT:
    assert isinstance(result.arrays, SpooledArrays)
    return dataclasses.replace(result, arrays=result.arrays.load())
