"""What all tests share: one thread (or TEST_THREADS), no network, and Flower's files in a private folder."""

import atexit
import gc
import itertools
import os
import shutil
import socket
import sys
import tempfile
from pathlib import Path


def _free_port() -> str:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return str(server.getsockname()[1])


# Before torch and Flower are imported: they read these once.
os.environ["OMP_NUM_THREADS"] = os.environ.get("TEST_THREADS", "1")
os.environ["FLWR_TELEMETRY_ENABLED"] = "0"
os.environ["FLWR_DISABLE_UPDATE_CHECK"] = "1"
os.environ["FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION"] = "1"
os.environ["FLWR_SUPEREXEC_TASK_POLL_INTERVAL"] = "0.05"
os.environ["FLWR_HOME"] = tempfile.mkdtemp(prefix="flwr-home-")
os.environ["XDG_STATE_HOME"] = _STATES = tempfile.mkdtemp(prefix="client-states-")
os.environ["FLWR_LOCAL_SUPERLINK_HTTP_API_PORT"] = _free_port()
os.environ["FLWR_LOCAL_CONTROL_API_PORT"] = _free_port()
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
os.environ["MPLBACKEND"] = "Agg"
atexit.register(shutil.rmtree, os.environ["FLWR_HOME"], ignore_errors=True)
atexit.register(shutil.rmtree, _STATES, ignore_errors=True)

sys.path.insert(0, str(Path(__file__).parent))  # helper modules that tests of several parts import

import pytest  # noqa: E402
from hypothesis import settings  # noqa: E402

settings.register_profile("repeatable", deadline=None, derandomize=True, max_examples=50)
settings.load_profile("repeatable")


def pytest_collection_modifyitems(items):
    """Begin with the engines: they mostly wait, so another worker has time for everything else."""
    items.sort(key=lambda item: item.get_closest_marker("engines") is None)


_states = itertools.count()


@pytest.fixture(autouse=True)
def _own_states(monkeypatch):
    """Give each test a folder of its own for what clients keep by default, made when one is kept."""
    monkeypatch.setenv("XDG_STATE_HOME", f"{_STATES}/{next(_states)}")


@pytest.fixture(autouse=True)
def _nothing_said():
    """Begin each test with no warning told yet, whichever tests this process has run before."""
    once = sys.modules.get("lightning_fl_ext.once")
    if once is not None:
        once._said.clear()


@pytest.fixture(autouse=True, scope="module")
def _frozen():
    """Take what is alive (imports, thousands of collected tests) out of the garbage collections that follow.

    Every fit ends with one. Over all that a process of tests has loaded it takes half a second.
    """
    gc.collect()
    gc.freeze()
