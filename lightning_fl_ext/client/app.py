"""`client_app`: a whole Flower ClientApp around a LightningModule."""

from __future__ import annotations

import copy
import gc
import inspect
import logging
import os
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from functools import cache
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from flwr.app import Context, Message
from flwr.clientapp import ClientApp
from lightning.fabric.utilities.warnings import PossibleUserWarning

from lightning_fl_ext.arguments import choice
from lightning_fl_ext.client.bridge.bridge import FlowerBridge
from lightning_fl_ext.client.bridge.refusals import (
    refuse_other_data,
    refuse_script_launcher,
    refuse_without_validation,
)
from lightning_fl_ext.client.identity import client_id
from lightning_fl_ext.client.messages import query_reply, read_seed
from lightning_fl_ext.client.persistence.callback import StatePersistence
from lightning_fl_ext.client.persistence.state_folder import default_root
from lightning_fl_ext.client.secure import SecureAggregation, refuse_plain
from lightning_fl_ext.seeds import derive_seed, seeded
from lightning_fl_ext.wire import Exchange
from lightning_fl_ext.wire.secure_record import ACTION

_QUIET: dict[str, Any] = {
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "num_sanity_val_steps": 0,
}

_REMEDY = "`client_app(batch_size=...)` (on the command line `--batch-size MODULE:NAME`)"


def client_app(
    model: Callable[[], pl.LightningModule],
    data: Callable[[Context], Any],
    trainer: Mapping[str, Any] | None = None,
    *,
    submit: str = "last",
    monitor: str | None = None,
    mode: str = "min",
    exchange: Exchange | None = None,
    allow_example_states: tuple[str, ...] = (),
    exclude_metrics: tuple[str, ...] = (),
    min_examples: int = 0,
    num_threads: int | None = None,
    keep_optimizer: bool | str | os.PathLike[str] = False,
    batch_size: Callable[[Any], int] | None = None,
    keep_local: bool | str | os.PathLike[str] = True,
    secure: str = "auto",
    trusted_keys: str | os.PathLike[str] | None = None,
    signing_key: str | os.PathLike[str] | None = None,
) -> ClientApp:
    """Make a Flower ``ClientApp`` that trains, evaluates, and tells who it is.

    Every message gets a fresh module, data module and Trainer. All randomness of a fit is seeded from the
    server's run seed, the round and the client id, and the process's own random state is put back, so a fit
    gives the same bytes in whichever process and order it runs.

    Args:
        model: Makes the LightningModule: its class, or a function without arguments.
        data: Gives the client's data: from the ``Context`` to a LightningDataModule or a train DataLoader.
            An evaluation runs ``Trainer.validate`` on the same object.
        trainer: Arguments for ``lightning.pytorch.Trainer``. Callbacks and loggers among them are copied for
            every fit. Default: one epoch. Progress bar, logger, checkpoints, model summary and sanity check
            are off unless asked for.
        submit: What a client hands in; see :class:`FlowerBridge`.
        monitor: See :class:`FlowerBridge`.
        mode: See :class:`FlowerBridge`.
        exchange: What of the model travels. Default: all of it. The server must use the same.
        allow_example_states: See :class:`FlowerBridge`.
        exclude_metrics: See :class:`FlowerBridge`.
        min_examples: See :class:`FlowerBridge`.
        num_threads: Torch's threads on the processor during a fit. Large sums come out otherwise on another
            number of threads, and engines give clients different numbers: name one to have the same bytes on
            all of them. Default: as many as the engine gives.
        keep_optimizer: Whether a fit goes on with the optimizers, LR schedulers, gradient scaler and counters
            of steps and epochs from where the client's fit before ended. True keeps them where
            ``keep_local`` says, a path in that folder, and what ``keep_local`` keeps as well.
        keep_local: Whether weights that do not travel, and change, go on from round to round. True keeps them
            in ``~/.local/state/lightning_fl_ext`` (under ``$XDG_STATE_HOME``, if that is set), a path in that
            folder; there in a folder for each client and run. Where all weights travel, nothing is written.
            With False, every message begins with them as ``model`` builds them.
        batch_size: Gives the number of examples in a batch, the weight of a client; see
            :class:`FlowerBridge`.
        secure: Whether updates are masked if the server asks for it (``"auto"``), or leave in no other form
            (``"required"``): a server that asks for a plain one then gets an error and no weights.
        trusted_keys: See :class:`SecureAggregation`.
        signing_key: See :class:`SecureAggregation`.

    Returns:
        For ``flwr run``, or for :func:`~lightning_fl_ext.run_local`.

    Raises:
        TypeError: ``model`` or ``data`` cannot be called, ``trainer`` holds no arguments of a Trainer, or
            ``exchange``, ``keep_optimizer``, ``keep_local`` or ``batch_size`` is of another type.
        ValueError: ``num_threads`` is below 1, ``keep_optimizer`` and ``keep_local`` contradict, or
            ``secure`` is something else.
        LightningFLError: ``trusted_keys`` or ``signing_key`` cannot be read.

    Example:
        ``client_app(LitDigits, data=lambda context: Digits(context), trainer={"max_epochs": 2})``
    """
    _check_arguments(model, data, trainer)
    if num_threads is not None and num_threads < 1:
        raise ValueError(f"`num_threads` must be at least 1. Got {num_threads}.")
    options: dict[str, Any] = {
        "submit": submit,
        "monitor": monitor,
        "mode": mode,
        "exchange": exchange,
        "allow_example_states": allow_example_states,
        "exclude_metrics": exclude_metrics,
        "min_examples": min_examples,
        "batch_size": batch_size,
    }
    FlowerBridge(**options)  # complains now rather than in the first round
    choice("secure", secure, ("auto", "required"))
    half = SecureAggregation(trusted_keys, signing_key)
    arguments = {"max_epochs": 1, **_QUIET, **(trainer or {})}
    root, training = _folder(keep_optimizer, keep_local), keep_optimizer is not False
    app = ClientApp()

    @contextmanager
    def run(
        message: Message, context: Context, fits: bool = False
    ) -> Iterator[tuple[pl.Trainer, Any, Any, FlowerBridge]]:
        bridge = FlowerBridge.from_message(message, context, **options)
        bridge._remedy = _REMEDY
        persistence = (
            [StatePersistence.from_message(bridge, message, context, root, training)] if root else []
        )
        bridge.keeps_home = True  # or is not to
        own = copy.deepcopy(arguments)
        callbacks = own.pop("callbacks", None) or []
        callbacks = callbacks if isinstance(callbacks, list) else [callbacks]
        seed = derive_seed(
            read_seed(message),
            bridge.server_round,
            bridge.client_id,
            message.metadata.message_type.split(".")[0],
        )
        build_seed = derive_seed(read_seed(message), 0, bridge.client_id, "model")
        alone = persistence[0].alone() if persistence and fits else nullcontext()
        with alone, seeded(seed), _threads(num_threads), _quiet(), _collected():
            local = pl.Trainer(callbacks=[bridge, *persistence, *callbacks], **own)
            refuse_script_launcher(local)
            with seeded(build_seed):
                module = model()  # alike in every round: what stays at home and is frozen needs no keeping
            source = data(context)
            refuse_other_data(source)
            yield local, module, source, bridge
            for callback in persistence:
                callback.remember_round(context)

    plain: list[Any] = [refuse_plain] if secure == "required" else []

    @app.train(ACTION, mods=[half])
    @app.train(mods=plain)
    def train(message: Message, context: Context) -> Message:
        with run(message, context, fits=True) as (local, module, source, bridge):
            local.fit(module, source)
            return bridge.reply()

    @app.evaluate()
    def evaluate(message: Message, context: Context) -> Message:
        with run(message, context) as (local, module, source, bridge):
            refuse_without_validation(module)
            local.validate(module, source, verbose=False)
            return bridge.reply()

    @app.query()
    def query(message: Message, context: Context) -> Message:
        return query_reply(message, client_id(context))

    return app


def _check_arguments(model: Any, data: Any, trainer: Any) -> None:
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
    if trainer is not None and not isinstance(trainer, Mapping):
        raise TypeError(f"`trainer` must be a dict of arguments for `Trainer`. Got {_kind(trainer)}.")
    known = inspect.signature(pl.Trainer).parameters
    if unknown := [name for name in trainer or {} if name not in known]:
        raise TypeError(
            f"`trainer` holds {unknown}, which `Trainer` does not know. It knows {sorted(known)}."
        )


def _folder(keep_optimizer: Any, keep_local: Any) -> Path | None:
    """Tell where clients keep their states; None if they keep none."""
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


@contextmanager
def _threads(number: int | None) -> Iterator[None]:
    """Have torch use this many threads, and then as many as before."""
    if number is None:
        yield
        return
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence what a Trainer says about itself in every fit; warnings about the user's code pass."""
    banner = logging.getLogger("lightning.pytorch.utilities.rank_zero")
    level = banner.level
    banner.setLevel(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", PossibleUserWarning)
            warnings.filterwarnings("ignore", message=".*LeafSpec", category=FutureWarning)
            yield
    finally:
        banner.setLevel(level)


@contextmanager
def _collected() -> Iterator[None]:
    """Free the reference cycle that a finished Trainer and module form."""
    _freeze_imports()
    try:
        yield
    finally:
        gc.collect()


@cache
def _freeze_imports() -> None:
    """Take what is alive before the first fit, imports mostly, out of the collector.

    Collecting after each fit then costs next to nothing. Counting what is frozen costs milliseconds: once.
    """
    if not gc.get_freeze_count():
        gc.collect()
        gc.freeze()
