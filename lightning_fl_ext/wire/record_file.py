"""Records on disk: one safetensors file with a JSON header, nothing pickled."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from safetensors import safe_open
from safetensors.numpy import save_file

from lightning_fl_ext.errors import LightningFLError
from lightning_fl_ext.text import shown

_KINDS: dict[str, type[MetricRecord] | type[ConfigRecord]] = {"metrics": MetricRecord, "config": ConfigRecord}


class RecordFileError(LightningFLError):
    """A file does not hold what was written into it."""


def write_records(path: Path, contents: Mapping[str, RecordDict], told: Mapping[str, Any]) -> None:
    """Write records, bit for bit and in their order, with a few words about them.

    Args:
        path: The file; its folder must exist. It is there whole or not at all.
        contents: Records by a name of their own.
        told: What JSON can hold.

    Example:
        >>> import tempfile
        >>> content = RecordDict({"c": ConfigRecord({"rate": 0.5, "key": b"abc"})})
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_records(Path(folder, "a"), {"content": content}, {"round": 3})
        ...     contents, told = read_records(Path(folder, "a"))
        >>> contents["content"] == content, told
        (True, {'round': 3})
    """
    blobs: list[bytes] = []

    def put(data: bytes) -> int:
        blobs.append(data)
        return len(blobs) - 1

    described = {
        name: [[key, *_describe(record, put)] for key, record in content.items()]
        for name, content in contents.items()
    }
    header = {"contents": json.dumps(described), "told": json.dumps(dict(told))}
    part = path.with_name(f".{path.name}.part")
    save_file({str(i): np.frombuffer(blob, dtype=np.uint8) for i, blob in enumerate(blobs)}, part, header)
    part.rename(path)


def read_records(path: Path) -> tuple[dict[str, RecordDict], dict[str, Any]]:
    """Read what :func:`write_records` wrote.

    Raises:
        RecordFileError: It is no such file, or not whole.
    """
    try:
        with safe_open(str(path), framework="numpy") as file:
            header = file.metadata()
            described = json.loads(header["contents"])

            def get(index: int) -> bytes:
                return bytes(file.get_tensor(str(index)).tobytes())

            contents = {
                name: RecordDict({key: _restore(kind, told, get) for key, kind, told in records})
                for name, records in described.items()
            }
            return contents, json.loads(header["told"])
    except Exception as error:  # whatever the parsers stumble over, it is no such file
        said = f"{type(error).__name__}: {shown(error)}"
        raise RecordFileError(f"`{path}` holds no records of this package, or is not whole: {said}") from None


def _describe(record: Any, put: Callable[[bytes], int]) -> tuple[str, list[Any]]:
    if isinstance(record, ArrayRecord):
        arrays = [[n, a.dtype, list(a.shape), a.stype, put(a.data)] for n, a in record.items()]
        return "arrays", arrays
    kind = "metrics" if isinstance(record, MetricRecord) else "config"
    return kind, [[name, _plain(value, put)] for name, value in record.items()]


def _plain(value: Any, put: Callable[[bytes], int]) -> Any:
    if isinstance(value, bytes):
        return {"bytes": put(value)}
    return [_plain(item, put) for item in value] if isinstance(value, list) else value


def _restore(kind: str, told: list[Any], get: Callable[[int], bytes]) -> Any:
    if kind == "arrays":
        arrays = {name: Array(dtype, tuple(shape), stype, get(i)) for name, dtype, shape, stype, i in told}
        return ArrayRecord(arrays)
    values: dict[str, Any] = {name: _value(value, get) for name, value in told}
    return _KINDS[kind](values)


def _value(value: Any, get: Callable[[int], bytes]) -> Any:
    if isinstance(value, dict):
        return get(value["bytes"])
    return [_value(item, get) for item in value] if isinstance(value, list) else value
