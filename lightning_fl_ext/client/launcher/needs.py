"""How many processes a client's Trainer needs, and whether they are to be started for it."""

from __future__ import annotations

import copy
import importlib
from collections.abc import Mapping
from typing import Any

import lightning.pytorch as pl
import torch

from lightning_fl_ext.errors import LightningFLError

_PLACING = ("accelerator", "strategy", "devices", "num_nodes", "precision", "plugins")
_FORKING = "_MultiProcessingLauncher"
_SCRIPTS = "_SubprocessScriptLauncher"


def starts_scripts(trainer: Any) -> bool:
    """Tell whether a Trainer would start the running script once more for every other device."""
    return type(trainer.strategy.launcher).__name__ == _SCRIPTS


def refuse_untold(trainer: Any) -> None:
    """Refuse to work as one of several processes in one that is not told which of them it is.

    Args:
        trainer: Of a process that a launcher has started.

    Raises:
        LightningFLError: It would start the others itself.
    """
    if starts_scripts(trainer) and not trainer.strategy.cluster_environment.creates_processes_externally:
        raise LightningFLError(
            f"this process is one of {trainer.world_size} that `launcher` was to start, and is not told"
            " which: its environment has neither `RANK` and `WORLD_SIZE`, as `torchrun` gives them, nor what"
            " `srun` gives. Have the command start as many processes as the Trainer has devices, and tell"
            " them; or leave `launcher` out."
        )


def processes_needed(given: Mapping[str, Any], named: bool = False) -> int:
    """Tell how many processes must be started for a Trainer; 0 if it needs none, or starts them itself.

    Args:
        given: The Trainer's arguments. They stay as they are.
        named: Whether the user has named a launcher: it is then asked for one device, too.

    Raises:
        LightningFLError: A launcher is named, and the strategy forks or spawns processes of its own.
    """
    if not named and _is_alone(given):
        return 0
    placing = {name: copy.deepcopy(given[name]) for name in _PLACING if name in given}
    quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar"), False)
    trainer = _lightning_of(placing.get("strategy")).Trainer(
        **placing, **quiet, enable_model_summary=False, barebones=False
    )
    if named and type(trainer.strategy.launcher).__name__ == _FORKING:
        raise LightningFLError(
            "with `launcher` or `fit_timeout` the client starts the processes, and so does the strategy"
            f" {given.get('strategy')!r}, by forking or spawning. Use `strategy='ddp'`; or leave `launcher`"
            " and `fit_timeout` out."
        )
    # A cluster's environment (SLURM in a batch script) takes this process for one of several, and how many
    # there are of it for what is needed.
    count = int(trainer.num_devices * trainer.num_nodes)
    awaits_others = count > 1 and trainer.strategy.launcher is None
    return count if starts_scripts(trainer) or awaits_others else int(named)


def _is_alone(given: Mapping[str, Any]) -> bool:
    """Tell what is plainly one device in this process, at no cost."""
    if given.get("strategy", "auto") != "auto" or given.get("num_nodes", 1) != 1 or "plugins" in given:
        return False
    devices = given.get("devices", "auto")
    few = given.get("accelerator") == "cpu" or torch.cuda.device_count() < 2
    return devices in (1, "1") or (devices == "auto" and few)


def _lightning_of(strategy: Any) -> Any:
    other = type(strategy).__module__.startswith("pytorch_lightning.")
    return importlib.import_module("pytorch_lightning") if other else pl
