"""What the metrics part refuses on purpose, one class per situation."""

from __future__ import annotations

from lightning_fl_ext.errors import LightningFLError


class UnsupportedMetric(LightningFLError):
    """A metric whose states cannot be merged to the pooled value, with what to use instead."""


class ExampleStatesNotAllowed(LightningFLError):
    """A metric keeps one row per example, and nobody allowed these rows to leave the client."""


class DamagedMetricPack(LightningFLError):
    """The flat form of a pack is not one that `MetricPack.to_arrays` can have written."""


class MetricMismatch(LightningFLError):
    """A pack does not fit the module it is merged into, or the other packs.

    Attributes:
        client_id: Id of the client whose pack is at fault; None where the pack has no id or where no
            single client is at fault. The server can leave this client out and merge the others.
        metric: Name of the metric as in `module.named_modules()`; None where the pack as a whole is at fault.

    Example:
        >>> error = MetricMismatch("client 'a', metric `f1`: ...", client_id="a", metric="f1")
        >>> error.client_id, error.metric
        ('a', 'f1')
    """

    def __init__(self, message: str, *, client_id: str | None = None, metric: str | None = None) -> None:
        super().__init__(message)
        self.client_id = client_id
        self.metric = metric
