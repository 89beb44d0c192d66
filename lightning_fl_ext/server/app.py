"""`server_app`: a Flower ServerApp around a FederatedTrainer."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from flwr.app import ArrayRecord, ConfigRecord, Context
from flwr.serverapp import Grid, ServerApp

from lightning_fl_ext.arguments import got
from lightning_fl_ext.server.trainer import FederatedTrainer
from lightning_fl_ext.wire import to_record


def server_app(
    model: torch.nn.Module | Callable[[], torch.nn.Module],
    trainer: FederatedTrainer | None = None,
    *,
    evaluate: Any = None,
    ckpt_path: str | Path | None = None,
    test: Any = None,
) -> ServerApp:
    """Make a Flower ``ServerApp`` that runs a federated fit.

    Args:
        model: See :meth:`FederatedTrainer.fit`.
        trainer: Default: three rounds of exact federated averaging. After the run its ``result`` holds the
            model and the records of the rounds.
        evaluate: See :meth:`FederatedTrainer.fit`.
        ckpt_path: See :meth:`FederatedTrainer.fit`. The run config's ``ckpt-path`` goes before it.
        test: See :meth:`FederatedTrainer.fit`.

    Returns:
        For ``flwr run``, or for :func:`~lightning_fl_ext.run_local`. The final weights and the digest are
        left in the context's state as ``arrays`` and ``result``.

    Raises:
        TypeError: ``trainer`` is something else.
    """
    runner = _trainer_object(FederatedTrainer() if trainer is None else trainer)
    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        path = context.run_config.get("ckpt-path") or ckpt_path
        result = runner.fit(model, grid, evaluate, ckpt_path=path, test=test)  # type: ignore[arg-type]
        arrays: ArrayRecord = to_record(runner.arrays)
        context.state["arrays"] = arrays
        context.state["result"] = ConfigRecord({"digest": result.digest, "rounds": runner.current_round})

    return app


def _trainer_object(value: Any) -> FederatedTrainer:
    if not isinstance(value, FederatedTrainer):
        raise TypeError(f"`trainer` must be a FederatedTrainer.{got(value)}")
    return value
