"""`client_app`: a whole Flower ClientApp around a LightningModule."""

from __future__ import annotations

import copy
import gc
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import lightning.pytorch as pl
from flwr.app import Context, Message
from flwr.clientapp import ClientApp
from lightning.fabric.utilities.warnings import PossibleUserWarning

from lightning_fl_ext.client.bridge import FlowerBridge
from lightning_fl_ext.client.identity import client_id
from lightning_fl_ext.client.messages import query_reply, read_config
from lightning_fl_ext.client.refusals import refuse_script_launcher, refuse_without_validation
from lightning_fl_ext.seeds import derive_seed, seeded
from lightning_fl_ext.wire import Exchange

_QUIET: dict[str, Any] = {
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "num_sanity_val_steps": 0,
}


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
    min_examples: int = 0,
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
        min_examples: See :class:`FlowerBridge`.

    Returns:
        For ``flwr run``, or for :func:`~lightning_fl_ext.run_local`.

    Example:
        ``client_app(LitDigits, data=lambda context: Digits(context), trainer={"max_epochs": 2})``
    """
    options: dict[str, Any] = {
        "submit": submit,
        "monitor": monitor,
        "mode": mode,
        "exchange": exchange,
        "allow_example_states": allow_example_states,
        "min_examples": min_examples,
    }
    FlowerBridge(**options)  # complains now rather than in the first round
    arguments = {"max_epochs": 1, **_QUIET, **(trainer or {})}
    app = ClientApp()

    @contextmanager
    def run(message: Message, context: Context) -> Iterator[tuple[pl.Trainer, Any, Any, FlowerBridge]]:
        bridge = FlowerBridge.from_message(message, context, **options)
        own = copy.deepcopy(arguments)
        callbacks = own.pop("callbacks", None) or []
        callbacks = callbacks if isinstance(callbacks, list) else [callbacks]
        seed = derive_seed(
            read_config(message, "run-seed", 0),
            bridge.server_round,
            bridge.client_id,
            message.metadata.message_type,
        )
        with seeded(seed), _quiet(), _collected():
            local = pl.Trainer(callbacks=[bridge, *callbacks], **own)
            refuse_script_launcher(local)
            yield local, model(), data(context), bridge

    @app.train()
    def train(message: Message, context: Context) -> Message:
        with run(message, context) as (local, module, source, bridge):
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
    """Free the reference cycle that a finished Trainer and module form.

    What is alive before the first fit (imports, mostly) is frozen out of the collector once, so that
    collecting after each fit costs next to nothing.
    """
    if not gc.get_freeze_count():
        gc.collect()
        gc.freeze()
    try:
        yield
    finally:
        gc.collect()
