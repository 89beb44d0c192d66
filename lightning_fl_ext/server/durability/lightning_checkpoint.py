"""A model in Lightning's own form: what ``LitModule.load_from_checkpoint`` takes."""

from __future__ import annotations

import importlib
import io
from typing import Any

from lightning_fl_ext.errors import LightningFLError
from lightning_fl_ext.lightnings import lightning_name
from lightning_fl_ext.text import shown


class ExportError(LightningFLError):
    """A model cannot be written in that form; the message says what to do."""


def require_lightning(module: Any) -> str:
    """Give the Lightning that a module is of.

    Raises:
        ExportError: It is of none.
    """
    name = lightning_name(module, "LightningModule")
    if name is None:
        raise ExportError(
            f"a Lightning checkpoint is of a LightningModule. Got an instance of {type(module).__name__}:"
            " write `model.safetensors` instead."
        )
    return str(name)


def lightning_checkpoint(module: Any, server_round: int = 0) -> bytes:
    """Write a module as Lightning does, with its hyper-parameters, without optimizers and loops.

    Args:
        module: The LightningModule. Its ``on_save_checkpoint`` may add to the checkpoint.
        server_round: Stands in the place of the epoch.

    Returns:
        A file that ``torch.load(..., weights_only=True)`` reads: tensors and plain values alone.

    Raises:
        ExportError: The module is of no Lightning, or a hyper-parameter is no plain value.
    """
    lightning = importlib.import_module(require_lightning(module))
    checkpoint: dict[str, Any] = {
        "epoch": server_round,
        "global_step": 0,
        "pytorch-lightning_version": lightning.__version__,
        "state_dict": module.state_dict(),
        "optimizer_states": [],
        "lr_schedulers": [],
    }
    if module.hparams:
        checkpoint["hparams_name"] = module._hparams_name
        checkpoint["hyper_parameters"] = dict(module.hparams)
    module.on_save_checkpoint(checkpoint)
    for name, value in checkpoint.get("hyper_parameters", {}).items():
        _require_plain(f"the hyper-parameter `{name}`", value)
    data = _saved(checkpoint)
    _require_readable(data, "what the module's `on_save_checkpoint` adds")
    return data


def _require_plain(what: str, value: Any) -> None:
    try:
        data = _saved(value)
    except Exception as error:
        raise ExportError(
            f"{what} cannot be written: {type(error).__name__}: {shown(error, 200)}. Leave it out:"
            " `self.save_hyperparameters(ignore=[...])`."
        ) from None
    _require_readable(data, f"{what}, {type(value).__module__}.{type(value).__qualname__},")


def _require_readable(data: bytes, what: str) -> None:
    """Refuse a file that only code in it could read."""
    import torch

    try:
        torch.load(io.BytesIO(data), weights_only=True, map_location="cpu")
    except Exception:
        raise ExportError(
            f"{what} is no plain value: the file could only be read by running code that is in it. Write"
            " numbers, texts, lists and dicts; leave others out by `self.save_hyperparameters(ignore=[...])`."
        ) from None


def _saved(value: Any) -> bytes:
    import torch

    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()
