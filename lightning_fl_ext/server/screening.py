"""Screening: the checks a reply passes before it counts."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import numpy as np
from flwr.app import Message, MetricRecord
from numpy.typing import NDArray

from lightning_fl_ext.errors import LightningFLError
from lightning_fl_ext.results import Arrays, ClientUpdate
from lightning_fl_ext.server.clients import client_record
from lightning_fl_ext.wire import PayloadError, from_record

MAX_EXAMPLES = 10**9
"""A count of examples from here on is taken for an error."""

_HEADER = 4096  # bytes an array may take on the wire beyond its elements
_WRAPPERS = ("model.", "module.", "_orig_mod.", "_forward_module.")


class Reason(StrEnum):
    """Why a reply does not count."""

    CLIENT_ERROR = "client-error"
    NO_REPLY = "no-reply"
    NOT_SAMPLED = "not-sampled"
    DUPLICATE = "duplicate-client"
    STALE = "stale-round"
    UNDECODABLE = "undecodable"
    TOO_LARGE = "too-large"
    KEYS = "keys"
    PREFIX = "prefixed-keys"
    SHAPE = "shape"
    DTYPE = "dtype"
    NOT_FINITE = "not-finite"
    NORM = "norm"
    COUNT = "example-count"
    METRIC = "odd-metric"


@dataclass(frozen=True)
class Rejection:
    """One reply, or one metric of a reply, that was left out.

    Attributes:
        client_id: Whose.
        server_round: In which round.
        reason: Why.
        key: Where in the reply; ``""`` if it is about the whole.
        expected: What would have passed.
        got: What came.
    """

    client_id: str
    server_round: int
    reason: Reason
    key: str = ""
    expected: str = ""
    got: str = ""

    def __str__(self) -> str:
        where = f", `{self.key}`" if self.key else ""
        what = f": expected {self.expected}, got {self.got}" if self.expected else f": {self.got}"
        return f"client `{self.client_id}`, round {self.server_round}: {self.reason}{where}{what}"

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Rejection:
        """Take the attributes as plain JSON data."""
        return cls(**{**data, "reason": Reason(data["reason"])})


class BadUpdateError(LightningFLError):
    """A bad update came, and ``on_bad_update="raise"``."""


class Rejected(Exception):
    """Raised by a check, to be turned into a `Rejection`."""

    def __init__(self, reason: Reason, key: str = "", expected: str = "", got: str = "") -> None:
        super().__init__(reason, key, expected, got)
        self.reason, self.key, self.expected, self.got = reason, key, expected, got


def screen_train_reply(
    reply: Message, client_id: str, server_round: int, like: Arrays, max_update_norm: float | None = None
) -> ClientUpdate:
    """Check a train reply, and read it.

    The arrays are views of the reply's bytes. They are read once for finiteness, and once more for the norm
    if it is limited.

    Args:
        reply: A message with content.
        client_id: Whose it is, as the server knows it.
        server_round: The current round.
        like: The global weights the round started from.
        max_update_norm: Limit on the L2 norm of the update (weights minus global weights, floating arrays).

    Raises:
        Rejected: A check failed.
    """
    metrics, num_examples = _screen_head(reply, client_id, server_round)
    records = reply.content.array_records
    if len(records) != 1:
        raise Rejected(Reason.UNDECODABLE, "arrays", "one ArrayRecord", f"{len(records)}")
    record = next(iter(records.values()))
    _screen_keys(list(like), list(record))
    for name, packed in record.items():
        if len(packed.data) > like[name].nbytes + _HEADER:
            limit = f"at most {like[name].nbytes + _HEADER} bytes"
            raise Rejected(Reason.TOO_LARGE, name, limit, f"{len(packed.data)}")
    try:
        arrived = from_record(record)
    except PayloadError as error:
        raise Rejected(Reason.UNDECODABLE, "arrays", got=str(error)) from None
    arrays = {name: arrived[name] for name in like}
    for name, array in arrays.items():
        if array.shape != like[name].shape:
            raise Rejected(Reason.SHAPE, name, str(list(like[name].shape)), str(list(array.shape)))
        if array.dtype != like[name].dtype:
            raise Rejected(Reason.DTYPE, name, like[name].dtype.name, array.dtype.name)
    for name, array in arrays.items():
        if not is_finite(array):
            raise Rejected(Reason.NOT_FINITE, name, "finite values", _first_not_finite(array))
    if max_update_norm is not None:
        norm = update_norm(arrays, like)
        if not norm <= max_update_norm:
            raise Rejected(Reason.NORM, "", f"an update of norm at most {max_update_norm:g}", f"{norm:g}")
    client = client_record(reply.content)
    return ClientUpdate(
        arrays,
        num_examples,
        client_id=client_id,
        server_round=server_round,
        examples_seen=_integer(client.get("examples-seen")),
        steps=_integer(client.get("steps")),
        epochs=_integer(client.get("epochs")),
        metrics=metrics,
    )


def screen_evaluate_reply(reply: Message, client_id: str, server_round: int) -> tuple[dict[str, Any], int]:
    """Check an evaluate reply, and read its metrics and number of examples.

    Raises:
        Rejected: A check failed.
    """
    return _screen_head(reply, client_id, server_round)


def _screen_head(reply: Message, client_id: str, server_round: int) -> tuple[dict[str, Any], int]:
    client = client_record(reply.content)
    if (answered := client.get("server-round", server_round)) != server_round:
        raise Rejected(Reason.STALE, "server-round", str(server_round), str(answered))
    if (name := client.get("client-id") or client_id) != client_id:
        raise Rejected(Reason.NOT_SAMPLED, "client-id", client_id, str(name))
    records = reply.content.metric_records
    if len(records) != 1:
        raise Rejected(Reason.UNDECODABLE, "metrics", "one MetricRecord", f"{len(records)}")
    record: MetricRecord = next(iter(records.values()))
    metrics: dict[str, Any] = dict(record)
    num_examples = _screen_count(metrics.pop("num-examples", None))
    for key, value in metrics.items():
        if not np.all(np.isfinite(value)):
            raise Rejected(Reason.NOT_FINITE, key, "a finite metric", str(value))
    return metrics, num_examples


def _screen_count(count: Any) -> int:
    expected = f"a whole number from 1 to {MAX_EXAMPLES}"
    if isinstance(count, int | float) and 1 <= count <= MAX_EXAMPLES and count == int(count):
        return int(count)
    raise Rejected(Reason.COUNT, "num-examples", expected, "nothing" if count is None else repr(count))


def _screen_keys(expected: list[str], got: list[str]) -> None:
    missing = [key for key in expected if key not in set(got)]
    extra = [key for key in got if key not in set(expected)]
    if not missing and not extra:
        return
    for prefix in _WRAPPERS:
        if {key.removeprefix(prefix) for key in extra} == set(missing) or {
            key.removeprefix(prefix) for key in missing
        } == set(extra):
            raise Rejected(Reason.PREFIX, extra[0] if extra else "", missing[0], f"{extra[0]} (`{prefix}`)")
    shown = [f"missing {missing[:3]}"] * bool(missing) + [f"unexpected {extra[:3]}"] * bool(extra)
    raise Rejected(Reason.KEYS, (missing + extra)[0], f"the model's {len(expected)} keys", ", ".join(shown))


def is_finite(array: NDArray[Any]) -> bool:
    """Tell whether an array holds neither NaN nor infinities, in one pass without a copy if it does not.

    A sum is finite only if every term is; only where it overflows must each element be looked at.

    Example:
        >>> is_finite(np.full(10, 3e38, dtype=np.float32)), is_finite(np.array([1.0, np.inf, -np.inf]))
        (True, False)
    """
    if array.dtype.kind in "biu":
        return True
    with np.errstate(over="ignore", invalid="ignore"):
        return bool(np.isfinite(np.sum(array))) or bool(np.isfinite(array).all())


def update_norm(arrays: Arrays, like: Arrays, block: int = 1 << 16) -> float:
    """Compute the L2 norm of the difference of the floating arrays, in float64, block by block.

    Example:
        >>> update_norm({"w": np.array([3.0, 4.0])}, {"w": np.zeros(2)})
        5.0
    """
    total = 0.0
    for name, array in arrays.items():
        if array.dtype.kind in "biu":
            continue
        new, old = array.reshape(-1), like[name].reshape(-1)
        wide = np.complex128 if array.dtype.kind == "c" else np.float64
        for start in range(0, new.size, block):
            part = slice(start, start + block)
            difference = new[part].astype(wide) - old[part].astype(wide)
            total += float(np.vdot(difference, difference).real)
    return math.sqrt(total)


def common_metrics(
    metrics: Mapping[str, Mapping[str, Any]], server_round: int
) -> tuple[set[str], list[Rejection]]:
    """Find the metrics every client reports in the same form, and name the others.

    Args:
        metrics: By client id.
        server_round: The current round.

    Returns:
        The common keys, and a `Rejection` for every metric of a client that not all share. The updates
        themselves still count.

    Example:
        >>> common, odd = common_metrics({"a": {"loss": 1.0}, "b": {"loss": 2.0, "f1": 0.5}}, 3)
        >>> common, str(odd[0])
        ({'loss'}, 'client `b`, round 3: odd-metric, `f1`: expected a metric of all 2 clients, got 1 of them')
    """
    forms = [
        {(key, len(v) if isinstance(v, list) else 0) for key, v in of_client.items()}
        for of_client in metrics.values()
    ]
    common = set.intersection(*forms) if forms else set()
    odd = [
        Rejection(
            client,
            server_round,
            Reason.METRIC,
            key,
            f"a metric of all {len(forms)} clients",
            f"{sum((key, length) in form for form in forms)} of them",
        )
        for client, form in sorted(zip(metrics, forms, strict=True))
        for key, length in sorted(form - common)
    ]
    return {key for key, _ in common}, odd


def _first_not_finite(array: NDArray[Any]) -> str:
    flat = array.reshape(-1)
    index = int(np.flatnonzero(~np.isfinite(flat))[0])
    return f"{flat[index]} at index {[int(i) for i in np.unravel_index(index, array.shape)]}"


def _integer(value: Any) -> int:
    return value if isinstance(value, int) else 0
