"""Fit, evaluate or test as a message asks, in this process or in others that are started for it."""

from __future__ import annotations

from dataclasses import dataclass

from flwr.app import Context, Message

from lightning_fl_ext.client.answer.instruction import Instruction, ProcessesNeeded, Recipe
from lightning_fl_ext.client.bridge.refusals import refuse_without_test, refuse_without_validation
from lightning_fl_ext.client.launcher.launchers import Launcher, Processes, refuse_other_machines
from lightning_fl_ext.client.launcher.naming import NamedApp
from lightning_fl_ext.client.launcher.remote import answer_in_processes
from lightning_fl_ext.client.messages import read_stage
from lightning_fl_ext.client.notices import warn_of_training_rows
from lightning_fl_ext.client.persistence.held_file import held_on_disk


@dataclass(frozen=True)
class Answerer:
    """Answers messages with a module that is built for each.

    Attributes:
        recipe: How.
        launcher: Starts the processes of a fit that needs some; None: an interpreter for each device.
        timeout: Seconds after which they are ended; None: never.
    """

    recipe: Recipe
    launcher: Launcher | None = None
    timeout: float | None = None

    def answer(self, app: NamedApp, message: Message, context: Context) -> Message:
        """Answer in this process, or have others do so where the Trainer's arguments ask for several.

        Args:
            app: What those processes import.
            message: As it arrived.
            context: The client's.
        """
        with held_on_disk(self.recipe.root, message, context):
            try:
                reply = self.work(message, context)
            except ProcessesNeeded as needed:
                with Instruction(self.recipe, message, context).hand_over(needed.given):
                    launcher = self.launcher or Processes()
                    refuse_other_machines(launcher, needed.given)
                    name = app.name()
                    return answer_in_processes(name, message, context, launcher, needed.count, self.timeout)
            assert reply is not None  # rank 0 is here
            return reply

    def work(self, message: Message, context: Context) -> Message | None:
        """Fit or evaluate in this process; None on a rank that has no answer."""
        instruction = Instruction(self.recipe, message, context)
        with instruction.build() as built:
            trainer, module, source = built.trainer, built.module, built.source
            if instruction.fits:
                trainer.fit(module, source)
                if built.personal:
                    built.personal.fit()
            elif read_stage(message) == "test":
                refuse_without_test(module, source)
                trainer.test(module, source, verbose=False)
                if built.personal:
                    built.personal.evaluate("test")
            else:
                refuse_without_validation(module, source)
                warn_of_training_rows(source, instruction.run_id)
                trainer.validate(module, source, verbose=False)
                if built.personal:
                    built.personal.evaluate("validate")
            return built.bridge.reply() if trainer.is_global_zero else None
