"""What the aggregation refuses: updates it cannot read, and sums it could not keep exact."""

from __future__ import annotations

from lightning_fl_ext.errors import LightningFLError


class InvalidUpdate(LightningFLError):
    """An update does not have the global model's structure, a finite value everywhere, or a usable weight.

    Raised before anything of the update counts: the sums are what they were.
    """


class AggregationOverflow(LightningFLError):
    """Folding this would take a sum past the range in which every addition is exact.

    Raised before a bit is lost: the sums are what they were.
    """
