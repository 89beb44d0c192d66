"""Masks in a state dict: the scores, what lies outside, and which model they are of."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from lightning_fl_ext.errors import LightningFLError
from lightning_fl_ext.wire.exchange import State
from lightning_fl_ext.wire.tensors import to_numpy
from lightning_fl_ext.wire.tied import place

_DIGEST = "frozen_digest"


def _prefixes(state: State) -> list[str]:
    prefixes = [name.removesuffix(_DIGEST) for name in state if name.split(".")[-1] == _DIGEST]
    if not prefixes:
        raise LightningFLError("`MaskExchange` needs a model that holds a `MaskedModule`: there is none.")
    return prefixes


def mask_scores(state: State) -> dict[str, torch.Tensor]:
    """Give the scores of the masks, by name.

    Raises:
        LightningFLError: There are none, or they are one flat vector.
    """
    prefixes = _prefixes(state)
    if flat := [f"{prefix}scores" for prefix in prefixes if f"{prefix}scores" in state]:
        raise LightningFLError(
            f"`{flat[0]}` is one flat vector, whose parts a state dict does not name. Build `MaskedModule`"
            " with `flat=False` to exchange its masks."
        )
    return {name: state[name] for name in state if any(name.startswith(f"{p}scores.") for p in prefixes)}


def outside_masks(state: State, scores: State) -> dict[str, Any]:
    """Give all but scores, digests, and the weights under the masks, by whatever name they are tied."""
    inside = set(scores)
    for prefix in _prefixes(state):
        start = f"{prefix}scores."
        inside |= {f"{prefix}module.{name.removeprefix(start)}" for name in scores if name.startswith(start)}
        inside.add(f"{prefix}{_DIGEST}")
    frozen = {place(state[name]) for name in inside if name in state}
    return {
        name: value
        for name, value in state.items()
        if name not in inside and not (isinstance(value, torch.Tensor) and place(value) in frozen)
    }


def model_digest(state: State) -> NDArray[np.uint8]:
    """Tell a model by its frozen weights, and the names and shapes of its masks: SHA-256, 32 bytes."""
    sha = hashlib.sha256()
    for prefix in _prefixes(state):
        sha.update(to_numpy(state[f"{prefix}{_DIGEST}"]).tobytes())
    for name, score in mask_scores(state).items():
        sha.update(f"{name}{list(score.shape)};".encode())
    return np.frombuffer(sha.digest(), dtype=np.uint8)
