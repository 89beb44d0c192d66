"""Stands in for SLURM's `srun`: starts a command as `--ntasks-per-node N` tasks, told as SLURM tells them."""

import os
import subprocess
import sys

if __name__ == "__main__":
    flag, count, *command = sys.argv[1:]
    assert flag == "--ntasks-per-node"
    told = {
        "SLURM_JOB_ID": "1234",
        "SLURM_JOB_NAME": "client",
        "SLURM_NNODES": "1",
        "SLURM_NODEID": "0",
        "SLURM_NODELIST": "127.0.0.1",
        "SLURM_NTASKS": count,
        "SLURM_NTASKS_PER_NODE": count,
    }
    tasks = [
        subprocess.Popen(
            command, env={**os.environ, **told, "SLURM_PROCID": str(task), "SLURM_LOCALID": str(task)}
        )
        for task in range(int(count))
    ]
    codes = [task.wait() for task in tasks]
    sys.exit(max(map(abs, codes)))
