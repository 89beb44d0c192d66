"""`client_app`: a whole Flower ClientApp around a LightningModule."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import lightning.pytorch as pl
from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from lightning_fl_ext.arguments import choice
from lightning_fl_ext.client.algorithms.base import ClientAlgorithm
from lightning_fl_ext.client.algorithms.choice import check_halves
from lightning_fl_ext.client.answer.instruction import Recipe
from lightning_fl_ext.client.answer.work import Answerer
from lightning_fl_ext.client.app_arguments import check_arguments, check_threads, check_timeout, states_folder
from lightning_fl_ext.client.bridge.bridge import FlowerBridge
from lightning_fl_ext.client.factories import asks_for, reads_round
from lightning_fl_ext.client.identity import client_id
from lightning_fl_ext.client.launcher.kept import KeptProcesses
from lightning_fl_ext.client.launcher.launchers import Launcher, launcher_of
from lightning_fl_ext.client.launcher.naming import NamedApp
from lightning_fl_ext.client.launcher.work import set_work
from lightning_fl_ext.client.messages import query_reply
from lightning_fl_ext.client.personal import PersonalHalf
from lightning_fl_ext.client.secure import SecureAggregation, refuse_plain
from lightning_fl_ext.wire import Exchange
from lightning_fl_ext.wire.secure_record import ACTION


def client_app(
    model: Callable[..., pl.LightningModule],
    data: Callable[..., Any],
    trainer: Mapping[str, Any] | Callable[..., Mapping[str, Any]] | None = None,
    *,
    submit: str = "last",
    monitor: str | None = None,
    mode: str = "min",
    exchange: Exchange | None = None,
    allow_example_states: tuple[str, ...] = (),
    exclude_metrics: tuple[str, ...] = (),
    min_examples: int = 0,
    share_metrics: bool = True,
    num_threads: int | None = None,
    keep_optimizer: bool | str | os.PathLike[str] = False,
    batch_size: Callable[[Any], int] | None = None,
    keep_local: bool | str | os.PathLike[str] = True,
    secure: str = "auto",
    trusted_keys: str | os.PathLike[str] | None = None,
    signing_key: str | os.PathLike[str] | None = None,
    algorithms: tuple[type[ClientAlgorithm], ...] = (),
    launcher: str | Sequence[str] | Launcher | None = "auto",
    fit_timeout: float | None = None,
) -> ClientApp:
    """Make a Flower ``ClientApp`` that trains, evaluates, and tells who it is.

    Every message gets a fresh module, data module and Trainer. All randomness of a fit is seeded from the
    server's run seed, the round and the client id, and the process's own random state is put back, so a fit
    gives the same bytes in whichever process and order it runs.

    Args:
        model: Makes the LightningModule: its class, or a function.
        data: Gives the client's data: from the ``Context`` to a LightningDataModule or a train DataLoader.
            An evaluation runs ``Trainer.validate`` on the same object: on the rows of the training, if it is
            a loader. The test of the final model, if the server asks for it, runs ``Trainer.test`` on a
            LightningDataModule.
        trainer: Arguments for the Trainer, which is that of the module's own Lightning
            (``lightning.pytorch`` or ``pytorch_lightning``), or a function that gives them. Callbacks and
            loggers among them are copied for every fit. Default: one epoch. Progress bar, logger,
            checkpoints, model summary and sanity check are off unless asked for, or needed by one of the
            callbacks. Files go to a folder for each run, client and round, below ``default_root_dir``, or
            below the folder that a logger or checkpoint callback was given.
        submit: What a client hands in; see :class:`FlowerBridge`.
        monitor: See :class:`FlowerBridge`.
        mode: See :class:`FlowerBridge`.
        exchange: What of the model travels. Default: all of it. The server must use the same.
        allow_example_states: See :class:`FlowerBridge`.
        exclude_metrics: See :class:`FlowerBridge`.
        min_examples: See :class:`FlowerBridge`.
        share_metrics: See :class:`FlowerBridge`.
        num_threads: Torch's threads on the processor during a fit. Large sums come out otherwise on another
            number of threads, and engines give clients different numbers: name one to have the same bytes on
            all of them. Default: as many as the engine gives.
        keep_optimizer: Whether a fit goes on with the optimizers, LR schedulers, gradient scaler and counters
            of steps and epochs from where the client's fit before ended. True keeps them where
            ``keep_local`` says, a path in that folder, and what ``keep_local`` keeps as well.
        keep_local: Whether weights that do not travel, and change, go on from round to round. True keeps them
            in ``~/.local/state/lightning_fl_ext`` (under ``$XDG_STATE_HOME``, if that is set), a path in that
            folder; there in a folder for each client and run. Where all weights travel, nothing is written.
            With False, every message begins with them as ``model`` builds them. What an exchange keeps of the
            global arrays, as masks do, lies there, too.
        batch_size: Gives the number of examples in a batch, the weight of a client; see
            :class:`FlowerBridge`.
        secure: Whether updates and evaluations are masked if the server asks for it (``"auto"``), or leave in
            no other form (``"required"``): a server that asks for plain ones then gets an error, and neither
            weights nor metrics.
        trusted_keys: See :class:`SecureAggregation`.
        signing_key: See :class:`SecureAggregation`.
        algorithms: Client halves of your own algorithms, classes derived from :class:`ClientAlgorithm`. What
            they keep lies where ``keep_local`` says; with False, in Flower's ``Context``.
        launcher: Who starts the processes of a fit or evaluation. ``"auto"`` starts none for one device, nor
            for strategies that start their own (``ddp_fork``, ``ddp_spawn``), and else an interpreter for
            each device of this machine. ``"kept"`` is the same, and these stay for the messages to come, so
            that only the first waits for them. A command, such as ``["srun", "--ntasks-per-node", "4"]`` or
            ``["torchrun", "--standalone", "--nproc-per-node", "4"]``, starts them in every case.
            ``"in-process"``, or None: never. The processes import this app, so it must stand at the top level
            of a file.
        fit_timeout: Seconds after which the processes of a fit or evaluation are ended, and the client
            answers with an error. With it, there is a process for one device, too. Default: no limit.

    ``model``, ``data`` and ``trainer`` may have a parameter ``context``, for the client's ``Context``, and
    one named ``round``, for its :class:`ClientRound`; annotated so, they may have other names.

    Returns:
        For ``flwr run``, or for :func:`~lightning_fl_ext.run_local`.

    Raises:
        TypeError: ``model`` or ``data`` cannot be called, ``trainer`` holds no arguments of a Trainer, or
            ``exchange``, ``keep_optimizer``, ``keep_local`` or ``batch_size`` is of another type.
        ValueError: ``num_threads`` is below 1, ``fit_timeout`` is not above 0, or without processes that
            could be ended, ``keep_optimizer`` and ``keep_local`` contradict, or
            ``secure`` is something else.
        LightningFLError: ``trusted_keys`` or ``signing_key`` cannot be read.

    Example:
        ``client_app(LitDigits, data=lambda context: Digits(context), trainer={"max_epochs": 2})``
    """
    check_arguments(model, data, trainer)
    make_model, make_data = asks_for(model, "model"), asks_for(data, "data")
    make_trainer = asks_for(trainer, "trainer") if callable(trainer) else (lambda told: trainer or {})
    made = {"model": model, "data": data} | ({"trainer": trainer} if callable(trainer) else {})
    check_threads(num_threads)
    options: dict[str, Any] = {
        "submit": submit,
        "monitor": monitor,
        "mode": mode,
        "exchange": exchange,
        "allow_example_states": allow_example_states,
        "exclude_metrics": exclude_metrics,
        "min_examples": min_examples,
        "share_metrics": share_metrics,
        "batch_size": batch_size,
    }
    halves: tuple[type[ClientAlgorithm], ...] = (PersonalHalf, *check_halves(algorithms))
    FlowerBridge(**options)  # complains now rather than in the first round
    choice("secure", secure, ("auto", "required"))
    half = SecureAggregation(trusted_keys, signing_key)
    chosen = KeptProcesses() if launcher == "kept" else launcher_of(launcher)
    check_timeout(fit_timeout, launcher)
    recipe = Recipe(
        model=make_model,
        data=make_data,
        trainer=make_trainer,
        bridge=options,
        halves=halves,
        num_threads=num_threads,
        root=states_folder(keep_optimizer, keep_local),
        keeps_training=keep_optimizer is not False,
        may_start=launcher not in (None, "in-process"),
        always_starts=(chosen is not None and launcher != "kept") or fit_timeout is not None,
        reads_settings=bool(algorithms) or any(reads_round(f, name) for name, f in made.items()),
    )
    answerer = Answerer(recipe, chosen, fit_timeout)
    app = ClientApp()
    named = NamedApp(app)
    set_work(app, answerer.work)
    plain: list[Any] = [refuse_plain] if secure == "required" else []

    @app.train(ACTION, mods=[half])
    @app.train(mods=plain)
    def train(message: Message, context: Context) -> Message:
        return answerer.answer(named, message, context)

    @app.evaluate(ACTION, mods=[half])
    @app.evaluate(mods=plain)
    def evaluate(message: Message, context: Context) -> Message:
        return answerer.answer(named, message, context)

    @app.query()
    def query(message: Message, context: Context) -> Message:
        return query_reply(message, client_id(context))

    return app
