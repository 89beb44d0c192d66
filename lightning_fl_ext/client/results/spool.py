"""Results on disk: safetensors with a JSON header, written whole or not at all."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.torch import save_file

from lightning_fl_ext.files import TornFilesError
from lightning_fl_ext.results import ClientUpdate, EpochResult
from lightning_fl_ext.text import shown
from lightning_fl_ext.wire import to_numpy, to_torch

ResultT = TypeVar("ResultT", EpochResult, ClientUpdate)


class SpooledArrays(Mapping[str, NDArray[Any]]):
    """Named arrays that stay in a safetensors file until they are looked up.

    Args:
        path: The file.
        names: Its entries, in state-dict order (a safetensors file has an order of its own).
    """

    def __init__(self, path: Path, names: list[str]) -> None:
        self.path = path
        self._names = names

    def __getitem__(self, name: str) -> NDArray[Any]:
        if name not in self._names:
            raise KeyError(name)
        with _whole(self.path), safe_open(str(self.path), framework="pt") as file:
            return to_numpy(file.get_tensor(name))

    def load(self) -> dict[str, NDArray[Any]]:
        """Read all of them into memory."""
        with _whole(self.path), safe_open(str(self.path), framework="pt") as file:
            return {name: to_numpy(file.get_tensor(name)) for name in self._names}

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def write_result(path: Path, result: ResultT) -> ResultT:
    """Write a result to a file, and give the same result with its arrays left in the file.

    Args:
        path: File to write. The folder must exist; a file in its place is replaced in one step.
        result: What to write.
    """
    names = list(result.arrays)
    meta = {f.name: getattr(result, f.name) for f in fields(result) if f.name not in ("arrays", "metrics")}
    meta |= {"names": names, "metrics": dict(result.metrics)}
    part = path.with_name(path.name + ".part")
    save_file({n: to_torch(result.arrays[n]) for n in names}, part, {"result": json.dumps(meta)})
    os.replace(part, path)
    return read_result(path, type(result))


def read_result(path: Path, kind: type[ResultT]) -> ResultT:
    """Read back what :func:`write_result` wrote; arrays are read when they are looked up.

    Raises:
        TornFilesError: It is not such a file, or not whole.
    """
    with _whole(path):
        with safe_open(str(path), framework="pt") as file:
            meta = json.loads(file.metadata()["result"])
            names, metrics = meta.pop("names"), meta.pop("metrics")
            if sorted(names) != sorted(file.keys()):
                raise ValueError("its entries are others than its header names")
        for name, value in meta.items():
            if type(value) is not (str if name == "client_id" else int):
                raise TypeError(f"`{name}` is of another kind")
        if not all(isinstance(value, int | float) for value in metrics.values()):
            raise TypeError("metrics are no numbers")
        return kind(SpooledArrays(path, names), metrics=metrics, **meta)


@contextmanager
def _whole(path: Path) -> Iterator[None]:
    """Say that a file is torn, whatever reading it stumbles over."""
    try:
        yield
    except Exception as error:
        what = f"{type(error).__name__}: {shown(error)}"
        raise TornFilesError(f"`{path}` is no whole result: {what}. Run the fit again.") from error
