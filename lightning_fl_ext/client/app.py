"""`client_app`: a whole Flower ClientApp around a LightningModule."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import cache
from typing import Any

import lightning.pytorch as pl
import torch
from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from lightning_fl_ext.arguments import choice
from lightning_fl_ext.client.algorithms.base import ClientAlgorithm
from lightning_fl_ext.client.algorithms.choice import check_halves
from lightning_fl_ext.client.algorithms.memory import AlgorithmMemory, ContextMemory
from lightning_fl_ext.client.app_arguments import check_arguments, check_threads, check_timeout, states_folder
from lightning_fl_ext.client.bridge.bridge import FlowerBridge
from lightning_fl_ext.client.bridge.refusals import (
    refuse_other_data,
    refuse_script_launcher,
    refuse_without_test,
    refuse_without_validation,
)
from lightning_fl_ext.client.factories import asks_for
from lightning_fl_ext.client.identity import client_id
from lightning_fl_ext.client.launcher.kept import KeptProcesses
from lightning_fl_ext.client.launcher.launchers import (
    Launcher,
    Processes,
    launcher_of,
    refuse_other_machines,
)
from lightning_fl_ext.client.launcher.needs import processes_needed
from lightning_fl_ext.client.launcher.rank import is_inside
from lightning_fl_ext.client.launcher.remote import answer_in_processes
from lightning_fl_ext.client.launcher.work import set_work
from lightning_fl_ext.client.messages import outcome_kind, query_reply, read_run_id, read_seed, read_stage
from lightning_fl_ext.client.notices import warn_if_seeded, warn_of_training_rows
from lightning_fl_ext.client.persistence.algorithm_states import FolderMemory
from lightning_fl_ext.client.persistence.callback import StatePersistence
from lightning_fl_ext.client.personal import PersonalHalf, PersonalModel, is_personal
from lightning_fl_ext.client.results.store import UPDATE
from lightning_fl_ext.client.secure import SecureAggregation, refuse_plain
from lightning_fl_ext.client.trainers import check_trainer, give_folder, trainer_arguments
from lightning_fl_ext.failures import signed
from lightning_fl_ext.lightnings import data_for, lightning_of, quiet
from lightning_fl_ext.seeds import derive_seed, seeded
from lightning_fl_ext.wire import Exchange
from lightning_fl_ext.wire.secure_record import ACTION

_REMEDY = "`client_app(batch_size=...)` (on the command line `--batch-size MODULE:NAME`)"


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
            With False, every message begins with them as ``model`` builds them.
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
    root, training = states_folder(keep_optimizer, keep_local), keep_optimizer is not False
    app = ClientApp()

    @contextmanager
    def run(
        message: Message, context: Context, fits: bool = False
    ) -> Iterator[tuple[pl.Trainer, Any, Any, FlowerBridge, PersonalModel | None]]:
        bridge = FlowerBridge.from_message(message, context, algorithms=halves, **options)
        bridge._remedy = _REMEDY
        bridge.keeps_local = True  # or is not to
        run_id = read_run_id(message, context)

        def memory(algorithm: str) -> AlgorithmMemory:
            if root is None:
                return ContextMemory(context, run_id, algorithm)
            return FolderMemory(root, bridge.client_id or f"node {context.node_id}", run_id, algorithm)

        if bridge._part:
            bridge._part.memory = memory(bridge._part.half.name)
        kind = message.metadata.message_type.split(".")[0]
        seed = derive_seed(read_seed(message), bridge.server_round, bridge.client_id, kind)
        build_seed = derive_seed(read_seed(message), 0, bridge.client_id, "model")

        def make(kind: str, callbacks: list[Any]) -> tuple[Any, Any, Any]:
            check_trainer(given := make_trainer(bridge.round))
            asks = launcher not in (None, "in-process") and not is_inside()
            if asks and (count := processes_needed(given, named)):
                raise _ProcessesNeeded(given, count)
            own = trainer_arguments(given)
            owner = bridge.client_id or f"node-{context.node_id}"
            give_folder(own, run_id, owner, bridge.server_round, kind, clear=not is_inside())
            own["callbacks"] = [*callbacks, *own["callbacks"]]
            with seeded(build_seed):  # alike in every round: what stays at home and is frozen is not kept
                module = make_model(bridge.round)
            source = make_data(bridge.round)
            warn_if_seeded(seed, run_id)
            lightning = _lightning_of(module)
            local = lightning.Trainer(**own)
            if not is_inside():
                refuse_script_launcher(local)
            refuse_other_data(source)
            return local, module, data_for(lightning, source)

        with ExitStack() as around:
            around.enter_context(signed(bridge.client_id))
            persistence = (
                [StatePersistence.from_message(bridge, message, context, root, training)] if root else []
            )
            if persistence and fits and not is_inside():  # there, the client itself holds it
                around.enter_context(persistence[0].alone())
            for manager in (bridge.seeded(), _threads(num_threads), quiet(), _collected()):
                around.enter_context(manager)
            personal = PersonalModel(bridge, memory(PersonalHalf.name), make) if is_personal(bridge) else None
            yield *make(kind, [bridge, *persistence]), bridge, personal
            warn_if_seeded(seed, run_id)  # in a hook of data module or model
            for callback in persistence:
                callback.remember_round(context)

    def work(message: Message, context: Context) -> Message | None:
        """Fit or evaluate in this process; None on a rank that has no answer."""
        fits = outcome_kind(message) == UPDATE
        with run(message, context, fits) as (local, module, source, bridge, personal):
            if fits:
                local.fit(module, source)
                if personal:
                    personal.fit()
            elif read_stage(message) == "test":
                refuse_without_test(module, source)
                local.test(module, source, verbose=False)
            else:
                refuse_without_validation(module, source)
                warn_of_training_rows(source, read_run_id(message, context))
                local.validate(module, source, verbose=False)
                if personal:
                    personal.validate()
            return bridge.reply() if local.is_global_zero else None

    chosen, unnamed = launcher_of(launcher), KeptProcesses() if launcher == "kept" else Processes()
    check_timeout(fit_timeout, launcher)
    named = chosen is not None or fit_timeout is not None

    def answer(message: Message, context: Context) -> Message:
        """Answer in this process, or have others do so where the Trainer's arguments ask for several."""
        try:
            reply = work(message, context)
        except _ProcessesNeeded as needed:
            return delegate(message, context, needed)
        assert reply is not None  # rank 0 is here
        return reply

    def delegate(message: Message, context: Context, needed: _ProcessesNeeded) -> Message:
        bridge = FlowerBridge.from_message(message, context, algorithms=halves, **options)
        owner = bridge.client_id or f"node-{context.node_id}"
        kind = message.metadata.message_type.split(".")[0]
        with ExitStack() as around:
            around.enter_context(signed(bridge.client_id))
            own = trainer_arguments(needed.given)
            give_folder(own, read_run_id(message, context), owner, bridge.server_round, kind)
            if root and outcome_kind(message) == UPDATE:
                held = StatePersistence.from_message(bridge, message, context, root, training)
                around.enter_context(held.alone())
            started = chosen or unnamed
            refuse_other_machines(started, needed.given)
            return answer_in_processes(app, message, context, started, needed.count, fit_timeout)

    set_work(app, work)
    plain: list[Any] = [refuse_plain] if secure == "required" else []

    @app.train(ACTION, mods=[half])
    @app.train(mods=plain)
    def train(message: Message, context: Context) -> Message:
        return answer(message, context)

    @app.evaluate(ACTION, mods=[half])
    @app.evaluate(mods=plain)
    def evaluate(message: Message, context: Context) -> Message:
        return answer(message, context)

    @app.query()
    def query(message: Message, context: Context) -> Message:
        return query_reply(message, client_id(context))

    return app


class _ProcessesNeeded(Exception):
    """The Trainer's arguments ask for processes, so nothing is built in this one."""

    def __init__(self, given: Any, count: int) -> None:
        super().__init__(f"{count} processes are to be started")
        self.given, self.count = given, count


def _lightning_of(module: Any) -> Any:
    try:
        return lightning_of(module)
    except TypeError as error:
        raise TypeError(f"`model` did not make what a Trainer takes: {error}") from None


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
