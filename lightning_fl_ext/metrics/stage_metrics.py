"""What one stage of a fit or an evaluation tells of its metrics, and its form as bytes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from lightning_fl_ext.metrics.bounded_json import JsonLimits, load_json
from lightning_fl_ext.metrics.errors import DamagedMetricPack
from lightning_fl_ext.metrics.metric_states import LARGEST_COUNT, MetricPack, shorten

STAGES = ("train", "validate", "test")
REDUCTIONS = ("mean", "sum", "min", "max")

METRIC_STATES = "metric-states"
"""The server's configuration asks for metric states by this key, and replies hold them under it."""

LARGEST_TOTAL = 1e250
"""No sum of a client's is larger, so that no sum over clients overflows."""

STAGE = "evaluate-stage"
"""The server's configuration says by this key which stage an evaluation is of."""

_HEADER = "header"


class Scalar(NamedTuple):
    """How a logged number came about.

    Attributes:
        reduction: How the module reduces it over batches, one of `REDUCTIONS`.
        num_examples: How many examples it is over.
        total: Of a client that does not tell the number itself: what it adds to the reduction, for a mean the
            number times the examples. None if the number is told.
    """

    reduction: str
    num_examples: int
    total: float | None = None


@dataclass(frozen=True, eq=False)
class StageMetrics:
    """One stage of one client.

    Attributes:
        pack: The metrics' states.
        names: For each name the module logs, the values it may stand for, by their addresses (see
            `values.computed_values`): one, if the metric object itself was logged; all that are equal to it,
            if only a value was.
        scalars: Every name under which a number was logged in this stage, those in `names` among them.

    Example:
        >>> logged = {"val_acc": Scalar("mean", 8), "val_loss": Scalar("mean", 8)}
        >>> stage = StageMetrics(MetricPack({}, "a", 8), {"val_acc": ("acc",)}, logged)
        >>> again = StageMetrics.from_bytes(stage.to_bytes(), client_id="a")
        >>> again.pack.num_examples, again.names, again.scalars["val_loss"]
        (8, {'val_acc': ('acc',)}, Scalar(reduction='mean', num_examples=8, total=None))
    """

    pack: MetricPack
    names: Mapping[str, tuple[str, ...]]
    scalars: Mapping[str, Scalar]

    def to_bytes(self) -> bytes:
        """Give a safetensors file: the arrays of the pack, and all the rest as JSON in one array more."""
        arrays, header = self.pack.to_arrays()
        scalars = {name: s[:2] if s.total is None else s for name, s in self.scalars.items()}
        about = json.dumps({"pack": header, "names": self.names, "scalars": scalars})
        return save({_HEADER: np.frombuffer(about.encode(), dtype=np.uint8), **arrays})

    @classmethod
    def from_bytes(cls, data: Any, *, client_id: str, limits: JsonLimits | None = None) -> StageMetrics:
        """Read the bytes back, trusting nothing in them.

        Args:
            data: As :meth:`to_bytes` gives them.
            client_id: The sender, by the name that the server knows it by.
            limits: For the header of the file, for that in JSON, and for that of the pack.

        Raises:
            DamagedMetricPack: :meth:`to_bytes` cannot have given these.
        """
        limits = limits or JsonLimits()
        try:
            load_json(data[8 : 8 + int.from_bytes(data[:8], "little")], limits)
            arrays = load(data)
            about = load_json(arrays.pop(_HEADER).tobytes(), limits)
            names = {str(name): tuple(map(str, found)) for name, found in about["names"].items()}
            scalars = {str(name): _scalar(*entry) for name, entry in about["scalars"].items()}
            header = str(about["pack"])
        except (SafetensorError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise DamagedMetricPack(
                f"metrics of client {shorten(client_id)}: expected a safetensors file with a header in JSON,"
                f" got {shorten(error)}. Leave this client's metrics out of the round."
            ) from None
        pack = MetricPack.from_arrays(arrays, header, client_id=client_id, limits=limits)
        return cls(pack, names, scalars)


def _scalar(reduction: Any, num_examples: Any, total: Any = None) -> Scalar:
    counts = type(num_examples) is int and 0 <= num_examples <= LARGEST_COUNT
    adds = total is None or (type(total) is float and abs(total) <= LARGEST_TOTAL)
    if reduction not in REDUCTIONS or not counts or not adds:
        raise ValueError(f"no such scalar: {shorten((reduction, num_examples, total))}")
    return Scalar(reduction, num_examples, total)
