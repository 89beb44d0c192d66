"""`RoundProgressBar`: what a person sees while a federated fit runs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.cells import cell_len
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Column
from rich.text import Text

from lightning_fl_ext.metric_names import foremost
from lightning_fl_ext.results import ClientUpdate
from lightning_fl_ext.server.callbacks.base import RoundCallback
from lightning_fl_ext.server.record import RoundRecord, why_void
from lightning_fl_ext.server.screening.rejection import Rejection, summary_lines
from lightning_fl_ext.text import shown

if TYPE_CHECKING:
    from lightning_fl_ext.server.fit import FederatedFit

_NAMED = 2  # clients waited for, named beside the bar
_ONE_LINE = Column(no_wrap=True, overflow="ellipsis")


class RoundProgressBar(RoundCallback):
    """Shows one bar over the rounds and one over the replies of the round; plain lines off a terminal.

    Beside the bar of the replies it names the clients that are waited for. Under the bars there is a line for
    each round with its metrics and for those left out, and at the end the digest of the model. On a terminal
    a line that is too long goes on in the next, never between a name and its value.

    Args:
        console: Where to write. Default: the standard output.
        metrics: Names of the metrics to show. Default: four. The one that the trainer monitors comes first,
            then those of evaluations, one of each kind, scores before losses; those of the clients' own fits
            come last.

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
        self._asked: frozenset[str] = frozenset()
        self._replied: list[str] = []

    def on_fit_start(self, trainer: FederatedFit) -> None:
        """Called before the first round: draws the bars."""
        self._unknown = set()
        if trainer.current_round:
            self.console.print(f"going on after round {trainer.current_round}")
        if not self.console.is_terminal:
            return
        self._progress = Progress(
            TextColumn("{task.description:<12}"),
            BarColumn(20),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[waiting]}", markup=False, table_column=_ONE_LINE),
            console=self.console,
            transient=True,
        )
        self._rounds = self._progress.add_task(
            "rounds", total=trainer.max_rounds, completed=trainer.current_round, waiting=""
        )
        self._replies = self._progress.add_task("replies", total=None, visible=False, waiting="")
        self._progress.start()

    def on_round_start(self, trainer: FederatedFit) -> None:
        """Called when a round begins: before the first, shows what the server measured before it."""
        if trainer.current_round == 1 and trainer.rounds:
            self._say_parts([self._title(trainer, 0), *self._measured(trainer, trainer.rounds[0])])

    def on_messages(self, trainer: FederatedFit, clients: list[str]) -> None:
        """Called before messages go out: empties the bar of the replies."""
        self._asked, self._replied = frozenset(clients), []
        if self._progress is not None:
            self._progress.reset(self._replies, total=len(clients), visible=True, waiting="")

    def on_reply(self, trainer: FederatedFit, reply: ClientUpdate | Rejection | None) -> None:
        """Called for each reply to a training message: moves on, and says who is waited for."""
        self._note("" if reply is None else reply.client_id)

    def on_evaluation_reply(self, trainer: FederatedFit, reply: ClientUpdate | Rejection | None) -> None:
        """Called for each reply to an evaluation: moves on, and says who is waited for."""
        self._note("" if reply is None else reply.client_id)

    def on_round_end(self, trainer: FederatedFit) -> None:
        """Called when a round is complete: writes its line, and one for those left out."""
        record = trainer.rounds[-1]
        void = []
        if record.void:
            why = why_void(record, trainer.min_accepted, trainer.strategy)
            void = [f"[void, the model stays: {why}]"]
        clients = f"clients {len(record.accepted)}/{len(record.sampled)}"
        title = self._title(trainer, record.server_round)
        self._say_parts([title, clients, *self._measured(trainer, record), *void])
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

    def _measured(self, trainer: FederatedFit, record: RoundRecord) -> list[str]:
        names = self.metrics or foremost(record.metrics, trainer.monitor)
        return [f"{shown(n, 60)} {record.metrics[n]:.4g}" for n in names if n in record.metrics]

    def _note(self, client: str) -> None:
        """Move the bar of the replies: a client replies once, whatever else is said of it."""
        if not client or client not in self._replied:
            self._replied.append(client)
        if self._progress is None:
            return
        waiting = sorted(self._asked.difference(self._replied))
        known = self._asked.issuperset(self._replied)  # else some are asked by other names than they give
        self._progress.update(
            self._replies, completed=len(self._replied), waiting=_waited_for(waiting) if known else ""
        )

    @staticmethod
    def _title(trainer: FederatedFit, number: int) -> str:
        return f"round {number:>{len(str(trainer.max_rounds))}}/{trainer.max_rounds}"

    def _say_parts(self, parts: Sequence[str]) -> None:
        """Write parts in a line; on a terminal in several, if one is too narrow."""
        room = self.console.width if self.console.is_terminal else 2000
        lines = [parts[0]]
        for part in parts[1:]:
            joined = f"{lines[-1]}  {part}"
            if cell_len(joined) <= room:
                lines[-1] = joined
            else:
                lines.append(" " * (len(parts[0]) + 2) + part)
        for line in lines:
            self._say(line)

    def _say(self, line: str, style: str | None = None) -> None:
        self.console.print(Text(shown(line, 2000)), style=style, soft_wrap=True)

    def _stop(self) -> None:
        if self._progress is not None:
            self._progress.stop()
            self._progress = None


def _waited_for(clients: Sequence[str]) -> str:
    """Name clients in little room.

    Example:
        >>> _waited_for(["a", "b", "c"]), _waited_for([])
        ('waiting for a, b and 1 more', '')
    """
    more = f" and {len(clients) - _NAMED} more" if len(clients) > _NAMED else ""
    return f"waiting for {', '.join(shown(c, 20) for c in clients[:_NAMED])}{more}" if clients else ""
