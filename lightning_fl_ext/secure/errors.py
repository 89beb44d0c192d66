"""What secure aggregation refuses."""

from __future__ import annotations

from lightning_fl_ext.errors import LightningFLError


class SecureAggregationError(LightningFLError):
    """A step of the protocol is refused.

    A message was altered, replayed or swapped, or a request would tell more than the sum.
    """


class UpdateRefused(SecureAggregationError):
    """A client's own check found that its update must not go into the sum.

    Args:
        reason: A code, such as ``"not-finite"``.
        key: The array it is about; ``""`` if it is about the whole.
        expected: What would have passed. It never holds a value of the update.
    """

    def __init__(self, reason: str, key: str = "", expected: str = "") -> None:
        where = f", `{key}`" if key else ""
        super().__init__(f"{reason}{where}: expected {expected}. Nothing was sent.")
        self.reason, self.key, self.expected = reason, key, expected
