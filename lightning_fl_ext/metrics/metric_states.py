"""What one client sends about its metrics: plain data, with a flat form of arrays and one JSON text."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from lightning_fl_ext.metrics.bounded_json import JsonLimits, load_json
from lightning_fl_ext.metrics.errors import DamagedMetricPack

Array = NDArray[Any]
State = Array | tuple[Array, ...]

_FORMAT = 1
_DTYPES = {"bool", "uint8", "int8", "int16", "int32", "int64", "float16", "float32", "float64"}
LARGEST_COUNT = 2**53


@dataclass(frozen=True, eq=False)
class MetricStates:
    """One metric of one client.

    Attributes:
        class_path: Module and name of the metric's class.
        configuration: Value by attribute as JSON text; see `configuration.configuration`.
        updates: How often the metric was updated; 0 for idle metrics, wrappers and compositions.
        states: Empty if `updates` is 0. A tensor state is one array in the metric's dtype (bfloat16 and
            float8 as float32); with the reduction None it has a leading axis over the processes of the
            client. A list state is a tuple of arrays of one dtype.
    """

    class_path: str
    configuration: Mapping[str, str]
    updates: int
    states: Mapping[str, State]


@dataclass(frozen=True, eq=False)
class MetricPack:
    """The metrics of one client.

    Attributes:
        metrics: States by metric name, named as in `module.named_modules()`.
        client_id: Names the client in messages and decides the order in which packs are merged.
        num_examples: Examples behind the states, None if not told.
        withheld: True if the client has fewer examples than its `min_examples`, so that `metrics` is empty.
        excluded: Names of metrics, or of what holds them, that the client leaves out on purpose.

    Example:
        >>> states = MetricStates("torchmetrics.aggregation.SumMetric", {}, 2, {"sum_value": np.array(3.0)})
        >>> pack = MetricPack({"total": states}, client_id="a", num_examples=8)
        >>> arrays, header = pack.to_arrays()
        >>> arrays
        {'total/sum_value': array(3.)}
        >>> again = MetricPack.from_arrays(arrays, header)
        >>> again.client_id, again.num_examples, again.metrics["total"].updates
        ('a', 8, 2)
    """

    metrics: Mapping[str, MetricStates] = field(repr=False)
    client_id: str | None = None
    num_examples: int | None = None
    withheld: bool = False
    excluded: tuple[str, ...] = ()

    def __str__(self) -> str:
        """How messages name the sender."""
        return (
            f"client without id ({self.digest[:12]})"
            if self.client_id is None
            else f"client {shorten(self.client_id)}"
        )

    @cached_property
    def digest(self) -> str:
        """SHA-256 over the flat form, in hexadecimal."""
        arrays, header = self.to_arrays()
        sha = hashlib.sha256(header.encode())
        for key in sorted(arrays):
            sha.update(np.ascontiguousarray(arrays[key]).tobytes())
        return sha.hexdigest()

    def to_arrays(self) -> tuple[dict[str, Array], str]:
        """Flat form: one array for each state under `"METRIC/STATE"`, and the rest as JSON text.

        A list state becomes one array of one dimension; the shapes of its elements stand in the JSON text.
        """
        arrays: dict[str, Array] = {}
        metrics: dict[str, Any] = {}
        for name, metric in self.metrics.items():
            layouts: dict[str, Any] = {}
            for state, value in metric.states.items():
                if isinstance(value, tuple):
                    flat = np.concatenate([element.ravel() for element in value] or [np.zeros(0, np.float32)])
                    layouts[state] = {
                        "dtype": flat.dtype.name,
                        "shapes": [list(element.shape) for element in value],
                    }
                else:
                    flat = value
                    layouts[state] = {"dtype": flat.dtype.name, "shape": list(flat.shape)}
                arrays[f"{name}/{state}"] = flat
            metrics[name] = {
                "class": metric.class_path,
                "configuration": dict(metric.configuration),
                "updates": metric.updates,
                "states": layouts,
            }
        header = {
            "format": _FORMAT,
            "client_id": self.client_id,
            "num_examples": self.num_examples,
            "withheld": self.withheld,
            "excluded": list(self.excluded),
            "metrics": metrics,
        }
        return arrays, json.dumps(header, sort_keys=True, allow_nan=False)

    @classmethod
    def from_arrays(
        cls,
        arrays: Mapping[str, Array],
        header: str,
        *,
        client_id: str | None = None,
        limits: JsonLimits | None = None,
    ) -> MetricPack:
        """Read the flat form back, trusting nothing in it.

        Args:
            arrays: The arrays of `to_arrays`, by the same keys.
            header: The JSON text of `to_arrays`.
            client_id: The sender as the receiver knows it, if it does; the pack must carry the same id, or
                none, in which case it gets this one.
            limits: For the header.

        Raises:
            DamagedMetricPack: If `to_arrays` cannot have written this. The message names the client and the
                metric.
        """
        return _Reader(arrays, client_id).pack(header, limits or JsonLimits())


class _Reader:
    """Reads one flat form; `where` says in messages how far it got."""

    def __init__(self, arrays: Mapping[str, Array], client_id: str | None) -> None:
        self.arrays = dict(arrays)
        self.sender = client_id
        self.where = f"metrics of {'a client' if client_id is None else f'client {client_id!r}'}"

    def pack(self, header: str, limits: JsonLimits) -> MetricPack:
        try:
            parsed = load_json(header.encode(), limits)
        except (ValueError, TypeError, AttributeError, RecursionError) as error:
            self.fail("a JSON text", shorten(error))
        keys = ("format", "client_id", "num_examples", "withheld", "excluded", "metrics")
        version, client_id, num_examples, withheld, excluded, metrics = self.fields(parsed, keys)
        if version != _FORMAT:
            self.fail(f"format {_FORMAT}", f"{shorten(version)}; use one version of the package everywhere")
        if not (client_id is None or isinstance(client_id, str)):
            self.fail("a text or null as `client_id`", shorten(client_id))
        if self.sender is None and client_id is not None:
            self.where = f"metrics of client {shorten(client_id)}"
        elif self.sender is not None and client_id not in (None, self.sender):
            self.fail(f"`client_id` {self.sender!r}", shorten(client_id))
        if num_examples is not None:
            self.count("num_examples", num_examples)
        if not isinstance(withheld, bool):
            self.fail("true or false as `withheld`", shorten(withheld))
        if not (isinstance(excluded, list) and all(isinstance(name, str) for name in excluded)):
            self.fail("a list of texts as `excluded`", shorten(excluded))
        if not isinstance(metrics, dict) or (withheld and metrics):
            self.fail("an object as `metrics`, empty if withheld", shorten(metrics))
        read = {name: self.metric(name, entry) for name, entry in metrics.items()}
        if self.arrays:
            self.fail("no further arrays", f"{shorten(sorted(map(str, self.arrays)))}")
        sender = self.sender if client_id is None else client_id
        return MetricPack(read, sender, num_examples, withheld, tuple(excluded))

    def metric(self, name: str, entry: Any) -> MetricStates:
        before, self.where = self.where, f"{self.where}, metric {shorten(name)}"
        class_path, configuration, updates, layouts = self.fields(
            entry, ("class", "configuration", "updates", "states")
        )
        if not isinstance(class_path, str):
            self.fail("a text as `class`", shorten(class_path))
        if not (
            isinstance(configuration, dict)
            and all(isinstance(value, str) for value in configuration.values())
        ):
            self.fail("texts in `configuration`", shorten(configuration))
        self.count("updates", updates)
        if not isinstance(layouts, dict) or (layouts and not updates):
            self.fail("an object as `states`, empty without updates", shorten(layouts))
        states = {state: self.state(f"{name}/{state}", layout) for state, layout in layouts.items()}
        self.where = before
        return MetricStates(class_path, configuration, updates, states)

    def state(self, key: str, layout: Any) -> State:
        array = self.arrays.pop(key, None)
        if not isinstance(array, np.ndarray):
            self.fail(f"an array {shorten(key)}", "none" if array is None else type(array).__name__)
        if array.dtype.name not in _DTYPES:
            self.fail(f"one of the dtypes {sorted(_DTYPES)} in {shorten(key)}", array.dtype.name)
        array = array.astype(array.dtype.newbyteorder("="), copy=False)
        is_list = isinstance(layout, dict) and "shapes" in layout
        dtype, shapes = self.fields(layout, ("dtype", "shapes" if is_list else "shape"))
        if dtype != array.dtype.name:
            self.fail(f"dtype {shorten(dtype)} in {shorten(key)}", array.dtype.name)
        if not is_list:
            if shapes != list(array.shape):
                self.fail(f"shape {shorten(shapes)} in {shorten(key)}", str(list(array.shape)))
            return array
        if not (isinstance(shapes, list) and all(_is_shape(shape) for shape in shapes)):
            self.fail(f"a list of shapes for {shorten(key)}", shorten(shapes))
        sizes = [math.prod(shape) for shape in shapes]
        if array.shape != (sum(sizes),):
            self.fail(f"shape {shorten([sum(sizes)])} in {shorten(key)}", str(list(array.shape)))
        pieces = np.split(array, np.cumsum(sizes[:-1], dtype=np.int64)) if sizes else []
        return tuple(piece.reshape(shape) for piece, shape in zip(pieces, shapes, strict=True))

    def fields(self, entry: Any, keys: tuple[str, ...]) -> tuple[Any, ...]:
        if not isinstance(entry, dict) or set(entry) != set(keys):
            self.fail(f"an object with the keys {list(keys)}", shorten(entry))
        return tuple(entry[key] for key in keys)

    def count(self, key: str, value: Any) -> None:
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= LARGEST_COUNT:
            self.fail(f"a count as `{key}`", shorten(value))

    def fail(self, expected: str, got: str) -> NoReturn:
        raise DamagedMetricPack(
            f"{self.where}: expected {expected}, got {got}. The pack was damaged on the way or is not from "
            "`MetricPack.to_arrays`; leave this client's metrics out of the round."
        )


def _is_shape(shape: Any) -> bool:
    return (
        isinstance(shape, list)
        and len(shape) <= 16
        and all(isinstance(size, int) and not isinstance(size, bool) and size >= 0 for size in shape)
        and math.prod(max(size, 1) for size in shape) < 2**40
    )


def shorten(value: Any) -> str:
    """`value` as text for a message: bounded and on one line, whatever a sender put there.

    Example:
        >>> len(shorten("a" * 10_000))
        201
    """
    try:
        text = repr(value)
    except RecursionError:
        text = f"a deeply nested {type(value).__name__}"
    return text if len(text) <= 200 else f"{text[:200]}…"
