"""What one stage of a fit or an evaluation tells of its metrics, as flat arrays."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from lightning_fl_ext.metrics.errors import DamagedMetricPack
from lightning_fl_ext.metrics.pack import Array, MetricPack, shorten

STAGES = ("train", "validate", "test")

ASK = "metric-states"
"""The key in the server's configuration by which it asks clients for metric states."""

_HEADER = "header"


@dataclass(frozen=True, eq=False)
class StageMetrics:
    """One stage of one client.

    Attributes:
        pack: The metrics' states.
        names: For each name the module logs, the metrics it may stand for: one, if the metric object itself
            was logged; all of equal value, if only its value was.
        scalars: Names of the plain scalars logged in this stage.

    Example:
        >>> stage = StageMetrics(MetricPack({}, "a", 8), {"val_acc": ("acc",)}, ("val_loss",))
        >>> again = StageMetrics.from_arrays(stage.to_arrays(), client_id="a")
        >>> again.pack.num_examples, again.names, again.scalars
        (8, {'val_acc': ('acc',)}, ('val_loss',))
    """

    pack: MetricPack
    names: Mapping[str, tuple[str, ...]]
    scalars: tuple[str, ...]

    def to_arrays(self) -> dict[str, Array]:
        """Flat form: the arrays of the pack, and all the rest as JSON bytes in one array more."""
        arrays, header = self.pack.to_arrays()
        about = {"pack": header, "names": self.names, "scalars": self.scalars}
        return {_HEADER: np.frombuffer(json.dumps(about).encode(), dtype=np.uint8), **arrays}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, Array], *, client_id: str) -> StageMetrics:
        """Read the flat form back, trusting nothing in it.

        Args:
            arrays: As :meth:`to_arrays` gives them.
            client_id: The sender.

        Raises:
            DamagedMetricPack: :meth:`to_arrays` cannot have given these.
        """
        rest = dict(arrays)
        try:
            about = json.loads(rest.pop(_HEADER).tobytes())
            names = {str(name): tuple(map(str, metrics)) for name, metrics in about["names"].items()}
            scalars, header = tuple(map(str, about["scalars"])), str(about["pack"])
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise DamagedMetricPack(
                f"metrics of client {shorten(client_id)}: expected a header in JSON, got {shorten(error)}."
                " Leave this client's metrics out of the round."
            ) from None
        return cls(MetricPack.from_arrays(rest, header, client_id=client_id), names, scalars)
