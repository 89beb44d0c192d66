"""A server killed at any moment goes on to the bytes of one that was not."""

import json
import signal
import subprocess
import sys
from pathlib import Path


def test_a_server_killed_at_any_write_resumes_to_the_same_digest_and_ledger(tmp_path):
    script = Path(__file__).with_name("_killable.py")
    run = subprocess.run([sys.executable, script, tmp_path], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    report = json.loads(run.stdout.splitlines()[-1])
    kills = report["kills"]
    assert len(kills) > 12
    assert {kill["signal"] for kill in kills} == {signal.SIGKILL}
    assert [kill["digest"] for kill in kills] == [report["digest"]] * len(kills)
    assert all(kill["same_ledger"] for kill in kills)
    assert {name for kill in kills for name in kill["left"]} >= {
        ".round-00001.part",  # during the write
        "round-00001",
        ".round-00002.part",
        "round-00002",
        ".round-00003.part",
        "round-00003",  # after it
    }
