"""A client's state after a round, as files and back."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from lightning_fl_ext.errors import LightningFLError
from lightning_fl_ext.files import TornFilesError, tensors_from_bytes, tensors_to_bytes
from lightning_fl_ext.text import shown
from lightning_fl_ext.trees import flatten, unflatten

_VERSION = 1


@dataclass(frozen=True)
class SavedState:
    """A client's state after a round.

    Attributes:
        server_round: The round.
        previous: The round whose state its fit had started from; 0 if it started afresh.
        model: Describes what the state belongs to, part by part.
        state: A tree of plain values and tensors.
    """

    server_round: int
    previous: int
    model: Mapping[str, str]
    state: Any


def encode_state(state: Any) -> tuple[Any, dict[str, torch.Tensor]]:
    """Take a state apart into JSON data and the tensors that it refers to.

    Raises:
        LightningFLError: It holds what is neither plain nor a tensor.
    """
    return flatten(state, advice="Hold it in another form, or run without `keep_optimizer`.")


def encode_files(kept: SavedState, client_id: str, run_id: str) -> dict[str, bytes]:
    """Give the files of a state, by name.

    Raises:
        LightningFLError: It holds what is neither plain nor a tensor.
    """
    data, tensors = encode_state(kept.state)
    header = {
        "version": _VERSION,
        "client_id": client_id,
        "run_id": run_id,
        "round": kept.server_round,
        "previous": kept.previous,
        "model": dict(kept.model),
        "state": data,
    }
    return {"tensors.safetensors": tensors_to_bytes(tensors), "state.json": json.dumps(header).encode()}


def decode_files(
    files: Mapping[str, bytes], path: Path, client_id: str, run_id: str, server_round: int
) -> SavedState:
    """Read a state's files.

    Args:
        files: Contents by name, whose checksums have been looked at.
        path: Where they lie, for messages.
        client_id: Whose state it must be.
        run_id: Of which run.
        server_round: After which round.

    Raises:
        LightningFLError: It is of another client or run, or in another format.
        TornFilesError: They are not what a state's files are.
    """
    try:
        header = json.loads(files["state.json"])
        found = header["version"], header["client_id"], header["run_id"], header["round"]
        expected = _VERSION, client_id, run_id, server_round
        if found != expected:
            raise LightningFLError(_of_another(path, found, expected))
        previous, model = header["previous"], header["model"]
        if type(previous) is not int or not all(isinstance(part, str) for part in model.values()):
            raise TypeError("an entry of another kind")
        state = unflatten(header["state"], tensors_from_bytes(files["tensors.safetensors"]))
        return SavedState(server_round, previous, model, state)
    except LightningFLError:
        raise
    except Exception as error:
        what = f"{type(error).__name__}: {shown(error)}"
        raise TornFilesError(f"`{path}` is not a state of this package ({what})") from None


def _of_another(path: Path, found: tuple[Any, ...], expected: tuple[Any, ...]) -> str:
    words = "format", "client", "run", "round"
    there, here = (
        ", ".join(f"{w} {shown(repr(v))}" for w, v in zip(words, s, strict=True)) for s in (found, expected)
    )
    return (
        f"`{path}` holds a state that is not this client's:\n  expected {here}\n  got {there}\n"
        "Put it back where it was made, or remove the folder to start afresh."
    )
