"""Screening: the checks a reply passes before it counts."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord
from numpy.typing import NDArray

from lightning_fl_ext.errors import LightningFLError
from lightning_fl_ext.results import Arrays, ClientUpdate
from lightning_fl_ext.results.dtypes import dtype_name
from lightning_fl_ext.server.screening.limits import ARRAY_HEADER, Limits
from lightning_fl_ext.server.screening.norms import finite, first_not_finite, magnitude_bound, update_norm
from lightning_fl_ext.server.screening.rejection import Reason, Rejected
from lightning_fl_ext.server.screening.values import screen_count, shown_number
from lightning_fl_ext.wire import from_record
from lightning_fl_ext.wire.algorithm_names import ALGORITHM, parted
from lightning_fl_ext.wire.client_record import client_record
from lightning_fl_ext.wire.prefixes import wrapper_prefix
from lightning_fl_ext.wire.typed_records import records_of


@dataclass(frozen=True)
class ValueLimits:
    """What the values of a reply may be.

    Attributes:
        count_key: The metric that weighs the client in means.
        min_update_norm: Least L2 norm of an update.
        max_update_norm: Largest L2 norm of an update (weights minus global weights, floating arrays).
        max_term: Largest magnitude of a weight times the count: an exact sum has a range.
        max_weight: Largest magnitude of a weight that the global model does not have as it is.
        max_extra_norm: Largest L2 norm of what an algorithm's clients send beside the weights.
        needed: Metrics that a strategy computes weights or noise with, as QFedAvg does, and the largest value
            of each; none is negative.
    """

    count_key: str = "num-examples"
    min_update_norm: float = 0.0
    max_update_norm: float | None = None
    max_term: float | None = None
    max_weight: float = float(Limits.weight)
    max_extra_norm: float | None = None
    needed: Mapping[str, float] = field(default_factory=dict)


def screen_train_reply(
    reply: Message,
    client_id: str,
    server_round: int,
    limits: ValueLimits,
    like: Arrays,
) -> ClientUpdate:
    """Check a train reply, and read it.

    The arrays are views of the reply's bytes. They are read once for finiteness and magnitude, and once more
    for the norm if it is limited.

    Args:
        reply: A message with content.
        client_id: Whose it is, as the server knows it.
        server_round: The current round.
        limits: For counts and values.
        like: The global weights the round started from, or what is like a client's part of them.

    Raises:
        Rejected: A check failed.
    """
    summary = _screen_summary(reply, client_id, server_round, limits, "training")
    for name, most in limits.needed.items():
        _screen_needed(name, summary.metrics.get(name), most)
    records = records_of(reply.content, ArrayRecord)
    if len(records) != 1:
        raise Rejected(Reason.UNDECODABLE, "arrays", "one ArrayRecord", f"{len(records)}")
    record = next(iter(records.values()))
    _screen_keys(list(like), list(record))
    for name, packed in record.items():
        _screen_announced(name, packed, like[name])
    try:
        arrived = from_record(record)
    except LightningFLError as error:
        raise Rejected(Reason.UNDECODABLE, "arrays", got=str(error)) from None
    arrays = {name: arrived[name] for name in like}
    for name, array in arrays.items():
        if array.shape != like[name].shape:
            raise Rejected(Reason.SHAPE, name, str(list(like[name].shape)), str(list(array.shape)))
        if array.dtype != like[name].dtype:
            raise Rejected(Reason.DTYPE, name, str(like[name].dtype), str(array.dtype))
        _screen_values(name, array, summary.num_examples, limits, like[name])
    _screen_norm(parted(arrays)[0], like, limits)
    return replace(summary, arrays=arrays)


def screen_extras(
    update: ClientUpdate,
    limits: ValueLimits,
    check: Callable[[Arrays], object],
    contribution: Callable[[Arrays, Arrays], Arrays],
) -> None:
    """Have an algorithm look at what came beside the weights, and bound what it makes of both.

    Args:
        update: As screening has read it.
        limits: For values.
        check: Refuses what came beside the weights by a ValueError.
        contribution: From the weights, and what came beside them, to what goes into the mean. Arrays that
            it passes on as they are have been screened.

    Raises:
        TypeError: ``check`` returned something, which would go unheard.
        Rejected: It refuses the values; they are beyond the limit on their norm; or what goes into the mean
            is not finite, or beyond the limit.
    """
    weights, extras = parted(update.arrays)
    if limits.max_extra_norm is not None:
        norm = update_norm(extras, {name: np.zeros_like(array) for name, array in extras.items()})
        if not norm <= limits.max_extra_norm:
            what = f"arrays beside the weights of norm at most {limits.max_extra_norm:g} (`max_extra_norm`)"
            raise Rejected(Reason.NORM, ALGORITHM, what, f"{norm:g}")
    try:
        if (answer := check(extras)) is not None:
            raise TypeError(
                f"a strategy's `check` refuses by a ValueError, and returns nothing. Got {answer!r}."
            )
    except ValueError as error:
        raise Rejected(Reason.MAGNITUDE, ALGORITHM, "values of a client's half", str(error)) from None
    for name, array in contribution(weights, extras).items():
        if array is not weights.get(name):
            _screen_values(name, array, update.num_examples, limits)


def screen_evaluate_reply(
    reply: Message,
    client_id: str,
    server_round: int,
    limits: ValueLimits,
    like: Arrays,
) -> ClientUpdate:
    """Check an evaluate reply, and read it.

    Takes what :func:`screen_train_reply` takes; ``like`` does not matter here.

    Raises:
        Rejected: A check failed.
    """
    return _screen_summary(reply, client_id, server_round, limits, "validation")


def _screen_summary(
    reply: Message, client_id: str, server_round: int, limits: ValueLimits, purpose: str
) -> ClientUpdate:
    """Check what evaluate and train replies have in common: round, count and metrics."""
    client = client_record(reply.content)
    for name in ("arrays", "metrics"):
        if name in records_of(reply.content, ConfigRecord):
            raise Rejected(Reason.UNDECODABLE, name, "no ConfigRecord of this name", "one")
    if (answered := client.get("server-round", server_round)) != server_round:
        raise Rejected(Reason.STALE, "server-round", str(server_round), str(answered))
    records = records_of(reply.content, MetricRecord)
    if len(records) != 1:
        raise Rejected(Reason.UNDECODABLE, "metrics", "one MetricRecord", f"{len(records)}")
    metrics: dict[str, Any] = dict(next(iter(records.values())))
    num_examples = screen_count(limits.count_key, metrics.pop(limits.count_key, None))
    if not num_examples:
        raise Rejected(Reason.IDLE, got=f"no {purpose} examples")
    for key, value in metrics.items():
        if not all(map(_is_finite_number, value if isinstance(value, list) else [value])):
            raise Rejected(Reason.NOT_FINITE, key, "a finite metric", shown_number(value))
    return ClientUpdate(
        {},
        num_examples,
        client_id=client_id,
        server_round=server_round,
        examples_seen=_integer(client.get("examples-seen")),
        steps=_integer(client.get("steps")),
        epochs=_integer(client.get("epochs")),
        metrics=metrics,
    )


def _screen_announced(name: str, packed: Array, like: NDArray[Any]) -> None:
    """Compare what a packed array says about itself; that it is true is checked when it is decoded."""
    if tuple(packed.shape) != like.shape:
        raise Rejected(Reason.SHAPE, name, str(list(like.shape)), str(list(packed.shape)))
    expected = dtype_name(like.dtype)
    if packed.dtype != expected and packed.dtype != str(like.dtype):
        raise Rejected(Reason.DTYPE, name, expected, packed.dtype)
    if len(packed.data) > like.nbytes + ARRAY_HEADER:
        limit = f"at most {like.nbytes + ARRAY_HEADER} bytes"
        raise Rejected(Reason.TOO_LARGE, name, limit, f"{len(packed.data)}")


def _screen_values(
    name: str, array: NDArray[Any], count: int, limits: ValueLimits, like: NDArray[Any] | None = None
) -> None:
    if array.dtype.kind in "biu":
        return
    bound = magnitude_bound(array)
    if not math.isfinite(bound) and not finite(array).all():
        raise Rejected(Reason.NOT_FINITE, name, "finite values", first_not_finite(array))
    max_term = limits.max_term
    if max_term is not None and not bound * count < max_term:
        largest = float(np.abs(array).max(initial=0))
        if not largest * count < max_term:
            limit = f"magnitudes under {max_term / count:g} with {count} examples"
            raise Rejected(Reason.MAGNITUDE, name, limit, f"{largest:g}")
    if like is not None and not bound <= limits.max_weight:
        over = np.abs(array.astype(np.float64)) > limits.max_weight
        if (over & (array != like)).any():  # a mask's largest negative number is the model's own
            limit = f"magnitudes of at most {limits.max_weight:g} (`Limits.weight`)"
            raise Rejected(Reason.MAGNITUDE, name, limit, f"{float(np.abs(array).max()):g}")


def _screen_norm(arrays: Arrays, like: Arrays, limits: ValueLimits) -> None:
    least, most = limits.min_update_norm, limits.max_update_norm
    if not least and most is None:
        return
    norm = update_norm(arrays, like)
    if most is not None and not norm <= most:
        raise Rejected(Reason.NORM, "", f"an update of norm at most {most:g}", f"{norm:g}")
    if norm < least:
        raise Rejected(Reason.NORM, "", "an update that can be clipped", f"one of norm {norm:g}")


def _screen_needed(name: str, value: Any, most: float) -> None:
    """Refuse what a strategy cannot compute with."""
    expected = f"a number from 0 to {most:g}, with which the strategy computes"
    if not isinstance(value, int | float):
        raise Rejected(Reason.KEYS, name, expected, "nothing" if value is None else "a list")
    if not 0 <= value <= most:
        raise Rejected(Reason.MAGNITUDE, name, expected, shown_number(value))


def _screen_keys(expected: list[str], got: list[str]) -> None:
    own, sent = set(expected), set(got)
    missing = [key for key in expected if key not in sent]
    extra = [key for key in got if key not in own]
    if not missing and not extra:
        return
    prefix = wrapper_prefix(extra, missing) or wrapper_prefix(missing, extra)
    if prefix and len(missing) == len(extra):
        raise Rejected(Reason.PREFIX, extra[0], missing[0], f"{extra[0]} (`{prefix}`)")
    shown = [f"missing {missing[:3]}"] * bool(missing) + [f"unexpected {extra[:3]}"] * bool(extra)
    raise Rejected(Reason.KEYS, (missing + extra)[0], f"the model's {len(expected)} keys", ", ".join(shown))


def _is_finite_number(value: Any) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer that no float can hold
        return False


def _integer(value: Any) -> int:
    return value if isinstance(value, int) else 0
