"""What a client says once in a run: of data, steps, seeds, ranks and noise that are not as they seem."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Any

import torch
from torch.utils._pytree import tree_leaves
from torch.utils.data import IterableDataset

from lightning_fl_ext.lightnings import lightning_name
from lightning_fl_ext.metrics.stage_metrics import METRIC_STATES
from lightning_fl_ext.once import warn_once
from lightning_fl_ext.wire.algorithm_names import ALGORITHM, COUNTED, FOR_ALL, OF_STRATEGIES

log = logging.getLogger(__name__)

_READ = {
    *("run-seed", "run-id", "server-round", "max-rounds", METRIC_STATES, "max-update-norm", "sampled"),
    *(ALGORITHM, COUNTED, *FOR_ALL, *OF_STRATEGIES),
}
"""What the package itself reads of the server's config, or sends for readers of their own."""


def warn_of_training_rows(source: object, run: object) -> None:
    """Say so, once in a run, if an evaluation is over the rows that the client trains on.

    Args:
        source: What ``data`` gave for an evaluation: a LightningDataModule has loaders of its own for it.
        run: Tells the run.
    """
    if lightning_name(source, "LightningDataModule") is None:
        text = (
            "`data` gives one loader, for training and evaluation alike: the metrics of clients' evaluations"
            " are of the rows that they train on. For rows held out, return a LightningDataModule with a"
            " `val_dataloader`. To have no such metrics, set `fraction_evaluate=0.0` in the strategy."
        )
        warn_once(log, run, text)


def warn_of_unread(settings: Iterable[str], run: object) -> None:
    """Say so, once in a run, if the server's settings for a fit reach nobody.

    Args:
        settings: The names of all that its config holds.
        run: Tells the run.
    """
    if unread := ", ".join(f"`{name}`" for name in sorted(set(settings) - _READ)):
        text = (
            f"the server's config holds {unread}, and nobody reads it: neither `model`, `data` nor `trainer`"
            " of `client_app` has a parameter named `round`, whose `round.config` holds it. What fits know by"
            f" themselves is {', '.join(f'`{name}`' for name in FOR_ALL)}."
        )
        warn_once(log, run, text, topic=f"unread: {unread}")


def warn_of_untold_round(algorithm: str, run: object) -> None:
    """Say so, once in a run, if a client cannot know which of its states counted.

    Args:
        algorithm: The half that keeps states.
        run: Tells the run.
    """
    text = (
        f"`{algorithm}` keeps a state on its clients, and the server does not tell in which round a client's"
        " update counted last. It goes on from its newest state, also where the update was left out or the"
        " round was void. With `clients_keep = True` in the strategy's class a `FederatedTrainer` tells it."
    )
    warn_once(log, run, text)


def warn_of_short_accumulation(trainer: Any, run: object) -> None:
    """Say so, once in a run, if a client has too few batches for the gradient that its Trainer accumulates.

    Lightning divides each loss by ``accumulate_grad_batches``, and steps at the end of an epoch with what it
    has. Fewer batches than that give a gradient that is smaller by their share.

    Args:
        trainer: A Lightning Trainer whose training begins.
        run: Tells the run.
    """
    batches, window = trainer.num_training_batches, trainer.accumulate_grad_batches
    if 0 < batches < window:
        text = (
            f"`accumulate_grad_batches={window}` divides every loss by {window}, and a client has {batches}"
            f" batch(es) an epoch: it trains with {batches}/{window} of its gradient, and clients with more"
            " batches with all of theirs. Accumulate no more batches than the smallest client has, or make"
            " its batches smaller."
        )
        warn_once(log, run, text)


def warn_of_unsharded(trainer: Any, run: object) -> None:
    """Say so, once in a run, if every rank may see all of an iterable data set.

    Args:
        trainer: A Lightning Trainer with several processes, whose fit has its loaders.
        run: Tells the run.
    """
    replicas = _replicas(trainer)
    loaders = tree_leaves(trainer.train_dataloader) if replicas > 1 else []
    kinds = {
        type(d).__name__
        for d in (getattr(x, "dataset", None) for x in loaders)
        if isinstance(d, IterableDataset)
    }
    if kinds:
        text = (
            f"Lightning gives the whole of an iterable data set ({', '.join(sorted(kinds))}) to each of"
            f" {replicas} processes. Unless it looks at its rank, each example is seen, and counted in the"
            f" client's weight, {replicas} times. Have its `__iter__` skip by rank:"
            " `itertools.islice(items, rank, None, world_size)` with `torch.distributed.get_rank()`; or"
            " return a data set with `__getitem__`."
        )
        warn_once(log, run, text, topic="unsharded")


def warn_of_one_rank(names: Iterable[str], trainer: Any, run: object) -> None:
    """Say so, once in a run, if numbers logged per epoch are those of one process.

    Args:
        names: Of the numbers; none is none.
        trainer: A Lightning Trainer.
        run: Tells the run.
    """
    _warn_of_rank_0(
        "logged without `sync_dist=True`",
        names,
        "Lightning takes the number of rank 0, of its share of the examples, and so does the server. Write"
        " `self.log(..., sync_dist=True)`, or log a torchmetrics metric.",
        trainer,
        run,
    )


def warn_of_one_batch(names: Iterable[str], trainer: Any, run: object) -> None:
    """Say so, once in a run, if numbers logged on training steps are those of one process.

    Args:
        names: Of the numbers; none is none.
        trainer: A Lightning Trainer.
        run: Tells the run.
    """
    _warn_of_rank_0(
        "logged on training steps alone, without `sync_dist=True`,",
        names,
        "Lightning takes the number of rank 0's last batch, and so does the server. For the mean over the"
        " last epoch, of all processes, write `self.log(..., on_step=False, on_epoch=True, sync_dist=True)`.",
        trainer,
        run,
    )


def _warn_of_rank_0(how: str, names: Iterable[str], remedy: str, trainer: Any, run: object) -> None:
    replicas, listed = _replicas(trainer), ", ".join(f"`{name}`" for name in names)
    if listed and replicas > 1:
        text = f"{how} in {replicas} processes: {listed}. {remedy}"
        warn_once(log, run, text, topic=f"{how}: {listed}")


def _replicas(trainer: Any) -> int:
    """Count the processes that share the examples; under tensor parallelism several work on the same."""
    shared = trainer.distributed_sampler_kwargs if trainer.world_size > 1 else None
    return int((shared or {}).get("num_replicas", trainer.world_size))


def warn_if_seeded(seed: int, run: object) -> None:
    """Say so, once in a run, if the user's code has seeded torch with a number of its own.

    Args:
        seed: What torch was seeded with.
        run: Tells the run.
    """
    if torch.initial_seed() != seed:
        text = (
            f"`data`, or a hook of the data module or model, seeds torch, with {torch.initial_seed()} (as"
            " `seed_everything` does). Shuffling and dropout are then alike in every round, and on every"
            " client that uses the same number. Leave it out: a fit is seeded by run, round and client. Draw"
            " a split with a generator of its own: `torch.Generator().manual_seed(...)`."
        )
        warn_once(log, run, text, topic="seeded")


def warn_of_known_noise(optimizers: Iterable[object], seed: int, run: object) -> None:
    """Say so, once in a run, if noise that is to keep examples private follows from what the server knows.

    Args:
        optimizers: Of a fit. Those of opacus add noise.
        seed: What all randomness of the fit follows from, if torch was seeded with it.
        run: Tells the run.
    """
    noisy = any(
        base.__name__ == "DPOptimizer" and getattr(optimizer, "generator", None) is None
        for optimizer in optimizers
        for base in type(optimizer).__mro__
    )
    if noisy and torch.initial_seed() == seed:
        text = (
            "`DPOptimizer` (opacus) draws noise from torch's own generator, which is seeded from the run's"
            " seed. The server knows that, and can take the noise away again. Give it a generator that nobody"
            " can know: `make_private(..., noise_generator=torch.Generator().manual_seed("
            "secrets.randbits(63)))`, and one to the training loader, which draws the batches."
        )
        warn_once(log, run, text, topic="noise")
