"""Modules of other libraries, federated: `make ecosystem` runs all scripts in this folder, or one of them."""

import torch

try:
    import torchvision as torchvision
except RuntimeError:
    # The registry's torchvision is compiled for torch's CUDA build. Beside a CPU build its operators cannot be
    # loaded, and it can only be imported if these are at least declared. No script here calls them.
    operators = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
        operators.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    import torchvision as torchvision
