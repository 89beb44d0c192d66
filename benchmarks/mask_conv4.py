"""A Conv-4 of two million weights on images of ten classes: accuracy, and bits of the messages both ways.

    python benchmarks/mask_conv4.py              # one seed, IID: 12 to 13 minutes of one core
    python benchmarks/mask_conv4.py --quick      # one round (half a minute)

The net is the Conv-4 that FedPM trains on MNIST (3 x 3 convolutions 64-64-pool-128-128-pool and three dense
layers), without biases, and with dense layers of 768-256-10, since images are smaller: 2 031 808 weights. No
dependency ships such images, so a fixed generator draws them, 16 x 16 in three colours: each class has three
smooth templates, and an image is one of them turned, zoomed, shifted and bent at random, under smooth clutter
and noise. 2560 to train, 1000 to test; 10 clients, 3 local epochs of batches of 32, Adam at 0.1 on the
scores, or at 0.001 on the weights.

Bits are per weight and client, the mean over the rounds, of all that Flower's messages hold.
"""

from __future__ import annotations

import argparse
import json
import logging
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from mask_federation import PARTITIONS, UPLINKS, Images, Log, federate
from torch import Tensor, nn

SIDE, CLASSES, TEMPLATES, TRAIN, TEST = 16, 10, 3, 2560, 1000
WAYS = ("dithered", "random", "FedAvg")
DOWN = {"dithered": "sum", "random": "relay", "FedAvg": "weights"}


def conv4() -> nn.Module:
    """Four convolutions and three dense layers, without biases."""
    layers: list[nn.Module] = []
    for inputs, outputs in ((3, 64), (64, 64), (64, 128), (128, 128)):
        layers += [nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.ReLU()]
        if inputs == outputs:
            layers.append(nn.MaxPool2d(2))
    layers.append(nn.Flatten())
    for inputs, outputs in ((128 * (SIDE // 4) ** 2, 768), (768, 256)):
        layers += [nn.Linear(inputs, outputs, bias=False), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(256, CLASSES, bias=False))


def generated(partition: str, seed: int) -> Images:
    """Draw the images of one seed, and deal them."""
    rng = np.random.Generator(np.random.PCG64(seed))
    n = TRAIN + TEST
    templates = _smooth(rng, CLASSES * TEMPLATES, 3, cells=6)
    y = torch.tensor(rng.permutation(np.arange(n) % CLASSES))
    drawn = templates[y * TEMPLATES + torch.tensor(rng.integers(0, TEMPLATES, n))]
    x = F.grid_sample(drawn, _bent_grid(rng, n), align_corners=True, padding_mode="reflection")
    x = x + 0.5 * _smooth(rng, n, 3, cells=5) + 0.3 * _normal(rng, n, 3, SIDE, SIDE)
    return Images(x / x.std(), y, TRAIN, partition, rng, batch=32)


def _bent_grid(rng: np.random.Generator, n: int) -> Tensor:
    """Where each pixel comes from, of shape (n, SIDE, SIDE, 2)."""
    angle, zoom = 0.25 * _normal(rng, n), torch.exp(0.15 * _normal(rng, n))
    shift = torch.tensor(rng.uniform(-0.3, 0.3, (n, 2, 1)), dtype=torch.float32)
    cos, sin = zoom * angle.cos(), zoom * angle.sin()
    turned = torch.stack([torch.stack([cos, -sin], 1), torch.stack([sin, cos], 1)], 1)
    grid = F.affine_grid(torch.cat([turned, shift], 2), [n, 3, SIDE, SIDE], align_corners=True)
    return grid + 0.1 * _smooth(rng, n, 2, cells=4).permute(0, 2, 3, 1)


def _smooth(rng: np.random.Generator, n: int, channels: int, cells: int) -> Tensor:
    """Smooth fields, from random values at so many points a side."""
    coarse = _normal(rng, n, channels, cells, cells)
    return F.interpolate(coarse, size=(SIDE, SIDE), mode="bicubic", align_corners=True)


def _normal(rng: np.random.Generator, *shape: int) -> Tensor:
    return torch.tensor(rng.standard_normal(shape), dtype=torch.float32)


def print_row(way: str, log: Log, partition: str, seed: int, size: int) -> None:
    """Print one run: accuracy, then bits a weight."""
    up = np.array([r["up"][way] for r in log]) * 8 / size
    down, alone = (np.array([r[name] for r in log]) * 8 / size for name in ("down", "alone"))
    five = np.mean([r["accuracy"] for r in log[-5:]])
    accuracy = f"{log[-1]['accuracy']:9.3f}{five:9.3f}{log[-1]['sampled']:9.3f}"
    figures = f"{up.mean():9.4f}{down.mean():9.3f}{(up + down).mean():9.3f}{alone.mean():9.3f}"
    last = f"{up[-1]:9.4f}{down[-1]:9.3f}"
    print(f"{way + ', ' + DOWN[way]:18}{partition:11}{seed:4}{accuracy}{figures}{last}", flush=True)


def main() -> None:
    """Run what is not yet kept, and show everything."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="one round")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--partitions", nargs="+", default=["IID"], choices=PARTITIONS)
    parser.add_argument("--ways", nargs="+", default=list(WAYS), choices=WAYS)
    parser.add_argument("--out", type=Path, default=Path("runs/conv4"))
    args = parser.parse_args()
    rounds = 1 if args.quick else args.rounds
    args.out.mkdir(parents=True, exist_ok=True)
    logging.getLogger("flwr").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    size = sum(p.numel() for p in conv4().parameters())
    print(
        f"{size} weights, {rounds} rounds. Accuracy in the last round, over the last five, of a sampled mask;"
    )
    print("bits a weight up, down, both ways, down if alone; up and down in the last round\n")
    heads = ("last", "five", "sample", "up", "down", "both", "alone", "up", "down")
    print(
        f"{'way':18}{'partition':11}{'seed':>4}" + "".join(f"{h:>{8 if h == 'five' else 9}}" for h in heads)
    )
    for partition in args.partitions:
        for seed in args.seeds:
            for way in args.ways:
                path = args.out / f"{way}_{partition}_{seed}_{rounds}.json"
                if not path.exists():
                    start, data = time.process_time(), generated(partition, seed)
                    log = federate(way, UPLINKS[way], data, conv4, seed, rounds, samples=1)
                    path.write_text(json.dumps(log))
                    print(
                        f"{way}, {partition}, {seed}: {time.process_time() - start:.0f} s of processor time"
                    )
                print_row(way, json.loads(path.read_text()), partition, seed, size)


if __name__ == "__main__":
    main()
