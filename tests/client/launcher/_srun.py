"""Stands in for SLURM's `srun`: starts a command as `--ntasks-per-node N` tasks, told as SLURM tells them.

With `--nodes M` first, as so many tasks on each of M machines, which are all this one.
"""

import os
import subprocess
import sys

if __name__ == "__main__":
    arguments = sys.argv[1:]
    nodes = 1
    if arguments[0] == "--nodes":
        nodes, arguments = int(arguments[1]), arguments[2:]
    flag, count, *command = arguments
    assert flag == "--ntasks-per-node"
    each = int(count)
    told = {
        "SLURM_JOB_ID": "1234",
        "SLURM_JOB_NAME": "client",
        "SLURM_NNODES": str(nodes),
        "SLURM_NODELIST": "127.0.0.1",
        "SLURM_NTASKS": str(nodes * each),
        "SLURM_NTASKS_PER_NODE": count,
    }
    tasks = []
    for task in range(nodes * each):
        own = {"SLURM_PROCID": task, "SLURM_LOCALID": task % each, "SLURM_NODEID": task // each}
        environment = {**os.environ, **told, **{name: str(value) for name, value in own.items()}}
        tasks.append(subprocess.Popen(command, env=environment))
    codes = [task.wait() for task in tasks]
    sys.exit(max(map(abs, codes)))
