"""Gates on nets that libraries bring, put there by names: the smaller net gives the same outputs."""

import copy
import time

import timm
import torch
import transformers
from torch import nn
from torchvision import models

from ecosystem._harness import CheckFailed, print_row, quiet
from lightning_fl_ext import gate_modules, shrink

IMAGES = torch.randn(2, 3, 64, 64)
SIZES = {"vocab_size": 50, "hidden_size": 32, "num_hidden_layers": 4, "intermediate_size": 64}
WORDS = torch.randint(50, (2, 9))


def channels(net, *names):
    gate_modules(net, names, on="channels")
    return net


def heads(net, projection, count, width):
    """Gates on the heads of an attention of plain linear layers."""
    gate_modules(net, projection, count, on="input", groups=[i * count // width for i in range(width)])
    return net


def resnet():
    return channels(models.resnet50(num_classes=10), "bn1", "layer?.*.bn[12]")


def mobilenet():
    net = models.mobilenet_v2(num_classes=10)
    return channels(net, *(name for name, m in net.named_modules() if isinstance(m, nn.BatchNorm2d)))


def densenet():
    return channels(models.densenet121(num_classes=10), "features.denseblock*.*.norm2")


def torch_attention():
    net = models.VisionTransformer(64, 16, 4, 4, 64, 128, num_classes=10)
    nn.init.normal_(net.heads.head.weight)  # zeros otherwise
    gate_modules(net, "encoder.layers.*.self_attention", on="heads")
    gate_modules(net, "encoder.layers.*.mlp.0", on="channels")
    gate_modules(net, "encoder.layers.*", closed="skip")
    return net


def plain_attention():
    net = heads(
        timm.create_model("vit_tiny_patch16_224", img_size=64, num_classes=10), "blocks.*.attn.proj", 3, 192
    )
    gate_modules(net, "blocks.*.mlp.fc1", on="channels")
    gate_modules(net, "blocks.*", closed="skip")
    return net


def bert():
    net = heads(
        transformers.BertModel(transformers.BertConfig(num_attention_heads=4, **SIZES)),
        "encoder.layer.*.attention.output.dense",
        4,
        32,
    )
    gate_modules(net, "encoder.layer.*.intermediate", 64)
    gate_modules(net, "encoder.layer.*", closed="skip")
    return net


def llama():
    config = transformers.LlamaConfig(num_attention_heads=4, use_cache=False, **SIZES)
    net = heads(transformers.LlamaModel(config), "layers.*.self_attn.o_proj", 4, 32)
    gate_modules(net, "layers.*.mlp.down_proj", 64, on="input")
    gate_modules(net, "layers.*", closed="skip")
    return net


def first(output):
    return output if torch.is_tensor(output) else output[0]


def check(library, module, net, example):
    """Close every other gate, and of those that hold a layer every third; shrink, and print a row."""
    start = time.perf_counter()
    gates = [m for m in net.modules() if hasattr(m, "open_positions")]
    first(net.train()(example)).square().sum().backward()
    if unmoved := [gate for gate in gates if gate.logits.grad is None]:
        raise CheckFailed(f"{module}: {len(unmoved)} gates get no gradient")
    layers = 0
    for gate in gates:
        gate.evaluation = "threshold"
        alone = gate.logits.numel() == 1
        gate.logits.data.view(-1)[1::2] = -3.0
        if alone:
            gate.logits.data.fill_(-3.0 if layers % 3 == 1 else 3.0)
        layers += alone
    gated = copy.deepcopy(net).eval()
    with torch.no_grad():
        other = example.flip(-1)
        expected = first(gated(other))
        small = shrink(net, example).eval()
        difference = ((first(small(other)) - expected).abs().max() / expected.abs().max()).item()
    if not difference < 1e-5:
        raise CheckFailed(f"{module}: the smaller net's outputs differ by {difference:.1e}")
    sizes = [
        sum(p.numel() for n, p in m.named_parameters() if not n.endswith("logits")) for m in (net, small)
    ]
    outcome = "{:,} parameters, {:,} without what {} gate layers closed".format(*sizes, len(gates))
    print_row(library, module, outcome, time.perf_counter() - start)


if __name__ == "__main__":
    quiet()
    torch.manual_seed(0)
    check("torchvision", "resnet50", resnet(), IMAGES)
    check("torchvision", "mobilenet_v2", mobilenet(), IMAGES)
    check("torchvision", "densenet121", densenet(), IMAGES)
    check("torchvision", "VisionTransformer", torch_attention(), IMAGES)
    check("timm", "vit_tiny_patch16_224", plain_attention(), IMAGES)
    check("transformers", "BertModel", bert(), WORDS)
    check("transformers", "LlamaModel", llama(), WORDS)
