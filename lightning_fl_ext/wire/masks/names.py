"""By what names the arrays of a mask exchange go."""

from __future__ import annotations

MASKS = "masks"
"""On a client: its probabilities, float32. On the wire: the coded bytes. For a strategy: the mask, bool."""

COUNTS, TRIALS = "masks.counts", "masks.trials"
"""The server's θ: how often each parameter was open, out of how many times."""

SIZE, MODEL = "masks.size", "masks.model"
"""On the way down: the number of masked parameters, and the digest of what is masked."""
