"""FSDP1 on the processor: Lightning asks for CUDA devices before it uses it, and what asks is left out."""

from contextlib import nullcontext

import torch
from lightning.fabric.strategies.fsdp import _setup_activation_checkpointing
from lightning.pytorch.strategies import FSDPStrategy


class FSDP1(FSDPStrategy):
    """Lightning's, but for the device."""

    def _setup_model(self, model):
        from torch.distributed.fsdp import FullyShardedDataParallel
        from torch.distributed.fsdp._flat_param import FlatParamHandle

        assert FlatParamHandle.to_cpu
        FlatParamHandle.to_cpu = lambda handle: nullcontext()  # it is there already
        wrapped = FullyShardedDataParallel(model, device_id=torch.device("cpu"), **self.kwargs)
        _setup_activation_checkpointing(wrapped, self._activation_checkpointing_kwargs)
        return wrapped
