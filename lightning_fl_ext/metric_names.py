"""What the names of metrics say: what is measured, where, whether more is better, and what is said twice."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable

ACROSS_SITES = ("worst", "best", "spread")
"""What is told of a metric's values at single sites, as in ``val_f1/worst``."""

BOOKKEEPING = frozenset({"clients_accepted", "clients_rejected", "bytes_up", "bytes_down", "bytes_evaluate"})
"""What the server counts in every round."""

_STAGES = {"train", "training", "fit", "val", "valid", "validation", "test", "eval", "server", "client"}
_OF_FITS = ("fit", "train")
_DIRECTIONS = {"up", "down", "evaluate", "accepted", "rejected"}
_DATALOADER = re.compile(r"/dataloader_idx_(\d+)$")
_ACROSS = re.compile(rf"/({'|'.join(ACROSS_SITES)})$")
_NAMELESS = "(no name)"
_WORD = re.compile(r"[^\W_]+")
_CAMEL_CASE = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")

_RISING = {"accuracy", "f1", "auroc", "auc", "precision", "recall", "specificity", "iou", "dice", "r2", "mcc"}
_FALLING = {"loss", "nll", "error", "mae", "mse", "rmse", "perplexity", "wer"}
_FIRST_PREFIXES = ("server", "val", "test")
_WRITTEN = {"r2": "R²", "iou": "IoU"} | {
    word: word.upper() for word in ("f1", "auroc", "auc", "mcc", "nll", "mae", "mse", "rmse", "wer")
}


def family_of(name: str) -> str:
    """Tell what a metric measures, leaving out where it was measured, and of what.

    Example:
        >>> [family_of(name) for name in ("server_accuracy", "val/acc", "bytes_up", "net.gate/open_fraction")]
        ['accuracy', 'accuracy', 'bytes', 'open fraction']
        >>> [family_of(name) for name in ("val_MulticlassAccuracy", "class_3_auroc", "learning_rate")]
        ['accuracy', 'auroc', 'learning rate']
        >>> [family_of(name) for name in ("val_f1/worst", "val_f1/spread")]
        ['f1', 'f1 spread']
    """
    if (across := _ACROSS.search(name)) is not None:
        family = family_of(name[: across.start()])
        return f"{family} spread" if across[1] == "spread" else family
    words = _words(_DATALOADER.sub("", name).rpartition("/")[2])
    if known := [word for word in words if word in _RISING | _FALLING]:
        return known[-1]
    while len(words) > 1 and words[0] in _STAGES:
        words.pop(0)
    while len(words) > 1 and words[-1] in _DIRECTIONS:
        words.pop()
    return " ".join(words) or name.strip() or _NAMELESS


def of_each_site(name: str) -> str:
    """Give the metric that is told across sites.

    Example:
        >>> of_each_site("val_f1/worst"), of_each_site("val_f1")
        ('val_f1', 'val_f1')
    """
    return _ACROSS.sub("", name)


def title_of(family: str) -> str:
    """Write what a family of metrics measures as people do.

    Example:
        >>> [title_of(family) for family in ("auroc", "f1 spread", "r2", "open fraction")]
        ['AUROC', 'F1 spread', 'R²', 'Open fraction']
    """
    first, *rest = family.split(" ")
    first = _WRITTEN.get(first, first[:1].upper() + first[1:])
    return " ".join([first, *(_WRITTEN.get(word, word) for word in rest)])


def label_of(name: str, family: str) -> str:
    """Give what is left of a name when what it measures is taken out.

    Example:
        >>> label_of("server_accuracy", "accuracy"), label_of("bytes_up", "bytes"), label_of("loss", "loss")
        ('server', 'up', 'loss')
        >>> label_of("net.gate/open_fraction", "open fraction"), label_of("val_loss/dataloader_idx_1", "loss")
        ('net.gate', 'val 1')
        >>> label_of("val_f1/worst", "f1")
        'val worst'
    """
    across = _ACROSS.search(name)
    own = name[: across.start()] if across else name
    path, _, last = _DATALOADER.sub(r" \1", own).rpartition("/")
    taken = family.split()
    rest = [word for word in _words(last) if word not in taken]
    if across and across[1] not in taken:
        rest.append(across[1])
    return " ".join(filter(None, [path, *rest])).strip() or name.strip() or _NAMELESS


def better(family: str) -> int:
    """Tell whether more of it is better: 1 if so, -1 if less is, 0 if neither is known.

    Example:
        >>> better("auroc"), better("loss"), better("loss spread"), better("learning rate")
        (1, -1, 0, 0)
    """
    return -1 if family in _FALLING else 1 if family in _RISING else 0


def doubt_of(monitor: str | None, mode: str) -> str:
    """Say that a metric is monitored the wrong way round, going by its name; nothing if it may be right.

    Example:
        >>> doubt_of("val/f1", "min")
        "`monitor='val/f1'` with `mode='min'` goes by its smallest value. If the largest is best, give
        `mode='max'`."
        >>> doubt_of("val_loss", "min"), doubt_of("val_f1/spread", "min"), doubt_of(None, "min")
        ('', '', '')
    """
    if monitor is None or better(family_of(monitor)) != (1 if mode == "min" else -1):
        return ""
    taken, other, right = ("smallest", "largest", "max") if mode == "min" else ("largest", "smallest", "min")
    return (
        f"`monitor={monitor!r}` with `mode={mode!r}` goes by its {taken} value. If the {other} is best, give"
        f" `mode={right!r}`."
    )


def without_twins(names: Iterable[str]) -> list[str]:
    """Leave out what Lightning logs a second time for steps and epochs of the same number.

    Example:
        >>> without_twins(["train_loss", "train_loss_step", "train_loss_epoch", "grad_step", "grad_epoch"])
        ['train_loss', 'grad_epoch']
        >>> without_twins(["time_step"])
        ['time_step']
    """
    names = list(names)
    there = frozenset(names)

    def is_twin(name: str) -> bool:
        if name.endswith("_epoch"):
            return name.removesuffix("_epoch") in there
        base = name.removesuffix("_step")
        return base != name and not there.isdisjoint((base, f"{base}_epoch"))

    return [name for name in names if not is_twin(name)]


def by_importance(name: str) -> tuple[int, str]:
    """Order metrics by how much they say about the global model: the server's, evaluations, the rest."""
    ranks = (rank for rank, start in enumerate(_FIRST_PREFIXES) if name.startswith(start))
    return next(ranks, len(_FIRST_PREFIXES)), name


def foremost(names: Collection[str], monitor: str | None = None, count: int = 4) -> list[str]:
    """Choose the metrics to show where there is little room.

    The one that is monitored comes first, then those of evaluations before those of fits, one of each kind
    before a second one, scores before losses. Nothing is shown twice.

    Args:
        names: Of a round's metrics.
        monitor: The metric that the run goes by.
        count: How many.

    Example:
        >>> foremost(["train_loss", "train_loss_step", "val_loss", "val_f1", "val_auroc", "bytes_up"])
        ['val_auroc', 'val_f1', 'val_loss', 'train_loss']
        >>> foremost(["val_f1", "val_loss", "server_f1", "fit_val_f1"], monitor="val_loss", count=3)
        ['val_loss', 'server_f1', 'val_f1']
    """
    ranked = sorted((n for n in without_twins(names) if n not in BOOKKEEPING), key=by_importance)
    ranked.sort(key=lambda name: name != monitor)
    seen: set[tuple[bool, str]] = set()
    keys: dict[str, tuple[bool, bool, bool, int]] = {}
    for name in ranked:
        of_fit, family = name.startswith(_OF_FITS), family_of(name)
        rank = {1: 0, -1: 1}.get(better(family), 2)
        keys[name] = (name != monitor, of_fit, (of_fit, family) in seen, rank)
        seen.add((of_fit, family))
    return sorted(ranked, key=keys.__getitem__)[:count]


def _words(text: str) -> list[str]:
    words = (word.lower() for word in _WORD.findall(_CAMEL_CASE.sub(" ", text)))
    return ["accuracy" if word == "acc" else word for word in words]
