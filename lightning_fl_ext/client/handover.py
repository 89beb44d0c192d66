"""How results leave the worker processes that `ddp_spawn` and `ddp_fork` start: in a private folder."""

from __future__ import annotations

import shutil
import tempfile
import uuid
import weakref
from pathlib import Path
from typing import Any

from lightning_fl_ext.client.spool import read_result, write_result
from lightning_fl_ext.results import ClientUpdate, EpochResult

_UPDATE = "update.safetensors"


class Handover:
    """Carries results from rank 0 of a launched fit back to the process that called ``fit``.

    Such strategies bring back only the module's weights; what a callback set in a worker is lost. So the
    folder's name is fixed when the callback is made, the worker writes into it, and the caller's copy reads
    from it. It is made with mode 0700, and removed with the caller's copy.
    """

    def __init__(self) -> None:
        self.folder = Path(tempfile.gettempdir()) / f"lightning-fl-ext-{uuid.uuid4().hex}"
        weakref.finalize(self, shutil.rmtree, self.folder, ignore_errors=True)

    def clear(self) -> None:
        """Remove what an earlier fit left."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def leave(self, trainer: Any, results: list[EpochResult], update: ClientUpdate) -> None:
        """In a worker that the strategy launched: write what the caller will collect."""
        if getattr(trainer.strategy.launcher, "_start_method", None) is None:
            return
        self.folder.mkdir(mode=0o700)
        for result in results:
            write_result(self.folder / f"epoch-{result.epoch:05d}.safetensors", result)
        write_result(self.folder / _UPDATE, update)

    def collect(self) -> tuple[list[EpochResult], ClientUpdate] | None:
        """In the caller: give what a worker left, if any; arrays stay on disk until looked up."""
        if not (self.folder / _UPDATE).exists():
            return None
        epochs = sorted(self.folder.glob("epoch-*.safetensors"))
        return [read_result(path, EpochResult) for path in epochs], read_result(
            self.folder / _UPDATE, ClientUpdate
        )

    def __reduce__(self) -> tuple[Any, ...]:
        # A worker's copy knows the folder but does not remove it.
        return _worker_copy, (str(self.folder),)


def _worker_copy(folder: str) -> Handover:
    handover = object.__new__(Handover)
    handover.folder = Path(folder)
    return handover
