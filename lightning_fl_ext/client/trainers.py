"""A client's Trainer: quiet unless asked for more, and with a folder of its own for what it writes."""

from __future__ import annotations

import copy
import inspect
import os
import shutil
from collections.abc import Mapping
from typing import Any

import lightning.pytorch as pl

from lightning_fl_ext.client.identity import file_name
from lightning_fl_ext.lightnings import lightning_name

_QUIET: dict[str, Any] = {
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "num_sanity_val_steps": 0,
}

_NEEDS = {
    "Checkpoint": "enable_checkpointing",
    "ProgressBar": "enable_progress_bar",
    "ModelSummary": "enable_model_summary",
    "LearningRateMonitor": "logger",
    "DeviceStatsMonitor": "logger",
    "ThroughputMonitor": "logger",
}
"""By the name of a callback, or of one that it derives from: what it cannot do without."""


def check_trainer(given: Any) -> None:
    """Refuse what holds no arguments of a Trainer.

    Raises:
        TypeError: Says what does.
    """
    if not isinstance(given, Mapping):
        raise TypeError(
            "`trainer` must be a dict of arguments for `Trainer`, or a function that gives one. Got an"
            f" instance of {type(given).__name__}."
        )
    known = inspect.signature(pl.Trainer).parameters
    if unknown := [name for name in given if name not in known]:
        raise TypeError(
            f"`trainer` holds {unknown}, which `Trainer` does not know. It knows {sorted(known)}."
        )
    if other := [c for c in _listed(given.get("callbacks")) if lightning_name(c, "Callback") is None]:
        raise TypeError(
            f"`trainer` holds `callbacks` that are none: {[type(c).__name__ for c in other]}. Give objects"
            " such as `[EarlyStopping('val_loss')]`; on the command line, where there are none, have the"
            " module's `configure_callbacks` give them."
        )


def trainer_arguments(given: Mapping[str, Any]) -> dict[str, Any]:
    """Complete the arguments for a client's Trainer, with copies of the objects among them.

    It trains one epoch and is quiet, unless asked for more. A callback that cannot do without a logger,
    checkpoints, a progress bar or a model summary has asked for it.

    Example:
        >>> made = trainer_arguments({"callbacks": pl.callbacks.LearningRateMonitor()})
        >>> made["logger"], made["enable_checkpointing"], len(made["callbacks"])
        (True, False, 1)
    """
    own = copy.deepcopy(dict(given))
    callbacks = _listed(own.pop("callbacks", None))
    needed = {_NEEDS[base.__name__] for c in callbacks for base in type(c).__mro__ if base.__name__ in _NEEDS}
    return {"max_epochs": 1, **_QUIET, **dict.fromkeys(needed, True), **own, "callbacks": callbacks}


def _listed(callbacks: Any) -> list[Any]:
    if callbacks is None:
        return []
    return list(callbacks) if isinstance(callbacks, list | tuple) else [callbacks]


def give_folder(
    arguments: dict[str, Any],
    run_id: str,
    client: str,
    server_round: int,
    kind: str,
    *,
    clear: bool = True,
) -> None:
    """Have callbacks, loggers and profilers write to a folder of this run, client and round.

    It is ``<run>/<client>/round-NNNNN``, for an evaluation with ``-evaluate``; below the Trainer's
    ``default_root_dir``, and below the folder that a checkpoint callback or logger was given. What an earlier
    try of the same round has left there is removed.

    Args:
        arguments: Of the Trainer, as :func:`trainer_arguments` gives them; they are changed.
        run_id: The run.
        client: The client's id.
        server_round: The round.
        kind: ``"train"`` or ``"evaluate"``.
        clear: Whether to remove what is there: not in one of several processes.
    """
    name = f"round-{server_round:05d}" + ("" if kind == "train" else f"-{kind}")
    own = os.path.join(file_name(run_id), file_name(client), name)

    def below(root: Any) -> str:
        folder = os.path.join(os.fspath(root), own)
        if clear and os.path.isdir(folder):
            shutil.rmtree(folder)
        return folder

    arguments["default_root_dir"] = below(arguments.get("default_root_dir") or os.getcwd())
    for writer in [*arguments["callbacks"], arguments.get("profiler")]:
        if getattr(writer, "dirpath", None) is not None:
            writer.dirpath = below(writer.dirpath)
    loggers = arguments["logger"] if isinstance(arguments["logger"], list | tuple) else [arguments["logger"]]
    for logger in loggers:
        if hasattr(logger, "root_dir") and getattr(logger, "_version", 0) is None:
            logger._version = own
            below(logger.root_dir)
