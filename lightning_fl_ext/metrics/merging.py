"""The server's half: all clients' packs into the metrics of one module, which then compute the pooled values.

The rule is that of one all-gather over all clients at once: each state is reduced by the reduction that
its metric declares. Clients with no updates of a metric take no part in it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torchmetrics import Metric, MetricCollection
from torchmetrics.retrieval import RetrievalPrecisionRecallCurve
from torchmetrics.retrieval.base import RetrievalMetric

from lightning_fl_ext.failures import described
from lightning_fl_ext.metrics.admission import refuse_unsupported
from lightning_fl_ext.metrics.checks import check_declared, declared_metrics
from lightning_fl_ext.metrics.configuration import reduction_name
from lightning_fl_ext.metrics.discovery import covered, label, named_metrics, own_states
from lightning_fl_ext.metrics.errors import MetricMismatch
from lightning_fl_ext.metrics.metric_states import Array, MetricPack, State
from lightning_fl_ext.metrics.reductions import exact_sum, weighted_mean


def merge_metrics(module: nn.Module, packs: Iterable[MetricPack]) -> nn.Module:
    """Put the merged states of all clients into the metrics of `module`.

    The value does not depend on the order of `packs`: they are taken by client id (those without one after
    the others, by digest), and sums are exact. Each metric that the packs name is overwritten, whatever it
    held; one that no client has updated, or that all leave out, is reset, so that its `update_called` is
    False. Other metrics stay as they are, and so does the whole module if anything is refused. If there is no
    pack, or all are withheld, every metric is reset: a value of an earlier round must not pass for one of
    this.

    Args:
        module: The server's own module, of the clients' class. Its metrics are written to, nothing else.
        packs: One pack of each client. Withheld packs are skipped; see `missing_clients`. What a client
            excludes is merged without it.

    Returns:
        `module`, whose metrics now `compute()` the values on the pooled data.

    Raises:
        MetricMismatch: If a pack does not fit the module or the other packs: other metrics, class,
            configuration, states, shapes, dtypes, NaN states, the same client twice. `client_id` and `metric`
            say which.
        UnsupportedMetric: If a metric of `module` cannot be merged.

    Example:
        >>> from torchmetrics import MeanMetric
        >>> from lightning_fl_ext.metrics.gathering import pack_metrics
        >>> packs = []
        >>> for client, losses in {"a": [1.0, 2.0, 3.0], "b": [10.0]}.items():
        ...     local = nn.ModuleDict({"loss": MeanMetric()})
        ...     local["loss"].update(torch.tensor(losses))
        ...     packs.append(pack_metrics(local, client_id=client))
        >>> merge_metrics(nn.ModuleDict({"loss": MeanMetric()}), packs)["loss"].compute()
        tensor(4.)
    """
    if isinstance(packs, MetricPack):
        raise TypeError(f"`packs` must hold a pack of each client: write `[pack]`. Got one, of {packs}.")
    ordered = sorted(packs, key=_order)
    declared = declared_metrics(module)
    for pack in ordered:
        check_declared(declared, pack)
    return merge_checked(module, ordered)


def merge_checked(module: nn.Module, packs: Iterable[MetricPack]) -> nn.Module:
    """`merge_metrics` of packs that have passed `checks.check_declared` one by one."""
    ordered = sorted(packs, key=_order)
    _refuse_duplicates(ordered)
    present = [pack for pack in ordered if not pack.withheld]
    metrics = named_metrics(module)
    sent = sorted({name for pack in present for name in pack.metrics})
    refuse_unsupported(module, sent)
    _refuse_missing_metrics(sent, present)
    written = {name: metric for name, metric in metrics.items() if not present or _is_told(name, present)}
    merged = {name: _merge(name, metric, present) for name, metric in written.items()}
    _ungroup(module, set(map(id, written.values())))
    for name, (states, updates) in merged.items():
        metric = written[name]
        if not own_states(metric):
            continue
        metric.reset()
        for state, value in states.items():
            setattr(metric, state, value)
        metric._update_count = updates
    return module


def missing_clients(packs: Iterable[MetricPack]) -> tuple[str, ...]:
    """Which clients sent no states because they have fewer examples than their `min_examples`.

    Returns:
        Client ids in ascending order; a client without an id is told by the start of its pack's digest.

    Example:
        >>> missing_clients([MetricPack({}, "b", 3, withheld=True), MetricPack({}, "a", 50)])
        ('b',)
    """
    withheld = sorted((pack for pack in packs if pack.withheld), key=_order)
    return tuple(pack.digest[:12] if pack.client_id is None else pack.client_id for pack in withheld)


def _order(pack: MetricPack) -> tuple[bool, str]:
    return (True, pack.digest) if pack.client_id is None else (False, pack.client_id)


def _refuse_duplicates(ordered: Sequence[MetricPack]) -> None:
    for before, pack in pairwise(ordered):
        if pack.client_id is not None and pack.client_id == before.client_id:
            raise MetricMismatch(
                f"{pack} handed in two packs; its examples would count twice. Merge one pack of each client.",
                client_id=pack.client_id,
            )


def _is_told(name: str, packs: Sequence[MetricPack]) -> bool:
    """Whether any pack holds this metric, or says that it leaves it out."""
    return any(name in pack.metrics or covered(name, pack.excluded) for pack in packs)


def _refuse_missing_metrics(names: Sequence[str], packs: Sequence[MetricPack]) -> None:
    """Refuse the first client that lacks a metric which most others have, or the other way round."""
    for name in names:
        having = [pack for pack in packs if name in pack.metrics]
        lacking = [pack for pack in packs if not _is_told(name, [pack])]
        if lacking:
            few = len(lacking) <= len(having)
            odd = lacking[0] if few else having[0]
            verbs = ("lacks", "sent") if few else ("sent", "lack")
            raise MetricMismatch(
                f"{odd} {verbs[0]} the metric `{name}`, which most clients {verbs[1]}. Build the same module "
                f'on every client. One that is to do without it can say so: `exclude_metrics=("{name}",)`.',
                client_id=odd.client_id,
                metric=name,
            )


def _merge(
    name: str, metric: Metric, packs: Sequence[MetricPack]
) -> tuple[dict[str, Tensor | list[Tensor]], int]:
    """Merged states of one metric, none if no client has updated it, and its updates by all clients."""
    contributors = [pack for pack in packs if name in pack.metrics and pack.metrics[name].updates]
    weights = [pack.metrics[name].updates for pack in contributors]
    merged: dict[str, Tensor | list[Tensor]] = {}
    for state in own_states(metric) if contributors else ():
        values = [pack.metrics[name].states[state] for pack in contributors]
        _require_agreement(name, metric, state, contributors, values)
        if state == "indexes" and isinstance(metric, RetrievalMetric | RetrievalPrecisionRecallCurve):
            values = _distinct_queries(values)
        try:
            merged[state] = _reduce(metric, state, values, weights)
        except Exception as error:  # a sum beyond its numbers, or what the user's own function raises
            raise MetricMismatch(
                f"{label(name, metric)}, state `{state}`, reduced by {reduction_name(metric, state)}: "
                f"{described(error)}",
                metric=name,
            ) from error
    return merged, sum(weights)


def _reduce(
    metric: Metric, state: str, values: Sequence[State], weights: Sequence[int]
) -> Tensor | list[Tensor]:
    """One state of all clients by its declared reduction."""
    kind = reduction_name(metric, state)
    custom: Any = metric._reductions[state]
    if isinstance(metric._defaults[state], list):
        elements = [_to_tensor(element, metric) for value in values for element in value]
        return elements if kind in ("cat", "none") else custom(elements)
    arrays = [np.asarray(value) for value in values]
    if kind == "sum":
        return _to_tensor(exact_sum(arrays), metric)
    if kind == "mean":
        return _to_tensor(weighted_mean(arrays, weights), metric)
    if kind in ("min", "max"):
        return _to_tensor(getattr(np.stack(arrays), kind)(axis=0), metric)
    if kind == "cat":
        return _to_tensor(np.concatenate([np.atleast_1d(array) for array in arrays]), metric)
    if kind == "none":
        ranks = np.concatenate(arrays)
        return _to_tensor(ranks[0] if len(ranks) == 1 else ranks, metric)
    reduced: Tensor = custom(torch.stack([_to_tensor(array, metric) for array in arrays]))
    return reduced


def _to_tensor(array: Array, metric: Metric) -> Tensor:
    return torch.from_numpy(np.array(array)).to(metric.device)


def _require_agreement(
    name: str, metric: Metric, state: str, packs: Sequence[MetricPack], values: Sequence[State]
) -> None:
    """Refuse the first client whose dtype or shape of a state is not that of most clients."""
    kind = reduction_name(metric, state)
    forms = [_form(value, kind) for value in values]
    usual = Counter(form for form in forms if form is not None).most_common(1)
    for pack, form in zip(packs, forms, strict=True):
        if form is not None and form != usual[0][0]:
            raise MetricMismatch(
                f"{pack}, {label(name, metric)}, state `{state}`: expected {usual[0][0]} as from most "
                f"clients, got {form}. Feed this metric alike everywhere, in one precision.",
                client_id=pack.client_id,
                metric=name,
            )


def _form(value: State, kind: str) -> str | None:
    """What must be alike among clients, None for an empty list."""
    if not isinstance(value, tuple):
        # The first axis of these counts processes or examples.
        shape = value.shape[1:] if kind in ("none", "cat") else value.shape
        return f"{value.dtype.name}{list(shape)}"
    if not value or kind != "cat":
        return value[0].dtype.name if value else None
    rows = sorted({str(list(element.shape[1:])) for element in value})
    return f"{value[0].dtype.name} rows of {' and '.join(rows)}"


def _distinct_queries(values: Sequence[State]) -> list[State]:
    """Query ids numbered on from client to client: equal ids of two clients are different queries."""
    numbered: list[State] = []
    start = 0
    for elements in values:
        flat = np.concatenate([np.zeros(0, np.int64), *(np.ravel(element) for element in elements)])
        ids, dense = np.unique(flat, return_inverse=True)
        ends = np.cumsum([element.size for element in elements])
        numbered.append(
            tuple(
                (dense + start)[end - element.size : end] for element, end in zip(elements, ends, strict=True)
            )
        )
        start += len(ids)
    return numbered


def _ungroup(module: nn.Module, written: set[int]) -> None:
    """End the sharing of states inside the collections that are written to.

    A collection shares states among members whose states were equal at its first update, and copies them
    over again at `compute`; merged states need not be equal.
    """
    for collection in module.modules():
        if isinstance(collection, MetricCollection) and any(
            id(member) in written for member in collection.children()
        ):
            collection.items()  # gives each member a copy of its own
            collection.add_metrics([])  # forgets the guessed groups; groups declared by the user stay
