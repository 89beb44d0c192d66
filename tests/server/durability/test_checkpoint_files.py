"""The files of a checkpoint: whole or not there, on full disks too, and without pickle."""

import errno
import json
import os
import sys
from pathlib import Path

import pytest
import torch
from _checkpoints import fit
from _disk import full_after
from flwr.serverapp.strategy import FedAdam

from lightning_fl_ext import RoundCallback, RoundCheckpoint, RoundLedger
from lightning_fl_ext.files import (
    TornFilesError,
    append_through,
    arrays_from_bytes,
    arrays_to_bytes,
    read_folder,
    write_folder,
)
from lightning_fl_ext.server import CallbackError


@pytest.mark.parametrize("callback", [RoundCheckpoint, RoundLedger])
def test_a_folder_that_cannot_be_written_to_is_named_before_the_first_round(toy, tmp_path, callback):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(
        CallbackError, match=r"on_fit_start.*`.*file.*` cannot be written to: .*Choose another"
    ):
        fit(toy, tmp_path / "file", callbacks=[callback()])


def test_the_file_that_did_not_fit_on_the_disk_is_named(toy, tmp_path, monkeypatch):
    def full(handle):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    class FillUp(RoundCallback):
        def on_round_end(self, trainer):
            monkeypatch.setattr(os, "fsync", full)

    with pytest.raises(CallbackError, match=r"round 1: OSError: .*No space left on device: '.*safetensors'"):
        fit(toy, tmp_path, callbacks=[FillUp(), RoundCheckpoint()])


def test_a_full_disk_stops_the_run_with_the_last_good_round_intact(toy, tmp_path, monkeypatch):
    callbacks = lambda: [RoundCheckpoint(), RoundLedger()]  # noqa: E731
    whole = fit(toy, tmp_path / "whole", callbacks=callbacks())
    fsync, calls = os.fsync, []

    def counting(handle):
        calls.append(handle)
        fsync(handle)

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", counting)
        fit(toy, tmp_path / "count", callbacks=callbacks(), max_rounds=3)
    for n in range(len(calls) // 2, len(calls) - 1, 2):
        folder = tmp_path / str(n)
        with monkeypatch.context() as patched:
            patched.setattr(os, "fsync", full_after(n))
            with pytest.raises(CallbackError, match="No space left") as stopped:
                fit(toy, folder, callbacks=callbacks())
        assert isinstance(stopped.value.__cause__, OSError)
        assert not list(folder.rglob("*.part"))
        assert fit(toy, folder, callbacks=callbacks(), ckpt_path="last").digest == whole.digest
        ledgers = [(tmp_path / name / "ledger.jsonl").read_bytes() for name in ("whole", str(n))]
        assert ledgers[0] == ledgers[1]


def test_appending_to_a_full_disk_leaves_the_file_as_it_was(tmp_path):
    resource = pytest.importorskip("resource")
    path = tmp_path / "file"
    path.write_bytes(b"12345")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8, hard))
    try:
        with pytest.raises(OSError, match=r"File too large|No space left"):
            append_through(path, b"67890")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.read_bytes() == b"12345"
    append_through(path, b"6")
    assert path.read_bytes() == b"123456"


def test_checkpoints_hold_no_pickle(toy, tmp_path):
    fit(toy, tmp_path, FedAdam(), max_rounds=1)
    folder = tmp_path / "checkpoints" / "round-00001"
    assert sorted(path.name for path in folder.iterdir()) == [
        "manifest.json",
        "model.safetensors",
        "state.json",
        "strategy.safetensors",
    ]
    json.loads((folder / "state.json").read_bytes())


def test_every_dtype_survives_the_way_to_disk():
    from lightning_fl_ext.wire import to_numpy

    dtypes = (
        "bool",
        "uint8",
        "int64",
        "float16",
        "bfloat16",
        "float8_e5m2",
        "float64",
        "complex64",
        "complex128",
    )
    arrays = {
        f"{d}.{i}": to_numpy(torch.ones((2,) * i, dtype=getattr(torch, d))) for i, d in enumerate(dtypes)
    }
    arrays = dict(reversed(arrays.items()))
    back = arrays_from_bytes(arrays_to_bytes(arrays))
    assert list(back) == list(arrays)
    for name, array in arrays.items():
        assert (back[name].dtype, back[name].shape) == (array.dtype, array.shape)
        assert back[name].tobytes() == array.tobytes()
    with pytest.raises(TornFilesError):
        arrays_from_bytes(arrays_to_bytes(arrays)[:-3])


def test_a_set_of_files_is_there_whole_or_not_at_all(tmp_path, monkeypatch):
    folder = tmp_path / "set"
    write_folder(folder, {"a": b"1", "b": b"2"})
    assert read_folder(folder) == {"a": b"1", "b": b"2"}

    def failing(*_):
        raise OSError(errno.EIO, "broken")

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", failing)
        with pytest.raises(OSError, match="broken"):
            write_folder(folder, {"a": b"3"})
    assert read_folder(folder) == {"a": b"1", "b": b"2"}
    assert [path.name for path in tmp_path.iterdir()] == ["set"]


@pytest.mark.skipif(sys.platform != "linux", reason="asks /proc which file is synced")
def test_every_file_is_on_the_disk_before_the_folder_has_its_name(tmp_path, monkeypatch):
    events = []
    fsync, rename = os.fsync, os.rename

    def recording_fsync(handle):
        events.append(Path(os.readlink(f"/proc/self/fd/{handle}")).name)
        fsync(handle)

    def recording_rename(source, target):
        events.append("rename")
        rename(source, target)

    monkeypatch.setattr(os, "fsync", recording_fsync)
    monkeypatch.setattr(os, "rename", recording_rename)
    write_folder(tmp_path / "set", {"a": b"1", "b": b"2"})
    assert events == ["a", "b", "manifest.json", ".set.part", "rename", tmp_path.name]
