"""What `client_app` is given, checked before the first round."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch

from lightning_fl_ext.client.persistence.state_folder import default_root
from lightning_fl_ext.client.trainers import check_trainer


def check_arguments(model: Any, data: Any, trainer: Any) -> None:
    """Refuse a model or data that cannot be called, and what is no arguments of a Trainer.

    Raises:
        TypeError: It is so.
    """
    if isinstance(model, torch.nn.Module) or not callable(model):
        raise TypeError(
            "`model` must make a new LightningModule for every fit: its class, or a function without"
            f" arguments. Got {_kind(model)}."
        )
    if not callable(data):
        raise TypeError(
            "`data` must be a function from the client's Context to its DataLoader or LightningDataModule."
            f" Got {_kind(data)}."
        )
    if trainer is not None and not callable(trainer):
        check_trainer(trainer)


def check_threads(num_threads: int | None) -> None:
    """Refuse less than one thread.

    Raises:
        ValueError: It is so.
    """
    if num_threads is not None and num_threads < 1:
        raise ValueError(f"`num_threads` must be at least 1. Got {num_threads}.")


def check_timeout(fit_timeout: Any, launcher: Any) -> None:
    """Refuse a time after which nothing could be ended.

    Raises:
        ValueError: It is no time, or no processes are started.
    """
    if fit_timeout is None:
        return
    if not isinstance(fit_timeout, int | float) or not fit_timeout > 0:
        raise ValueError(f"`fit_timeout` must be a number of seconds above 0. Got {fit_timeout!r}.")
    if launcher in (None, "in-process"):
        raise ValueError(
            "`fit_timeout` ends processes, and `launcher='in-process'` starts none. Leave one of them out."
        )


def states_folder(keep_optimizer: Any, keep_local: Any) -> Path | None:
    """Tell where clients keep their states; None if they keep none.

    Raises:
        TypeError: One of them is neither a bool nor a path.
        ValueError: They contradict each other.
    """
    given = {"keep_optimizer": keep_optimizer, "keep_local": keep_local}
    for name, value in given.items():
        if not isinstance(value, bool | str | os.PathLike):
            raise TypeError(f"`{name}` must be True, False or a folder. Got {_kind(value)}.")
    folders = {Path(v).expanduser().absolute() for v in given.values() if not isinstance(v, bool)}
    if len(folders) > 1 or (keep_local is False and keep_optimizer is not False):
        raise ValueError(
            "`keep_optimizer` keeps weights that do not travel as well, in the same folder as `keep_local`."
            f" Got keep_optimizer={keep_optimizer!r}, keep_local={keep_local!r}: give `keep_optimizer` alone."
        )
    if keep_local is False:
        return None
    return folders.pop() if folders else default_root()


def _kind(value: Any) -> str:
    return f"an instance of {type(value).__name__}"
