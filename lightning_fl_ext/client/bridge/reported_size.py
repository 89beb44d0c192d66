"""The number of examples that a module itself gives Lightning: ``self.log(..., batch_size=)``."""

from __future__ import annotations

from typing import Any

import torch


class ReportedSize:
    """Listens to a module's ``log`` during one batch.

    Lightning keeps the number of some logged values only, and of none that are logged by step, so it is
    taken where the module says it. Of values that are summed or otherwise reduced it means nothing.
    """

    def __init__(self) -> None:
        self._module: Any = None
        self._said: set[int] = set()

    def listen(self, module: Any) -> None:
        """Begin with a batch."""
        self.stop()
        self._module, log = module, module.log

        def listening(*args: Any, **options: Any) -> None:
            size, reduced = options.get("batch_size"), options.get("reduce_fx", "mean")
            if size is not None and reduced in ("mean", "avg", torch.mean):
                self._said.add(int(size))
            log(*args, **options)

        module.log = listening

    def stop(self) -> int | None:
        """End with a batch, and give the number the module said; None if it said none, or several."""
        if self._module is not None and "log" in vars(self._module):
            del self._module.log
        self._module, said = None, self._said
        self._said = set()
        return said.pop() if len(said) == 1 else None
