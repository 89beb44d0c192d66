"""Which metrics belong into one chart, by what their names have in common."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

from lightning_fl_ext.server.record import RoundRecord

_STAGES = {"train", "training", "fit", "val", "valid", "validation", "test", "eval", "server", "client"}
_DIRECTIONS = {"up", "down", "accepted", "rejected"}
_DATALOADER = re.compile(r"/dataloader_idx_(\d+)$")
_WORD = re.compile(r"[^\W_]+")
_CAMEL_CASE = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")

_RISING = {"accuracy", "f1", "auroc", "auc", "precision", "recall", "specificity", "iou", "dice", "r2", "mcc"}
_FALLING = {"loss", "nll", "error", "mae", "mse", "rmse", "perplexity", "wer"}
_GATES = {"gate", "gates", "open"}
_FIRST_PREFIXES = ("server", "val", "test")


@dataclass(frozen=True)
class Series:
    """One metric over the rounds.

    Attributes:
        name: The metric's full name.
        label: What tells it apart from the others in its family.
        values: Its value in each round; NaN where there is none.
    """

    name: str
    label: str
    values: tuple[float, ...]


@dataclass(frozen=True)
class Family:
    """Metrics of one kind, for one chart.

    Attributes:
        title: What they measure.
        series: The metrics: the server's first, then those of evaluations, then the rest by name.
        better: 1 if more is better, -1 if less is, 0 if neither is known.
        is_bytes: Whether they count bytes.
    """

    title: str
    series: tuple[Series, ...]
    better: int = 0
    is_bytes: bool = False


def family_of(name: str) -> str:
    """Tell what a metric measures, leaving out where it was measured, and of what.

    Example:
        >>> [family_of(name) for name in ("server_accuracy", "val/acc", "bytes_up", "net.gate/open_fraction")]
        ['accuracy', 'accuracy', 'bytes', 'open fraction']
        >>> [family_of(name) for name in ("val_MulticlassAccuracy", "class_3_auroc", "learning_rate")]
        ['accuracy', 'auroc', 'learning rate']
    """
    words = _words(_DATALOADER.sub("", name).rpartition("/")[2])
    if known := [word for word in words if word in _RISING | _FALLING]:
        return known[-1]
    while len(words) > 1 and words[0] in _STAGES:
        words.pop(0)
    while len(words) > 1 and words[-1] in _DIRECTIONS:
        words.pop()
    return " ".join(words) or name


def group_metrics(rounds: Sequence[RoundRecord]) -> list[Family]:
    """Sort a run's metrics into families: scores first, then losses, the rest by name, bytes last.

    How many clients counted is left out: a picture of its own shows that by client.

    Args:
        rounds: Records of the rounds.

    Returns:
        The families whose metrics have a finite value in some round.
    """
    names = sorted({name for record in rounds for name in record.metrics})
    members: dict[str, list[Series]] = {}
    for name in names:
        values = tuple(record.metrics.get(name, math.nan) for record in rounds)
        if any(map(math.isfinite, values)):
            title = family_of(name)
            members.setdefault(title, []).append(Series(name, _label(name, title), values))
    families = [
        Family(title, tuple(sorted(series, key=_sort_key)), _better(title), title == "bytes")
        for title, series in members.items()
        if title != "clients"
    ]
    return sorted(families, key=lambda family: (_rank(family), family.title))


def _label(name: str, title: str) -> str:
    """Give what is left of a name when what it measures is taken out.

    Example:
        >>> _label("server_accuracy", "accuracy"), _label("bytes_up", "bytes"), _label("loss", "loss")
        ('server', 'up', 'loss')
        >>> _label("net.gate/open_fraction", "open fraction"), _label("val_loss/dataloader_idx_1", "loss")
        ('net.gate', 'val 1')
    """
    path, _, last = _DATALOADER.sub(r" \1", name).rpartition("/")
    taken = title.split()
    rest = [word for word in _words(last) if word not in taken]
    return " ".join(filter(None, [path, *rest])) or name


def _words(text: str) -> list[str]:
    words = (word.lower() for word in _WORD.findall(_CAMEL_CASE.sub(" ", text)))
    return ["accuracy" if word == "acc" else word for word in words]


def _better(title: str) -> int:
    return -1 if title in _FALLING else 1 if title in _RISING else 0


def _sort_key(series: Series) -> tuple[int, str]:
    """Order metrics by how much they say about the global model."""
    ranks = (rank for rank, start in enumerate(_FIRST_PREFIXES) if series.name.startswith(start))
    return next(ranks, len(_FIRST_PREFIXES)), series.name


def _rank(family: Family) -> int:
    if family.is_bytes:
        return 4
    return {1: 0, -1: 1}.get(family.better, 2 if set(family.title.split()) & _GATES else 3)
