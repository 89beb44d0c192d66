"""The arrays and records that Flower's own strategies can compute with, and the way back."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict
from flwr.serverapp.strategy import Strategy
from numpy.typing import NDArray

from lightning_fl_ext.results import Arrays
from lightning_fl_ext.server.strategies.buffers import clips, is_by_distance
from lightning_fl_ext.wire import from_record, to_record
from lightning_fl_ext.wire.records import RAW_STYPE
from lightning_fl_ext.wire.typed_records import records_of


def to_flower_dtypes(record: ArrayRecord) -> ArrayRecord:
    """Give a record in which every array is of a floating dtype that arithmetic keeps.

    Flower's strategies compute in the arrays' own dtype: they cannot read bfloat16 and float8, lose digits
    in float16, and many fail on integers and bools (``num_batches_tracked``, masks). The first three go to
    them as float32, the last two as float64, which holds their values exactly up to 2^53;
    :func:`~lightning_fl_ext.aggregation.conform.conform` brings the result back.

    Args:
        record: The global weights, or a client's.

    Returns:
        The record itself if it needs no change.
    """
    if all(_target(array) is None for array in record.values()):
        return record
    return ArrayRecord({name: _widened(array) for name, array in record.items()})


def given_to(strategy: Strategy, record: ArrayRecord, arrays: Arrays) -> ArrayRecord:
    """Give the global weights as a strategy can compute with them.

    Args:
        strategy: At work.
        record: The global weights.
        arrays: The same, as arrays.
    """
    if clips(strategy):
        return _for_clipping(record, arrays)
    return record if getattr(strategy, "reads_every_dtype", False) else to_flower_dtypes(record)


def replied_to(strategy: Strategy, record: ArrayRecord, arrays: Arrays) -> ArrayRecord:
    """Give a client's weights as a strategy can compute with them.

    Args:
        strategy: At work.
        record: A client's, in the global model's order.
        arrays: The global weights.
    """
    if is_by_distance(strategy):
        return _for_distances(record, arrays)
    return given_to(strategy, _without_integers(record, arrays) if clips(strategy) else record, arrays)


def _for_distances(record: ArrayRecord, arrays: Arrays) -> ArrayRecord:
    """Have Flower's Krum, MultiKrum and Bulyan measure the right distances.

    They take ``|x|^2 + |y|^2 - 2xy`` over all arrays in the arrays' dtype: of weights of length 50 float32
    leaves no digit of a distance of 0.01, and a count of batches outweighs every weight. So floats go to them
    as float64, and integers and bools as the global model's, from which no client is then far.
    """
    return ArrayRecord(
        {
            name: _widened(array, None if _is_complex(array) else "float64")
            for name, array in _without_integers(record, arrays).items()
        }
    )


def _for_clipping(record: ArrayRecord, arrays: Arrays) -> ArrayRecord:
    """Have Flower's wrappers clip every number: those in arrays without dimensions they leave as they are."""
    scalars = {name for name, array in arrays.items() if array.ndim == 0}
    wide = to_flower_dtypes(record)
    return ArrayRecord(
        {name: Array(array.numpy().reshape(1)) if name in scalars else array for name, array in wide.items()}
    )


def _without_integers(record: ArrayRecord, arrays: Arrays) -> ArrayRecord:
    """Put the global model's integers and bools in the place of a client's."""
    given = to_record({name: array for name, array in arrays.items() if array.dtype.kind in "biu"})
    return ArrayRecord({name: given.get(name, array) for name, array in record.items()}) if given else record


def align_replies(
    replies: Sequence[Message],
    metrics: set[str],
    like: Arrays | None = None,
    widen: Callable[[ArrayRecord], ArrayRecord] | None = None,
) -> None:
    """Give replies the one form that strategies expect of all of them.

    Arrays stand in the model's order, for strategies that pair them by position; records have the
    names that most replies give them; only the metrics that all clients share are left.

    Args:
        replies: Screened replies.
        metrics: Names of the metrics to keep.
        like: The global weights, if the replies hold weights; otherwise arrays are left as they are.
        widen: Makes the arrays of a dtype that they compute in, such as :func:`replied_to`.
    """
    contents = [reply.content for reply in replies]
    if like is not None:
        name = _usual_name([records_of(content, ArrayRecord) for content in contents])
        for content in contents:
            ((old, record),) = records_of(content, ArrayRecord).items()
            sorted_already = list(record) == list(like)
            ordered = record if sorted_already else ArrayRecord({key: record[key] for key in like})
            _replace(content, old, name, widen(ordered) if widen else ordered)
    name = _usual_name([records_of(content, MetricRecord) for content in contents])
    for content in contents:
        ((old, measured),) = records_of(content, MetricRecord).items()
        shared = MetricRecord({key: value for key, value in measured.items() if key in metrics})
        _replace(content, old, name, shared)


def _usual_name(records: Sequence[Iterable[str]]) -> str:
    """Give the name that most replies have for their record of a kind."""
    names = Counter(name for of_reply in records for name in of_reply)
    return min(names, key=lambda name: (-names[name], name), default="")


def _replace(content: RecordDict, old: str, name: str, record: ArrayRecord | MetricRecord) -> None:
    del content[old]
    other = content.pop(name, None)  # names may be exchanged
    content[name] = record
    if other is not None:
        content[old] = other


def _is_complex(array: Array) -> bool:
    return array.stype != RAW_STYPE and np.dtype(array.dtype).kind == "c"


def _target(array: Array) -> str | None:
    if array.stype == RAW_STYPE or array.dtype == "float16":
        return "float32"
    return "float64" if np.dtype(array.dtype).kind in "biu" else None


def _widened(array: Array, target: str | None = None) -> Array:
    target = target or _target(array)
    if target is None:
        return array
    (values,) = from_record(ArrayRecord({"": array})).values()
    wide: NDArray[Any] = values.astype(target)
    return to_record({"": wide})[""]
