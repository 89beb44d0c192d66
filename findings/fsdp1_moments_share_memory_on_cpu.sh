#!/usr/bin/env bash
# torch 2.13.0: an optimizer's full state that FullyShardedDataParallel gathers on the processor (gloo, the default
# `use_orig_params=True` of Lightning) has the moments of Adam in one memory if it is asked to be moved to the processor:
# `exp_avg` is `exp_avg_sq`. Without moving, both are right. One buffer serves the gathering of all states, and what is
# on the processor already is moved there without a copy. `torch.distributed.checkpoint.state_dict` gives the same, by
# `StateDictOptions(full_state_dict=True, cpu_offload=True)`.
#
# Output seen (two processes, Adam after three steps):
#   offload_to_cpu=True:  exp_avg is exp_avg_sq: True,  smallest exp_avg is negative: False
#   offload_to_cpu=False: exp_avg is exp_avg_sq: False, smallest exp_avg is negative: True
#
# Why it matters: a checkpoint that is written so loads without a word, and training goes on with a first moment that is
# the mean of squares: always positive, of another size. It is found by comparing with a run that was not stopped.
set -euo pipefail
here=$(mktemp -d)
trap 'rm -rf "$here"' EXIT
python3 -m pip install -q --disable-pip-version-check --target "$here/packages" torch==2.13.0 numpy==2.4.6
cat > "$here/moments.py" <<'PYTHON'
import sys
import warnings

import torch
import torch.distributed as dist
from torch.distributed.fsdp import FullOptimStateDictConfig, FullStateDictConfig, StateDictType
from torch.distributed.fsdp import FullyShardedDataParallel as FSDP

warnings.simplefilter("ignore")


def moments(net, optimizer, offload):
    options = {"offload_to_cpu": offload, "rank0_only": True}
    whole = StateDictType.FULL_STATE_DICT, FullStateDictConfig(), FullOptimStateDictConfig(**options)
    with FSDP.state_dict_type(net, *whole):
        state = FSDP.optim_state_dict(net, optimizer)
    return state["state"]["weight"] if state else None  # rank 0 alone has it


def work(rank, folder, expected):
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    torch.manual_seed(0)
    net = FSDP(torch.nn.Linear(4, 4), device_id=torch.device("cpu"), use_orig_params=True)
    optimizer = torch.optim.Adam(net.parameters(), 0.1)
    for _ in range(3):
        net(torch.randn(8, 4)).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    told = []
    for offload in (True, False):
        found = moments(net, optimizer, offload)
        if found is not None:
            same = torch.equal(found["exp_avg"], found["exp_avg_sq"])
            told.append((same, found["exp_avg"].min().item() < 0))
            print(
                f"{f'offload_to_cpu={offload}:':<21} exp_avg is exp_avg_sq: {f'{same},':<6}"
                f" smallest exp_avg is negative: {told[-1][1]}"
            )
    dist.barrier()
    dist.destroy_process_group()
    if rank == 0 and told != expected:
        sys.exit("other moments than stated")


if __name__ == "__main__":
    torch.multiprocessing.spawn(work, (sys.argv[1], [(True, False), (False, True)]), nprocs=2)
PYTHON
PYTHONPATH="$here/packages" OMP_NUM_THREADS=1 python3 -W ignore "$here/moments.py" "$here"
