"""Modules of other libraries, federated: `make ecosystem` runs all scripts in this folder, or one of them."""

import torch

try:
    import torchvision as torchvision
except RuntimeError:
    # Published wheels of torchvision are compiled for torch's CUDA build. Beside a CPU build their operators
    # cannot be loaded, and they can only be imported if these are at least declared. No script calls them.
    operators = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
        operators.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    import torchvision as torchvision
