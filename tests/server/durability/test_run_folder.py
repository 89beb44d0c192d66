"""A run's folder as a disk, another user or somebody's hand may leave it."""

import ast
import errno
import hashlib
import itertools
import json
import os
import time
from contextlib import suppress
from pathlib import Path

import pytest
from _disk import full_after
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

import lightning_fl_ext
from lightning_fl_ext import RoundCheckpoint, RoundLedger, verify_ledger
from lightning_fl_ext.cli.app import main
from lightning_fl_ext.files import ForbiddenFilesError, TornFilesError, read_folder, write_folder
from lightning_fl_ext.server import CallbackError, LedgerError

KEY = Ed25519PrivateKey.from_private_bytes(bytes(32))


def fit(toy, folder, rounds=3, ckpt_path="last", sign=None, keep_last=2):
    callbacks = [RoundLedger(sign=sign), RoundCheckpoint(keep_last=keep_last)]
    trainer = toy.make_trainer(callbacks=callbacks, default_root_dir=folder, max_rounds=rounds)
    return trainer.fit(toy.Net(buffers=True), toy.make_grid(3), ckpt_path=ckpt_path).digest


@pytest.fixture(scope="module")
def whole(toy, tmp_path_factory):
    """A run of three rounds: its folder and digest."""
    folder = tmp_path_factory.mktemp("whole")
    return folder, fit(toy, folder)


@pytest.fixture
def begun(toy, tmp_path):
    """The same run after two rounds."""
    fit(toy, tmp_path / "run", rounds=2)
    return tmp_path / "run"


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# Links


def test_a_ledger_that_is_a_link_goes_on_in_the_folder_and_leaves_its_target_alone(
    toy, begun, whole, tmp_path
):
    path, target = begun / "ledger.jsonl", tmp_path / "elsewhere.jsonl"
    path.rename(target)
    path.symlink_to(target)
    before = target.read_bytes()
    assert fit(toy, begun) == whole[1]
    assert target.read_bytes() == before
    assert not path.is_symlink()
    assert path.read_bytes() == (whole[0] / "ledger.jsonl").read_bytes()


@pytest.mark.parametrize("name", [".ledger.jsonl.part", ".ledger.sig.part", "ledger.sig"])
def test_a_link_where_a_file_is_written_is_replaced_not_followed(toy, tmp_path, name):
    target = tmp_path / "precious"
    target.write_bytes(b"precious")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / name).symlink_to(target)
    fit(toy, tmp_path / "run", sign=KEY)
    assert target.read_bytes() == b"precious"
    assert verify_ledger(tmp_path / "run", key=KEY).ok


def test_a_checkpoint_that_is_a_link_is_gone_on_from_and_only_the_link_is_removed(
    toy, begun, whole, tmp_path
):
    path, target = begun / "checkpoints" / "round-00002", tmp_path / "elsewhere"
    path.rename(target)
    path.symlink_to(target)
    part = tmp_path / "part"
    part.mkdir()
    (part / "file").write_bytes(b"precious")
    (path.parent / ".round-00003.part").symlink_to(part)
    before = contents(target)
    assert fit(toy, begun, keep_last=1) == whole[1]
    assert [p.name for p in path.parent.iterdir()] == ["round-00003"]
    assert contents(target) == before
    assert contents(part) == {Path("file"): b"precious"}


def test_the_folder_of_checkpoints_may_be_on_another_disk(toy, whole, tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "checkpoints").symlink_to(tmp_path / "disk")
    fit(toy, tmp_path / "run", rounds=2)
    assert fit(toy, tmp_path / "run") == whole[1]
    assert sorted(p.name for p in (tmp_path / "disk").iterdir()) == ["round-00002", "round-00003"]


def test_a_link_to_nowhere_or_to_itself_is_no_checkpoint(toy, begun, whole, caplog):
    root = begun / "checkpoints"
    (root / "round-00008").symlink_to(root / "nowhere")
    (root / "round-00009").symlink_to(root / "round-00009")
    (root / "round-00007").write_bytes(b"a file")
    assert fit(toy, begun) == whole[1]
    assert caplog.text.count("skipping a checkpoint") == 3


# Swapped, cut, altered


def sealed(folder, **changed):
    """Change files of a checkpoint together with their checksums, as whoever knows the format would."""
    write_folder(folder, {**read_folder(folder), **changed})


def state(folder):
    return json.loads((folder / "state.json").read_bytes())


ALTERED = {
    "no object": lambda data: [],
    "nested without end": lambda data: None,
    "without its round": lambda data: {k: v for k, v in data.items() if k != "round"},
    "of another round": lambda data: {**data, "round": 7},
    "of round -1": lambda data: {**data, "round": -1, "rounds": []},
    "with half a record": lambda data: {**data, "rounds": [{"server_round": 2}]},
    "with other callbacks": lambda data: {**data, "callbacks": 3},
    "of another run": lambda data: {**data, "fingerprint": []},
    "without strategy": lambda data: {k: v for k, v in data.items() if k != "strategy"},
}


@pytest.mark.parametrize("case", sorted(ALTERED))
def test_a_checkpoint_that_was_altered_with_its_checksums_is_one_clear_error(toy, begun, case):
    path = begun / "checkpoints" / "round-00002"
    altered = ALTERED[case](state(path))
    data = b"[" * 100_000 if altered is None else json.dumps(altered).encode()
    sealed(path, **{"state.json": data})
    with pytest.raises(TornFilesError, match="is not as it was written"):
        fit(toy, begun)
    assert isinstance(verify_ledger(begun).ok, bool)


def test_weights_swapped_between_checkpoints_are_found(toy, begun):
    older, newer = (begun / "checkpoints" / f"round-0000{n}" for n in (1, 2))
    sealed(newer, **{"model.safetensors": (older / "model.safetensors").read_bytes()})
    with pytest.raises(TornFilesError, match="do not have the digest written beside them"):
        fit(toy, begun)


def test_checkpoints_under_swapped_names_go_on_to_the_same_bytes(toy, begun, whole):
    root = begun / "checkpoints"
    (root / "round-00001").rename(root / "round-00005")
    assert fit(toy, begun) == whole[1]
    assert (begun / "ledger.jsonl").read_bytes() == (whole[0] / "ledger.jsonl").read_bytes()


@pytest.mark.parametrize("name", ["../../../ledger.jsonl", "/etc/hostname", "", ".", "pipe", "\x1b[31m"])
def test_a_manifest_leads_nowhere_else(begun, name):
    path = begun / "checkpoints" / "round-00002"
    os.mkfifo(path / "pipe")  # reading it would never end
    sums = json.loads((path / "manifest.json").read_bytes())
    (path / "manifest.json").write_text(json.dumps({**sums, name: hashlib.sha256(b"").hexdigest()}))
    with pytest.raises(TornFilesError, match=r"there is no file|is not a list of its files") as refused:
        read_folder(path)
    assert "\x1b" not in str(refused.value)


@pytest.mark.parametrize("manifest", [b"", b"[]", b"3", b'{"model.safetensors": 3}', b"[" * 100_000])
def test_a_manifest_of_another_kind_is_torn(begun, manifest):
    path = begun / "checkpoints" / "round-00002"
    (path / "manifest.json").write_bytes(manifest)
    with pytest.raises(TornFilesError, match="is incomplete"):
        read_folder(path)


def test_a_cut_ledger_is_not_gone_on_with(toy, begun):
    path = begun / "ledger.jsonl"
    known = b"".join(path.read_bytes().splitlines(keepends=True)[:3])  # what the checkpoint knows
    for cut in (len(known) - 1, len(known) // 2, 40, 0):
        path.write_bytes(known[:cut])
        with pytest.raises(CallbackError, match="is not the ledger that the checkpoint was written with"):
            fit(toy, begun)


# Another user's, read-only, full


@pytest.fixture
def forbidden(monkeypatch):
    """Make files of a name unreadable, as those of another user are (a test may run as root)."""
    true_read = Path.read_bytes

    def forbid(name):
        def read(path):
            if path.name == name:
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
            return true_read(path)

        monkeypatch.setattr(Path, "read_bytes", read)

    return forbid


def test_a_checkpoint_of_another_user_is_neither_skipped_nor_removed(toy, begun, forbidden):
    before = sorted(begun.rglob("*"))
    forbidden("model.safetensors")
    with pytest.raises(
        ForbiddenFilesError, match=r"round-00002` cannot be read: .*Permission denied.*as the"
    ):
        fit(toy, begun)
    assert sorted(begun.rglob("*")) == before


def test_a_ledger_of_another_user_is_one_line_not_a_traceback(toy, begun, forbidden, capsys):
    forbidden("ledger.jsonl")
    with pytest.raises(LedgerError, match=r"cannot read the ledger: .*Permission denied"):
        verify_ledger(begun)
    for command in ("verify", "show"):
        assert main([command, str(begun)]) == 2
        assert "cannot read the ledger" in capsys.readouterr().err
    with pytest.raises(CallbackError, match=r"RoundLedger.on_fit_start .*Permission denied"):
        fit(toy, begun)


def test_a_ledger_is_verified_though_the_checkpoints_are_another_user_s(begun, forbidden):
    forbidden("manifest.json")
    assert verify_ledger(begun).ok


@pytest.mark.parametrize("rounds", [0, 2])
def test_a_read_only_folder_is_named_before_the_first_round(toy, tmp_path, monkeypatch, rounds):
    if rounds:
        fit(toy, tmp_path, rounds)
    before = contents(tmp_path)

    def refuse(path, *args, **kwargs):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))

    monkeypatch.setattr(Path, "touch", refuse)
    monkeypatch.setattr("lightning_fl_ext.files.write_through", refuse)
    with pytest.raises(CallbackError, match="Read-only file system"):
        fit(toy, tmp_path)
    assert contents(tmp_path) == before


def test_a_disk_that_fills_up_leaves_a_signed_run_to_go_on_with(toy, tmp_path, monkeypatch):
    expected = fit(toy, tmp_path / "whole", sign=KEY)
    folders = []
    for n in itertools.count(0, 6):
        with monkeypatch.context() as patched:
            patched.setattr(os, "fsync", full_after(n))
            with suppress(CallbackError):
                fit(toy, tmp_path / str(n), sign=KEY)
                break
        folders.append(tmp_path / str(n))
    assert len(folders) >= 5
    for folder in folders:
        assert not list(folder.rglob("*.part"))
        assert fit(toy, folder, sign=KEY) == expected
        for name in ("ledger.jsonl", "ledger.sig"):
            assert (folder / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


# Time


def test_a_clock_that_goes_back_changes_nothing(toy, whole, tmp_path, monkeypatch):
    backwards = itertools.count(2e9, -86_400)
    monkeypatch.setattr(time, "time", lambda: next(backwards))
    fit(toy, tmp_path / "run", rounds=2)
    for path in (tmp_path / "run").rglob("*"):
        os.utime(path, (0, 0))
    assert fit(toy, tmp_path / "run") == whole[1]
    assert (tmp_path / "run" / "ledger.jsonl").read_bytes() == (whole[0] / "ledger.jsonl").read_bytes()


def test_nothing_in_the_package_reads_the_clock_on_the_wall():
    """What waits goes by a clock that never goes back; what is written holds no times."""
    forbidden = {"time.time", "time.time_ns", "datetime.now", "datetime.utcnow", "datetime.datetime.now"}
    sources = sorted(Path(lightning_fl_ext.__file__).parent.rglob("*.py"))
    called = {
        (source.name, ast.unparse(node.func))
        for source in sources
        for node in ast.walk(ast.parse(source.read_text()))
        if isinstance(node, ast.Call)
    }
    assert not [call for call in called if call[1] in forbidden]
    assert ("lock.py", "time.monotonic") in called
