"""Lightning's way to start the running script once more per device, refused inside a client."""

from __future__ import annotations

import functools
import importlib
import sys
from typing import Any

from lightning_fl_ext.client.bridge.refusals import refuse_script_launcher
from lightning_fl_ext.lightnings import NAMES

_MODULE = "strategies.launchers.subprocess_script"


def guard_script_launchers() -> None:
    """Have Lightning refuse such a start for a Trainer with the bridge of a message among its callbacks.

    No hook of a callback runs before the processes are started, so the launcher itself is asked to look.
    """
    for name in NAMES:
        if name in sys.modules:
            launcher = importlib.import_module(f"{name}.{_MODULE}")._SubprocessScriptLauncher
            if not hasattr(launcher.launch, "__wrapped__"):
                launcher.launch = _looking(launcher.launch)


def _looking(launch: Any) -> Any:
    @functools.wraps(launch)
    def look(self: Any, function: Any, *args: Any, trainer: Any = None, **options: Any) -> Any:
        external = self.cluster_environment.creates_processes_externally
        callbacks = [] if external or trainer is None or trainer.world_size < 2 else trainer.callbacks
        if any(getattr(callback, "answers_message", False) for callback in callbacks):
            refuse_script_launcher(trainer)
        return launch(self, function, *args, trainer=trainer, **options)

    return look
