"""The federation of `processes_app` in this process: prints what comes of it."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).with_name("processes_app")))

import processes_app

from lightning_fl_ext import run_local

if __name__ == "__main__":
    folder, clients, rounds = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    run_config = {"run-dir": folder, "clients": clients, "rounds": rounds}
    run_local(processes_app.server, processes_app.client, clients, run_config=run_config)
    print("RESULT " + Path(folder, "outcome.json").read_text())
