"""What is started, by which name, and what lies in files between the processes."""

import copy
import os
import re
import subprocess
import sys
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
from flwr.app import Array, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from torch.utils.data import DataLoader, IterableDataset

from lightning_fl_ext import LightningFLError, client_app
from lightning_fl_ext.client.launcher.kept import KeptProcesses
from lightning_fl_ext.client.launcher.launchers import (
    Command,
    Launcher,
    Processes,
    launcher_of,
    refuse_other_machines,
)
from lightning_fl_ext.client.launcher.message_file import (
    WorkerFailure,
    read_message,
    read_worker_failure,
    write_failure,
    write_message,
)
from lightning_fl_ext.client.launcher.naming import NamedApp, app_name, load_app
from lightning_fl_ext.client.launcher.needs import processes_needed
from lightning_fl_ext.client.launcher.remote import ProcessesFailedError, answer_in_processes
from lightning_fl_ext.client.launcher.work import work_of
from lightning_fl_ext.client.notices import warn_of_unsharded
from lightning_fl_ext.engines.private import ensure_identity
from lightning_fl_ext.wire import from_record, to_record
from lightning_fl_ext.wire.record_file import RecordFileError, read_records, write_records

CPU = {"accelerator": "cpu"}
held = ClientApp()


@pytest.fixture
def message():
    ensure_identity()
    arrays = {"b": np.array([np.nan, -0.0]), "a": np.arange(6, dtype=np.int16).reshape(2, 3)}
    values = {
        "i": 2**60,
        "f": float("inf"),
        "t": True,
        "s": "é",
        "b": b"\0\xff",
        "l": [b"", b"x"],
        "n": [1.5],
    }
    content = RecordDict(
        {
            "z": to_record(arrays),
            "a": ConfigRecord(values),
            "m": MetricRecord({"one": 1, "half": [0.5]}),
        }
    )
    return Message(content, 7, "train.secure", group_id="3")


def context():
    state = RecordDict({"kept": ConfigRecord({"round": 3})})
    return Context(5, 7, {"partition-id": 0}, state, {"rate": 0.1})


def test_a_message_comes_back_bit_for_bit(tmp_path, message):
    write_message(tmp_path / "m", message, context())
    read, about = read_message(tmp_path / "m")
    assert read.metadata.__dict__ == message.metadata.__dict__
    assert about == context()
    assert list(read.content) == ["z", "a", "m"]
    assert read.content == message.content
    assert [type(v) for v in read.content["a"].values()] == [type(v) for v in message.content["a"].values()]
    assert list(from_record(read.content["z"])) == ["b", "a"]


def test_a_message_without_tensors_comes_back(tmp_path):
    ensure_identity()
    write_message(tmp_path / "m", Message(RecordDict(), 7, "query"), context())
    assert len(read_message(tmp_path / "m")[0].content) == 0


def test_arrays_of_every_stype_keep_their_bytes(tmp_path):
    record = to_record({"w": np.ones(3, dtype=np.float32)}, bare={"w"})
    write_records(tmp_path / "m", {"c": RecordDict({"r": record})}, {})
    array: Array = read_records(tmp_path / "m")[0]["c"]["r"]["w"]
    assert (array.stype, array.data) == (record["w"].stype, record["w"].data)


def test_a_cut_file_is_named(tmp_path, message):
    path = tmp_path / "m"
    write_message(path, message, context())
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(RecordFileError, match="not whole"):
        read_message(path)


@pytest.mark.parametrize(
    ("given", "named", "count"),
    [
        ({**CPU}, False, 0),
        ({**CPU, "devices": 1}, False, 0),
        ({**CPU, "devices": 1}, True, 1),
        ({**CPU, "devices": 2}, False, 2),
        ({**CPU, "devices": 2, "strategy": "ddp"}, False, 2),
        ({**CPU, "devices": 2, "num_nodes": 3}, True, 6),
        ({**CPU, "devices": 2, "strategy": "ddp_fork"}, False, 0),
    ],
)
def test_as_many_processes_as_devices_where_the_strategy_starts_none(given, named, count):
    assert processes_needed(given, named) == count


@pytest.mark.parametrize("tasks", [1, 2, 4])
def test_within_a_job_of_slurm_devices_need_processes_however_many_tasks_it_has(monkeypatch, tasks):
    job = {"JOB_ID": 7, "NTASKS": tasks, "NTASKS_PER_NODE": tasks, "PROCID": 0, "LOCALID": 0, "NODEID": 0}
    for name, value in job.items():
        monkeypatch.setenv(f"SLURM_{name}", str(value))
    assert processes_needed({**CPU, "devices": 2}) == 2
    assert processes_needed({**CPU, "devices": 2, "num_nodes": 3}) == 6
    assert processes_needed({**CPU, "devices": 1}) == 0


def test_processes_of_several_machines_are_not_started_on_one():
    with pytest.raises(LightningFLError, match=r'num_nodes=2.*launcher=\["srun"'):
        refuse_other_machines(Processes(), {"num_nodes": 2})
    refuse_other_machines(Processes(), {"num_nodes": 1})
    refuse_other_machines(Command(["srun"]), {"num_nodes": 2})


def test_a_command_has_a_port_to_meet_at():
    show = [sys.executable, "-c", "import os; print(os.environ['MASTER_PORT'])"]
    env = {name: value for name, value in os.environ.items() if name != "MASTER_PORT"}
    for given, expected in ({}, r"\d+"), ({"MASTER_PORT": "29"}, "29"):
        (started,) = Command(show).start([], 2, env={**env, **given}, stdout=subprocess.PIPE)
        assert re.fullmatch(expected, started.communicate()[0].decode().strip())


@pytest.mark.parametrize(("given", "expected"), [({}, "4"), ({"OMP_NUM_THREADS": "7"}, "7")])
def test_processes_share_the_processors(monkeypatch, given, expected):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)
    show = [sys.executable, "-c", "import os; print(os.environ['OMP_NUM_THREADS'])"]
    env = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"} | given
    started = Processes().start(show, 2, env=env, stdout=subprocess.PIPE)
    assert [process.communicate()[0].decode().strip() for process in started] == [expected] * 2


def test_a_launcher_and_a_strategy_that_forks_contradict():
    with pytest.raises(LightningFLError, match="leave `launcher` and `fit_timeout` out"):
        processes_needed({**CPU, "devices": 2, "strategy": "ddp_fork"}, named=True)


@pytest.mark.parametrize("given", ["torchrun", 3, b"x"])
def test_what_is_no_launcher_is_refused(given):
    with pytest.raises(TypeError, match="`launcher` must be"):
        launcher_of(given)


def test_a_timeout_needs_processes():
    with pytest.raises(ValueError, match="starts none"):
        client_app(lambda: None, lambda context: None, launcher=None, fit_timeout=3)
    with pytest.raises(ValueError, match="above 0"):
        client_app(lambda: None, lambda context: None, fit_timeout=0)


def test_an_app_is_found_by_the_name_that_holds_it(monkeypatch, tmp_path):
    (tmp_path / "held_app.py").write_text("app = object()\n")
    monkeypatch.syspath_prepend(tmp_path)
    import held_app  # ty: ignore

    assert app_name(held_app.app) == "held_app:app"
    assert load_app("held_app:app") is held_app.app
    del sys.modules["held_app"]


def test_an_app_of_a_script_is_found_by_its_file(monkeypatch, tmp_path):
    script = ModuleType("__main__")
    script.__file__, script.mine = str(tmp_path / "s.py"), object()
    (tmp_path / "s.py").write_text("mine = 5\n")
    monkeypatch.setitem(sys.modules, "__main__", script)
    assert app_name(script.mine) == f"{tmp_path / 's.py'}:mine"
    assert load_app(app_name(script.mine)) == 5
    with pytest.raises(LightningFLError, match="has no `other` when it is imported"):
        load_app(f"{tmp_path / 's.py'}:other")


def test_an_app_that_no_module_holds_is_refused():
    with pytest.raises(LightningFLError, match="top level of a file"):
        app_name(object())


def test_a_copy_of_an_app_goes_by_the_name_of_the_original():
    """As the simulation copies it, with every message, into processes where no module holds it."""
    copied = copy.deepcopy(NamedApp(held))
    with pytest.raises(LightningFLError, match="top level of a file"):
        app_name(copied._app)
    assert copied.name() == app_name(held)
    with pytest.raises(LightningFLError, match="top level of a file"):
        copy.deepcopy(NamedApp(ClientApp())).name()


def test_an_app_written_by_hand_has_no_work():
    with pytest.raises(LightningFLError, match="that `client_app` made"):
        work_of(ClientApp())


class Runs(Launcher):
    """Starts a program in the place of the workers."""

    def __init__(self, program):
        self.program = program

    def start(self, worker, count, **options):
        return [subprocess.Popen([sys.executable, "-c", self.program], **options) for _ in range(count)]


class Stays(KeptProcesses):
    """Starts a program that reads its messages, in the place of workers that stay."""

    def __init__(self, program):
        super().__init__()
        self.program, self.times = program, 0

    def start(self, worker, count, **options):
        self.times += 1
        return [subprocess.Popen([sys.executable, "-c", self.program], **options) for _ in range(count)]


def at_work(launcher, count, tmp_path):
    return launcher.at_work("m:app", count, tmp_path / "in", tmp_path, start_new_session=True)


def test_kept_processes_are_told_of_every_message_and_meet_anew(tmp_path):
    launcher = Stays("import sys; list(sys.stdin)")
    ports = set()
    for _ in range(3):
        with at_work(launcher, 1, tmp_path) as (process,):
            ports.add(launcher._store.port)
            assert process.poll() is None
    assert launcher.times == 1
    assert len(ports) == 3
    with at_work(launcher, 2, tmp_path) as started:
        assert len(started) == launcher.times == 2
    assert process.poll() is not None, "another number of them was needed"
    with pytest.raises(LookupError), at_work(launcher, 2, tmp_path):
        raise LookupError
    assert all(process.poll() is not None for process in started), "after a failure"


def test_all_copies_of_a_launcher_in_a_process_keep_the_same_processes():
    launcher, other = KeptProcesses(), KeptProcesses()
    first, second, third = (copy.copy(one) for one in (launcher, launcher, other))
    assert first is second
    assert first is not third
    assert first is not launcher, "this process is not one of theirs"


def test_a_kept_process_that_ends_is_told_and_replaced(message):
    launcher = Stays("import sys; sys.stdin.readline(); raise SystemExit(0)")
    for _ in range(2):
        with pytest.raises(ProcessesFailedError, match="no process of rank 0 has left a reply"):
            answer(launcher, message)
    assert launcher.times == 2
    launcher.close()
    with pytest.raises(ProcessesFailedError, match=r"process [01] of 2 ended with code 4"):
        answer(Stays("import sys; sys.stdin.readline(); raise SystemExit(4)"), message)


def test_kept_processes_that_take_too_long_are_ended(message):
    launcher = Stays("import time; time.sleep(600)")
    with pytest.raises(ProcessesFailedError, match=r"fit_timeout=0\.5"):
        answer(launcher, message, timeout=0.5)
    assert not launcher._started


def answer(launcher, message, timeout=None):
    return answer_in_processes("m:app", message, context(), launcher, 2, timeout)


def test_processes_that_take_too_long_are_ended(message):
    launcher = Runs("import time; time.sleep(600)")
    with pytest.raises(ProcessesFailedError, match=r"fit_timeout=0\.5"):
        answer(launcher, message, timeout=0.5)


def test_a_process_that_ends_with_a_code_is_told(message):
    with pytest.raises(ProcessesFailedError, match=r"process [01] of 2 ended with code 5"):
        answer(Runs("raise SystemExit(5)"), message)


def test_processes_that_leave_no_reply_are_told(message):
    with pytest.raises(ProcessesFailedError, match="no process of rank 0 has left a reply"):
        answer(Runs("pass"), message)


def test_a_command_that_is_not_there_is_told(message):
    with pytest.raises(ProcessesFailedError, match="could not be started"):
        answer(Command(["no-such-launcher"]), message)


def test_torchrun_is_told_to_run_a_program():
    started = Command([sys.executable, "-c", "pass", "torch.distributed.run"]).start(["python"], 2)
    started[0].wait()
    assert started[0].args[-2:] == ["--no-python", "python"]
    assert repr(Processes()) == "Processes()"


class Stream(IterableDataset):
    def __iter__(self):
        return iter(range(3))


def test_an_iterable_data_set_that_every_rank_sees_whole_is_named(caplog):
    loader = DataLoader(Stream())
    trainer = SimpleNamespace(world_size=2, distributed_sampler_kwargs=None, train_dataloader=loader)
    for _ in range(2):
        warn_of_unsharded(trainer, "a run of the stream")
    (record,) = caplog.records
    assert "(Stream) to each of 2 processes" in record.message
    shared = {"num_replicas": 1, "rank": 0}  # tensor parallel ranks are to see the same batches
    warn_of_unsharded(SimpleNamespace(distributed_sampler_kwargs=shared, world_size=2), "another")
    assert len(caplog.records) == 1


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"rank": "1", "time": 1.0, "world_size": "2", "traceback": ""}', "[" * 50_000]
)
def test_what_a_process_leaves_that_raised_is_read_with_one_error(tmp_path, text):
    path = tmp_path / "error-0.json"
    write_failure(path, WorkerFailure(1.5, 0, "2", "ValueError: no"))
    assert read_worker_failure(path) == (1.5, 0, "2", "ValueError: no")
    path.write_text(text)
    with pytest.raises(RecordFileError, match=r"error-0.json` is not what a client's process writes"):
        read_worker_failure(path)
