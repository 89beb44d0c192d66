"""The harness that starts Flower's servers leaves nothing behind."""

import urllib.error
import urllib.request

import psutil
import pytest
from _deployment import Deployment
from _process import Process


def running(folder):
    """Processes of any kind that know the folder."""
    found = []
    for process in psutil.process_iter():
        try:
            if str(folder) in " ".join([*process.cmdline(), *process.environ().values()]):
                found.append(process)
        except psutil.Error:
            continue
    return [process for process in found if process.pid != psutil.Process().pid]


@pytest.mark.engines
def test_every_server_and_what_it_started_has_ended_after_a_failure(tmp_path):
    folder = tmp_path / "deployment"

    def fail():
        with Deployment(folder) as deployment:
            deployment.add_nodes({"a": {}})
            family = deployment.superlink.family() + deployment.nodes["a"].family()
            assert len(family) >= 4  # each has a process of its own that starts apps
            assert {process.pid for process in family} <= {process.pid for process in running(folder)}
            raise LookupError

    with pytest.raises(LookupError):
        fail()
    assert not running(folder)


@pytest.mark.engines
def test_a_killed_superlink_starts_again_where_it_was(tmp_path):
    with Deployment(tmp_path / "deployment") as deployment:
        port = deployment.superlink.command[-1]
        deployment.superlink.kill()
        with pytest.raises(urllib.error.URLError):
            urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5)
        deployment.superlink.start()
        assert "runs" in deployment.flwr("list", "loopback", "--format", "json")


def test_a_process_that_ends_before_it_is_ready_shows_its_log(tmp_path):
    process = Process(["sh", "-c", "echo no such port; exit 3"], tmp_path, {}, lambda process: False)
    with pytest.raises(RuntimeError, match=r"ended before it was ready:\nno such port"):
        process.start()


def test_a_process_that_never_says_it_is_ready_is_stopped_with_its_children(tmp_path):
    script = "trap '' TERM; setsid sleep 60 & sleep 60"
    process = Process(["sh", "-c", script], tmp_path, {}, lambda process: False)
    with pytest.raises(RuntimeError, match="was not ready in time"):
        process.start(timeout=1)
    assert not process.family()
    assert not running(tmp_path)


def test_a_log_holds_what_was_written_since_the_last_start(tmp_path):
    process = Process(["sh", "-c", "echo here; exec sleep 60"], tmp_path, {})
    for _ in range(2):
        process.start()
        assert process.wait_for("here", timeout=10) == "here\n"
        process.stop()
    assert (tmp_path / "log").read_text() == "here\nhere\n"
