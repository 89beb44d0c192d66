"""`RoundProgressBar`: what a person sees while a federated fit runs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.text import Text

from lightning_fl_ext.results import ClientUpdate
from lightning_fl_ext.server.callbacks.base import RoundCallback
from lightning_fl_ext.server.record import RoundRecord, why_void
from lightning_fl_ext.server.screening.rejection import Rejection, summary_lines
from lightning_fl_ext.text import shown

if TYPE_CHECKING:
    from lightning_fl_ext.server.fit import FederatedFit

_BOOKKEEPING = {"clients_accepted", "clients_rejected", "bytes_up", "bytes_down"}


class RoundProgressBar(RoundCallback):
    """Shows one bar over the rounds and one over the replies of the round; plain lines off a terminal.

    Under the bars there is a line for each round with its metrics and for those left out, and at the
    end the digest of the model.

    Args:
        console: Where to write. Default: the standard output.
        metrics: Names of the metrics to show. Default: four, of which the one that the trainer monitors comes
            first, and those of the clients' own fits come last.

    Raises:
        TypeError: ``metrics`` is one name instead of several.
    """

    def __init__(self, console: Console | None = None, metrics: Sequence[str] = ()) -> None:
        if isinstance(metrics, str):
            raise TypeError(f"`metrics` must be several names. Got {metrics!r}: write `({metrics!r},)`.")
        self.console = console or Console(highlight=False)
        self.metrics = tuple(metrics)
        self._progress: Progress | None = None
        self._rounds = self._replies = TaskID(0)
        self._unknown: set[str] = set()

    def on_fit_start(self, trainer: FederatedFit) -> None:
        """Called before the first round: draws the bars."""
        self._unknown = set()
        if trainer.current_round:
            self.console.print(f"going on after round {trainer.current_round}")
        if not self.console.is_terminal:
            return
        self._progress = Progress(
            TextColumn("{task.description:<12}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=self.console,
            transient=True,
        )
        self._rounds = self._progress.add_task(
            "rounds", total=trainer.max_rounds, completed=trainer.current_round
        )
        self._replies = self._progress.add_task("replies", total=None, visible=False)
        self._progress.start()

    def on_round_start(self, trainer: FederatedFit) -> None:
        """Called when a round begins: before the first, shows what the server measured before it."""
        if trainer.current_round == 1 and trainer.rounds:
            self._say(f"{self._title(trainer, 0)}  {self._measured(trainer, trainer.rounds[0])}")

    def on_messages(self, trainer: FederatedFit, clients: list[str]) -> None:
        """Called before messages go out: empties the bar of the replies."""
        if self._progress is not None:
            self._progress.reset(self._replies, total=len(clients), visible=True)

    def on_reply(self, trainer: FederatedFit, reply: ClientUpdate | Rejection | None) -> None:
        """Called for each reply: moves on."""
        if self._progress is not None:
            self._progress.advance(self._replies)

    def on_round_end(self, trainer: FederatedFit) -> None:
        """Called when a round is complete: writes its line, and one for those left out."""
        record = trainer.rounds[-1]
        void = (
            f"  [void, the model stays: {why_void(record, trainer.min_accepted, trainer.strategy)}]"
            if record.void
            else ""
        )
        clients = f"clients {len(record.accepted)}/{len(record.sampled)}"
        title, measured = self._title(trainer, record.server_round), self._measured(trainer, record)
        self._say(f"{title}  {clients}  {measured}{void}")
        for line in summary_lines(record.rejected):
            self._say(f"  {line}", style="yellow")
        unknown = {*self.metrics} - trainer.callback_metrics.keys() - self._unknown
        if unknown and not record.void:
            self._unknown |= unknown
            known = sorted(trainer.callback_metrics)
            self._say(f"  no metric {sorted(unknown)} to show; there are {known}", style="yellow")
        if self._progress is not None:
            self._progress.advance(self._rounds)

    def on_exception(self, trainer: FederatedFit, exception: BaseException) -> None:
        """Called when the fit raised: takes the bars away."""
        self._stop()

    def on_fit_end(self, trainer: FederatedFit) -> None:
        """Called when all rounds are done: writes the best round and the digest."""
        self._stop()
        result = trainer.result
        if result is not None and result.best_round is not None:
            self._say(f"best round: {result.best_round}, {result.monitor} {result.best_score:.4g}")
        if trainer.result is not None:
            self.console.print(f"digest of the final model: {trainer.result.digest}", soft_wrap=True)

    def _measured(self, trainer: FederatedFit, record: RoundRecord) -> str:
        names = self.metrics or _first_four(record.metrics, trainer.monitor)
        return "  ".join(f"{shown(n, 60)} {record.metrics[n]:.4g}" for n in names if n in record.metrics)

    @staticmethod
    def _title(trainer: FederatedFit, number: int) -> str:
        return f"round {number:>{len(str(trainer.max_rounds))}}/{trainer.max_rounds}"

    def _say(self, line: str, style: str | None = None) -> None:
        self.console.print(Text(shown(line, 2000)), style=style, soft_wrap=True)

    def _stop(self) -> None:
        if self._progress is not None:
            self._progress.stop()
            self._progress = None


def _first_four(metrics: Iterable[str], monitor: str | None) -> list[str]:
    names = [name for name in metrics if name not in _BOOKKEEPING]
    return sorted(names, key=lambda name: (name != monitor, name.startswith("fit_")))[:4]
