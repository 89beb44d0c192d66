"""What is checked of every library: counts, the mean, and the digest in another order and after a resume."""

from __future__ import annotations

import logging
import os
import tempfile
import time
import warnings
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import numpy as np
import torch
from flwr.app import ArrayRecord, Message
from flwr.clientapp import ClientApp

from lightning_fl_ext import (
    ExactFedAvg,
    FederatedTrainer,
    LightningFLError,
    RoundCallback,
    RoundCheckpoint,
    WeightExchange,
    run_local,
    server_app,
)

CLIENTS, ROUNDS = 3, 2

CPU: dict[str, Any] = {"accelerator": "cpu", "devices": 1}
"""Settings of every client's Trainer."""

UNCHANGED = "works unchanged"


class Site(L.LightningDataModule):
    """A client's loaders."""

    def __init__(self, train: Any, validation: Any) -> None:
        super().__init__()
        self._train, self._validation = train, validation

    def train_dataloader(self) -> Any:
        return self._train

    def val_dataloader(self) -> Any:
        return self._validation


class CheckFailed(Exception):
    """A library's module does not federate as it should."""


@dataclass
class Witness(RoundCallback):
    """Notes what clients send, as Flower decodes it, and what the server makes of it in each round.

    Attributes:
        stop: Before which round to stop the run as a crash would; 0 for none.
        sent: By message type, then client by client: id, number of examples, arrays.
        means: The global arrays after each round.
        metrics: The last value of every metric.
        errors: What clients answered in place of a reply.
    """

    stop: int = 0
    sent: dict[str, list[tuple[str, int, dict[str, Any]]]] = field(default_factory=dict)
    means: list[dict[str, Any]] = field(default_factory=list)
    metrics: dict[str, float] = field(default_factory=dict)
    errors: list[str] = field(default_factory=list)

    def __call__(self, instruction: Message, reply: Message) -> Message:
        """See a reply on its way to the server."""
        kind = instruction.metadata.message_type
        if kind not in ("train", "evaluate"):
            return reply
        if reply.has_error():
            self.errors.append(reply.error.reason)
        else:
            content = reply.content
            records = [record for record in content.values() if isinstance(record, ArrayRecord)]
            arrays = {name: array.numpy() for record in records for name, array in record.items()}
            seen = str(content["client"]["client-id"]), int(content["metrics"]["num-examples"]), arrays
            self.sent.setdefault(kind, []).append(seen)
        return reply

    def on_round_start(self, trainer: Any) -> None:
        if trainer.current_round == self.stop:
            raise RuntimeError("stopped in between")

    def on_replies(self, trainer: Any) -> None:
        self.means.append(dict(trainer.arrays))

    def on_fit_end(self, trainer: Any) -> None:
        self.metrics = dict(trainer.callback_metrics)


def check(
    library: str,
    module: str,
    model: Callable[[], torch.nn.Module],
    client: ClientApp,
    counts: Sequence[int] | Callable[[], Collection[tuple[str, int]]],
    *,
    evaluated: Sequence[int] | None = None,
    exchange: WeightExchange | None = None,
    outcome: str = UNCHANGED,
) -> dict[str, float]:
    """Federate a library's module over three clients and two rounds, and print a row of the table.

    Args:
        library: Its distribution's name.
        module: What of it is federated.
        model: Makes the module that the server starts from.
        client: What each client runs.
        counts: True number of training examples of each client; or a function that gives, after a run, the
            client and the number of each of its fits.
        evaluated: True number of validation examples of each client; None if clients do not evaluate.
        exchange: What of the model travels. Default: all of it.
        outcome: What a user has to do for it.

    Returns:
        The metrics of the run.

    Raises:
        CheckFailed: A count, a mean or a digest is wrong, or a client failed.
    """
    start = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="ecosystem-") as folder:
        os.environ["XDG_STATE_HOME"] = folder  # what clients keep lies there
        os.chdir(folder)

        def run(name: str, witness: Witness, **options: Any) -> str:
            strategy = ExactFedAvg(fraction_evaluate=0.0 if evaluated is None else 1.0)
            trainer = FederatedTrainer(
                max_rounds=ROUNDS,
                strategy=strategy,
                seed=7,
                callbacks=[witness, RoundCheckpoint()],
                default_root_dir=Path(folder) / name,
                enable_progress_bar=False,
                exchange=exchange,
            )
            app = server_app(model, trainer, ckpt_path="last")
            try:
                run_local(app, client, CLIENTS, faults=witness, **options)
            except LightningFLError as error:
                if not witness.stop and not witness.errors:
                    raise CheckFailed(str(error)) from error
            if witness.errors:
                raise CheckFailed(f"a client failed:\n{witness.errors[0]}")
            if rejected := [rejection for record in trainer.rounds for rejection in record.rejected]:
                raise CheckFailed(f"left out: {rejected[0]}")
            return trainer.result.digest if trainer.result else ""

        whole = Witness()
        digest = run("whole", whole)
        _compare_counts("train", whole, counts() if callable(counts) else counts)
        if evaluated is not None:
            _compare_counts("evaluate", whole, evaluated)
        _compare_means(whole)
        other = run("reversed", reversed_ := Witness(), arrival=lambda messages: messages[::-1])
        _compare_runs("another arrival order", digest, whole, other, reversed_)
        run("stopped", Witness(stop=ROUNDS))
        other = run("stopped", resumed := Witness())
        if len(resumed.means) != 1:
            raise CheckFailed("the run that was stopped did not go on where it was")
        _compare_runs("a run that was stopped and went on", digest, whole, other, resumed)
    print_row(library, module, outcome, time.perf_counter() - start)
    return whole.metrics


def print_row(library: str, module: str, outcome: str, seconds: float) -> None:
    """Print a row of the table."""
    print(
        "| " + " | ".join(_cells(library, version(library), f"`{module}`", outcome, f"{seconds:.0f}")) + " |"
    )


def print_header() -> None:
    """Print the head of the table."""
    print("| " + " | ".join(_cells("library", "version", "module", "outcome", "seconds")) + " |")
    print("|---" * 5 + "|", flush=True)


def _cells(*texts: str) -> list[str]:
    return [text.ljust(width) for text, width in zip(texts, (27, 7, 32, 72, 7), strict=True)]


def quiet() -> None:
    """Silence what libraries say about themselves."""
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)  # the models are tiny


def _compare_counts(kind: str, witness: Witness, true: Collection[Any]) -> None:
    numbered = [one if isinstance(one, tuple) else (str(client), one) for client, one in enumerate(true)]
    expected = set(numbered)
    told = {(client, count) for client, count, _ in witness.sent.get(kind, [])}
    if told != expected:
        raise CheckFailed(f"{kind}: expected (client, examples) {sorted(expected)}. Got {sorted(told)}")


def _compare_runs(what: str, digest: str, whole: Witness, other: str, witness: Witness) -> None:
    """Compare digests, and the metrics of the last round, NaN being equal to itself."""
    if digest != other:
        raise CheckFailed(f"{what} gave another digest")
    if repr(sorted(whole.metrics.items())) != repr(sorted(witness.metrics.items())):
        raise CheckFailed(f"{what} gave other metrics: {whole.metrics} against {witness.metrics}")


def _compare_means(witness: Witness) -> None:
    """Compare each round's model with numpy's mean of what the clients sent, weighted by their counts."""
    for number, mean in enumerate(witness.means):
        replies = witness.sent["train"][number * CLIENTS : (number + 1) * CLIENTS]
        total = sum(count for _, count, _ in replies)
        for name, value in mean.items():
            terms = [count * np.asarray(arrays[name], dtype=np.float64) for _, count, arrays in replies]
            expected = sum(terms) / total
            if not np.issubdtype(value.dtype, np.floating):
                expected = np.rint(expected)
            error = np.abs(value - expected)
            if not np.all(error <= 2.0**-22 * np.abs(expected) + 1e-10):
                raise CheckFailed(f"round {number + 1}, {name}: off numpy's mean by {error.max():.3g}")
