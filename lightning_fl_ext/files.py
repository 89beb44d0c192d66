"""Files that are there whole or not at all, and never unpickled."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from lightning_fl_ext.errors import LightningFLError
from lightning_fl_ext.results import Arrays
from lightning_fl_ext.text import shown

if TYPE_CHECKING:
    import torch

MANIFEST = "manifest.json"
CHECKPOINTS = "checkpoints"
"""The folder of a run that holds its checkpoints."""

_ROUND = re.compile(r"round-(\d{5,})$")


class TornFilesError(LightningFLError):
    """A set of files is incomplete or altered."""


class ForbiddenFilesError(LightningFLError):
    """A set of files may be whole, but this user may not read it."""


def tensors_to_bytes(tensors: Mapping[str, torch.Tensor]) -> bytes:
    """Serialise named tensors as safetensors, with their order.

    Args:
        tensors: Contiguous, on the CPU, and no two in the same memory.
    """
    import torch
    from safetensors.torch import save

    pairs = [name for name, tensor in tensors.items() if tensor.is_complex()]  # real and imaginary part
    real = {**tensors, **{name: torch.view_as_real(tensors[name]) for name in pairs}}
    return bytes(save(real, {"names": json.dumps(list(tensors)), "pairs": json.dumps(pairs)}))


def tensors_from_bytes(data: bytes) -> dict[str, torch.Tensor]:
    """Read what :func:`tensors_to_bytes` wrote, in the same order.

    Raises:
        TornFilesError: These are not such bytes.
    """
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        tensors = load(data)
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])["__metadata__"]
        tensors |= {name: torch.view_as_complex(tensors[name]) for name in json.loads(header["pairs"])}
        return {name: tensors[name] for name in json.loads(header["names"])}
    except (SafetensorError, KeyError, ValueError, TypeError, AttributeError, RuntimeError) as error:
        raise TornFilesError(f"not a safetensors file of this package ({error})") from None


def arrays_to_bytes(arrays: Arrays) -> bytes:
    """Serialise named arrays as safetensors, with their order."""
    from lightning_fl_ext.wire import to_torch

    return tensors_to_bytes({name: to_torch(array) for name, array in arrays.items()})


def arrays_from_bytes(data: bytes) -> dict[str, NDArray[Any]]:
    """Read what :func:`arrays_to_bytes` wrote, in the same order.

    Raises:
        TornFilesError: These are not such bytes.
    """
    from lightning_fl_ext.wire import to_numpy

    return {name: to_numpy(tensor) for name, tensor in tensors_from_bytes(data).items()}


def write_folder(folder: Path, files: Mapping[str, bytes]) -> None:
    """Write a set of files into a folder that appears in one step, when all of them are on the disk.

    Args:
        folder: To be made. One in its place is replaced.
        files: Contents by name.

    Raises:
        OSError: The disk is full, say; nothing is left behind, and a folder in its place is as it was.
    """
    part = folder.with_name(f".{folder.name}.part")
    remove_folder(part)
    part.mkdir(parents=True)
    sums = {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}
    try:
        for name, data in {**files, MANIFEST: json.dumps(sums).encode()}.items():
            write_through(part / name, data)
        sync_folder(part)
        remove_folder(folder)
        os.rename(part, folder)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise
    sync_folder(folder.parent)


def remove_folder(folder: Path) -> None:
    """Remove a folder, if it is there; of a link to one, the link alone."""
    if folder.is_symlink() or folder.is_file():
        folder.unlink()
    elif folder.exists():
        shutil.rmtree(folder)


def read_folder(folder: Path) -> dict[str, bytes]:
    """Read what :func:`write_folder` wrote, and check every byte.

    Raises:
        TornFilesError: A file is missing, cut or altered, or its name leads elsewhere.
        ForbiddenFilesError: A file is another user's.
    """
    try:
        sums = read_manifest((folder / MANIFEST).read_bytes())
        for name in sums:
            if not (folder / name).is_file():
                raise ValueError(f"there is no file `{shown(name)}` in it")
        files = {name: (folder / name).read_bytes() for name in sums}
    except PermissionError as error:
        raise ForbiddenFilesError(
            f"`{folder}` cannot be read: {error}. Run as the user who wrote it, or have its owner changed."
        ) from None
    except (OSError, ValueError, RecursionError) as error:
        raise TornFilesError(f"`{folder}` is incomplete: {error}") from None
    for name, data in files.items():
        if hashlib.sha256(data).hexdigest() != sums[name]:
            raise TornFilesError(f"`{folder / name}` is not what was written: its checksum differs")
    return files


def read_manifest(data: bytes) -> dict[str, str]:
    """Read the checksums of a folder's files, by their names.

    Raises:
        ValueError: These are none, or a name is that of a file elsewhere.
    """
    try:
        sums = json.loads(data)
    except RecursionError:
        sums = None
    if not isinstance(sums, dict) or not all(
        isinstance(s, str) and n == Path(n).name for n, s in sums.items()
    ):
        raise ValueError(f"`{MANIFEST}` is not a list of its files")
    return dict(sums)


def list_checkpoints(root: Path) -> list[tuple[int, Path]]:
    """List a folder's checkpoints as (round, path), by round."""
    if not root.is_dir():
        return []
    found = ((_ROUND.match(path.name), path) for path in root.iterdir())
    return sorted((int(match[1]), path) for match, path in found if match)


def write_file(path: Path, data: bytes) -> None:
    """Write a file, or replace it, in one step."""
    part = path.with_name(f".{path.name}.part")
    part.unlink(missing_ok=True)  # it may be a link to elsewhere
    try:
        write_through(part, data)
        os.replace(part, path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def write_through(path: Path, data: bytes) -> None:
    """Write, and wait until it is on the disk.

    Raises:
        OSError: The disk is full, say; it names the file.
    """
    try:
        with path.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        error.filename = error.filename or str(path)
        raise


def make_folder(folder: Path) -> None:
    """Make a folder if it is not there, and see whether it can be written to.

    Raises:
        LightningFLError: It cannot.
    """
    probe = folder / f".probe-{os.getpid()}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise LightningFLError(
            f"`{folder}` cannot be written to: {error.strerror}. Choose another `default_root_dir`."
        ) from error


def append_through(path: Path, data: bytes) -> None:
    """Append, and wait until it is on the disk.

    Raises:
        OSError: The disk is full, say; the file is as it was.
    """
    size = path.stat().st_size
    try:
        with path.open("ab", buffering=0) as file:
            if file.write(data) != len(data):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.fsync(file.fileno())
    except OSError as error:
        os.truncate(path, size)
        error.filename = error.filename or str(path)
        raise


def sync_folder(folder: Path) -> None:
    """Wait until a folder's entries are on the disk."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
