"""Where the steps of secure aggregation stand in messages."""

from __future__ import annotations

ACTION = "secure"
"""The action of a train message that asks for a step. An app without the client's half has none of it."""

SECURE = "secure"
"""The record of a step, in a message and in the reply."""

MASKED = "masked"
"""The record, and the array in it, that holds a masked vector."""

STEP, REFUSED = "step", "refused"
"""In `SECURE`: which step is asked for, and that the client refuses it."""

ANNOUNCE, SHARE, MASK, CONFIRM, UNMASK = "announce", "share", "mask", "confirm", "unmask"
"""The steps. The last but one is asked of clients that sign, alone."""
