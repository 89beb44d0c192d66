"""The federation of `processes_app` in this process: prints what comes of it."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).with_name("processes_app")))

import processes_app

from lightning_fl_ext import run_local

if __name__ == "__main__":
    run_local(processes_app.server, processes_app.client, 2, run_config={"run-dir": sys.argv[1]})
    print("RESULT " + Path(sys.argv[1], "outcome.json").read_text())
