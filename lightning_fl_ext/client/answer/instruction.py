"""One message to a client, and what is built anew for it: module, data, Trainer, and what they remember."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from flwr.app import Context, Message

from lightning_fl_ext.client.algorithms.base import ClientAlgorithm
from lightning_fl_ext.client.algorithms.memory import AlgorithmMemory, ContextMemory
from lightning_fl_ext.client.answer.process_state import garbage_collected, threads
from lightning_fl_ext.client.bridge.bridge import FlowerBridge
from lightning_fl_ext.client.bridge.refusals import refuse_other_data, refuse_script_launcher
from lightning_fl_ext.client.launcher.needs import processes_needed, refuse_untold
from lightning_fl_ext.client.launcher.rank import is_inside
from lightning_fl_ext.client.messages import outcome_kind, read_run_id, read_seed
from lightning_fl_ext.client.notices import warn_if_seeded, warn_of_unread
from lightning_fl_ext.client.persistence.algorithm_states import FolderMemory
from lightning_fl_ext.client.persistence.callback import StatePersistence
from lightning_fl_ext.client.personal import PersonalHalf, PersonalModel, is_personal
from lightning_fl_ext.client.results.store import UPDATE
from lightning_fl_ext.client.trainers import check_trainer, give_folder, trainer_arguments
from lightning_fl_ext.failures import signed
from lightning_fl_ext.lightnings import data_for, lightning_of, quiet
from lightning_fl_ext.seeds import derive_seed, seeded

_REMEDY = "`client_app(batch_size=...)` (on the command line `--batch-size MODULE:NAME`)"


@dataclass(frozen=True)
class Recipe:
    """How a client's fits are built, as `client_app` was told.

    Attributes:
        model: Makes the module of a round.
        data: Gives the data of a round.
        trainer: Gives the Trainer's arguments of a round.
        bridge: Options of the FlowerBridge.
        halves: Client halves of algorithms.
        num_threads: Torch's threads during a fit; None: as many as there are.
        root: Where a client's own state lies; None: nowhere.
        keeps_training: Whether optimizers go on, too.
        may_start: Whether a Trainer may ask for processes.
        always_starts: Whether it is to have them for one device, too.
        reads_settings: Whether code of the user's is given the server's settings.
    """

    model: Callable[[Any], pl.LightningModule]
    data: Callable[[Any], Any]
    trainer: Callable[[Any], Mapping[str, Any]]
    bridge: Mapping[str, Any]
    halves: tuple[type[ClientAlgorithm], ...]
    num_threads: int | None
    root: Path | None
    keeps_training: bool
    may_start: bool
    always_starts: bool
    reads_settings: bool


class ProcessesNeeded(Exception):
    """The Trainer's arguments ask for processes, so nothing is built in this one."""

    def __init__(self, given: Any, count: int) -> None:
        super().__init__(f"{count} processes are to be started")
        self.given, self.count = given, count


@dataclass(frozen=True)
class Built:
    """What one message is answered with."""

    trainer: Any
    module: Any
    source: Any
    bridge: FlowerBridge
    personal: PersonalModel | None


class Instruction:
    """A message to a client.

    Args:
        recipe: How its fits are built.
        message: As it arrived.
        context: The client's.
    """

    def __init__(self, recipe: Recipe, message: Message, context: Context) -> None:
        self._recipe, self._message, self._context = recipe, message, context
        self.fits = outcome_kind(message) == UPDATE
        self.run_id = read_run_id(message, context)
        self._kind = message.metadata.message_type.split(".")[0]
        self.bridge = FlowerBridge.from_message(message, context, algorithms=recipe.halves, **recipe.bridge)

    @contextmanager
    def build(self) -> Iterator[Built]:
        """Build module, data and Trainer; keep what is to last when the fit has succeeded.

        Raises:
            ProcessesNeeded: They are to be built in processes of their own.
        """
        recipe, bridge = self._recipe, self.bridge
        bridge._remedy = _REMEDY
        bridge._loses_local = recipe.root is None
        if bridge._part:
            bridge._part.memory = self._memory(bridge._part.half.name)
        with ExitStack() as around:
            around.enter_context(signed(bridge.client_id))
            persistence = self._persistence
            if persistence and self.fits and not is_inside():  # there, the client itself holds it
                around.enter_context(persistence.locked())
            for manager in (bridge.seeded(), threads(recipe.num_threads), quiet(), garbage_collected()):
                around.enter_context(manager)
            personal = None
            if is_personal(bridge):
                personal = PersonalModel(bridge, self._memory(PersonalHalf.name), self._make)
            callbacks = [bridge, persistence] if persistence else [bridge]
            if self.fits and not recipe.reads_settings and not is_inside():
                warn_of_unread(bridge.round.config, self.run_id)
            yield Built(*self._make(self._kind, callbacks), bridge, personal)
            self._warn_if_seeded()  # in a hook of data module or model
            if persistence:
                persistence.remember_round(self._context)

    @contextmanager
    def hand_over(self, given: Mapping[str, Any]) -> Iterator[None]:
        """Hold the client's state, and clear the round's folder, while other processes answer.

        Args:
            given: The Trainer's arguments.
        """
        with ExitStack() as around:
            around.enter_context(signed(self.bridge.client_id))
            self._give_folder(trainer_arguments(given), self._kind, clear=True)
            if self._persistence and self.fits:
                around.enter_context(self._persistence.locked())
            yield

    def _make(self, kind: str, callbacks: list[Any]) -> tuple[Any, Any, Any]:
        """Build a Trainer, a module and data."""
        recipe, client_round = self._recipe, self.bridge.round
        check_trainer(given := recipe.trainer(client_round))
        if recipe.may_start and not is_inside():
            count = processes_needed(given, recipe.always_starts)
            if count:
                raise ProcessesNeeded(given, count)
        own = trainer_arguments(given)
        self._give_folder(own, kind, clear=not is_inside())
        own["callbacks"] = [*callbacks, *own["callbacks"]]
        build_seed = derive_seed(read_seed(self._message), 0, self.bridge.client_id, "model")
        with seeded(build_seed):  # alike in every round: what stays at home and is frozen is not kept
            module = recipe.model(client_round)
        source = recipe.data(client_round)
        self._warn_if_seeded()
        lightning = _lightning_of(module)
        trainer = lightning.Trainer(**own)
        refuse_untold(trainer) if is_inside() else refuse_script_launcher(trainer)
        refuse_other_data(source)
        return trainer, module, data_for(lightning, source)

    @cached_property
    def _persistence(self) -> StatePersistence | None:
        recipe = self._recipe
        if not recipe.root:
            return None
        return StatePersistence.from_message(
            self.bridge, self._message, self._context, recipe.root, recipe.keeps_training
        )

    def _memory(self, algorithm: str) -> AlgorithmMemory:
        if self._recipe.root is None:
            return ContextMemory(self._context, self.run_id, algorithm)
        owner = self.bridge.client_id or f"node {self._context.node_id}"
        return FolderMemory(self._recipe.root, owner, self.run_id, algorithm)

    def _give_folder(self, own: dict[str, Any], kind: str, *, clear: bool) -> None:
        owner = self.bridge.client_id or f"node-{self._context.node_id}"
        give_folder(own, self.run_id, owner, self.bridge.server_round, kind, clear=clear)

    def _warn_if_seeded(self) -> None:
        bridge = self.bridge
        seed = derive_seed(read_seed(self._message), bridge.server_round, bridge.client_id, self._kind)
        warn_if_seeded(seed, self.run_id)


def _lightning_of(module: Any) -> Any:
    try:
        return lightning_of(module)
    except TypeError as error:
        raise TypeError(f"`model` did not make what a Trainer takes: {error}") from None
