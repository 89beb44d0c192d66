"""Federated probabilistic masks on digits: accuracy against the bytes that travel, and the codes' speed.

    python benchmarks/masks.py            # three seeds, both partitions: table, plot, speeds (half an hour)
    python benchmarks/masks.py --quick    # one seed, IID, 4 rounds (about a minute)

A convolutional net of 151 072 weights (conv 32-64, fc 128, no biases), 10 clients that all take part in 25
rounds, 3 local epochs of batches of 32, Adam at 0.1 on the scores, scikit-learn's digits: 1437 to train, 360
to test. IID shares, or two shards of the examples sorted by label for each client. Every finished run is
kept in `--out`, so the command can be stopped and goes on where it was.

Compared: masks drawn independently (sent packed or dithered: the same masks, so one run), stratified masks
(likewise), minimal random coding, θ in float32, and FedAvg of the weights in float32. Bytes are those of the
payloads, headers included; bits are per parameter, averaged over the clients.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from lightning_fl_ext.aggregation.mask_posterior import MaskPosterior, ThetaCounts
from lightning_fl_ext.gates import MaskedModule, bernoulli_sample
from lightning_fl_ext.wire.codes import (
    MaskKey,
    decode_mask,
    decode_theta,
    encode_mask,
    encode_theta,
    to_fixed_point,
)
from lightning_fl_ext.wire.codes.rice import encode_bits

CLIENTS, EPOCHS, BATCH, SIZE = 10, 3, 32, 151_072
UPLINKS = ["independent", "stratified", "random", "float θ", "FedAvg"]
PARTITIONS = ["IID", "two-shard"]
CODES = {"independent": ("packed", "dithered"), "stratified": ("packed", "dithered"), "random": ("random",)}


def make_net() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 32, 3, padding=1, bias=False),
        nn.ReLU(),
        nn.Conv2d(32, 64, 3, padding=1, bias=False),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(1024, 128, bias=False),
        nn.ReLU(),
        nn.Linear(128, 10, bias=False),
    )


class Digits:
    """The data of one seed: each client's share, and the test set."""

    def __init__(self, partition: str, seed: int) -> None:
        from sklearn.datasets import load_digits

        rng = np.random.Generator(np.random.PCG64(seed))
        x, y = load_digits(return_X_y=True)
        order = rng.permutation(len(x))
        self.x = torch.tensor(x[order] / 16, dtype=torch.float32).view(-1, 1, 8, 8)
        self.y = torch.tensor(y[order])
        train = np.arange(1437)
        if partition == "IID":
            self.shares = np.array_split(train, CLIENTS)
        else:
            shards = np.array_split(np.argsort(self.y[:1437].numpy(), kind="stable"), 2 * CLIENTS)
            dealt = rng.permutation(2 * CLIENTS)
            self.shares = [np.concatenate([shards[i] for i in dealt[k::CLIENTS]]) for k in range(CLIENTS)]

    def accuracy(self, net: nn.Module) -> float:
        with torch.no_grad():
            return float((net(self.x[1437:]).argmax(1) == self.y[1437:]).float().mean())

    def fit(self, net: nn.Module, client: int, lr: float) -> None:
        optimizer = torch.optim.Adam([p for p in net.parameters() if p.requires_grad], lr=lr)
        net.train()
        for _ in range(EPOCHS):
            share = torch.tensor(self.shares[client])[torch.randperm(len(self.shares[client]))]
            for batch in share.split(BATCH):
                optimizer.zero_grad()
                F.cross_entropy(net(self.x[batch]), self.y[batch]).backward()
                optimizer.step()


def load_scores(masked: MaskedModule, theta: NDArray[np.float32]) -> None:
    parts = torch.from_numpy(theta).split([p.numel() for p in masked.mask_probs().values()])
    masked.load_mask_probs(
        {n: part.view_as(p) for part, (n, p) in zip(parts, masked.mask_probs().items(), strict=True)}
    )


def client_thetas(
    masked: MaskedModule, data: Digits, theta: NDArray[np.float32]
) -> Iterator[tuple[Any, Any]]:
    """Each client's θ after its local training, and which of its scores moved."""
    for client in range(CLIENTS):
        load_scores(masked, theta)
        start = masked.scores.detach().clone()
        data.fit(masked, client, lr=0.1)
        scores = masked.scores.detach()
        if not scores.isfinite().all():
            raise AssertionError("a score is infinite")
        yield torch.sigmoid(scores.double()).numpy(), (scores != start).numpy()


def evaluate(masked: MaskedModule, data: Digits, theta: NDArray[np.float32]) -> dict[str, float]:
    load_scores(masked, theta)
    masked.eval()
    mean = data.accuracy(masked)
    sampled = float(np.mean([data.accuracy(masked.bake("sample")) for _ in range(5)]))
    return {"mean mask": mean, "sampled": sampled}


def given_last_round(theta: ThetaCounts, last: ThetaCounts) -> int:
    """Bytes of θ coded in the context of the last round's counts, without a header."""
    total = 0
    for level in reversed(range(theta.trials.bit_length())):
        digits = theta.counts >> np.uint16(level)
        contexts = last.counts * np.uint16(256) + (digits >> np.uint16(1))
        total += len(encode_bits((digits & np.uint16(1)).astype(np.bool_), contexts))
    return total


def run_masks(uplink: str, partition: str, seed: int, rounds: int) -> list[dict[str, Any]]:
    """FedPM with masks on the way up and counts on the way down."""
    torch.manual_seed(seed)
    data, masked = Digits(partition, seed), MaskedModule(make_net(), seed=seed, flat=True)
    model = bytes(masked.frozen_digest.tolist()).hex()
    theta = ThetaCounts.from_probabilities(torch.sigmoid(masked.scores.detach()).numpy())
    posterior, last, log = MaskPosterior.start(SIZE), None, []
    for number in range(1, rounds + 1):
        key = MaskKey(seed, number, model)
        down = encode_theta(theta, key)
        public = decode_theta(down, SIZE, key).fixed_point()
        masks, moved = [], np.zeros(SIZE, dtype=np.bool_)
        up: dict[str, list[int]] = {code: [] for code in CODES[uplink]}
        for client, (probs, client_moved) in enumerate(client_thetas(masked, data, theta.probabilities())):
            stratum = (client, CLIENTS) if uplink == "stratified" else None
            key = MaskKey(seed, number, model, f"client-{client}", stratum)
            decoded = []
            for code in CODES[uplink]:
                payload = encode_mask(to_fixed_point(probs), public, key, code)
                up[code].append(len(payload))
                decoded.append(decode_mask(payload, public, key))
            assert all(np.array_equal(mask, decoded[0]) for mask in decoded)
            masks.append(decoded[0])
            moved |= client_moved
        last, theta = theta, (posterior := posterior.update(masks)).theta()
        log.append(
            {
                "up": {code: float(np.mean(sizes)) for code, sizes in up.items()},
                "down": len(down),
                "down given last": given_last_round(theta, last),
                "stopped": 1 - float(moved.mean()),
                **evaluate(masked, data, theta.probabilities()),
            }
        )
    return log


def run_float_theta(partition: str, seed: int, rounds: int) -> list[dict[str, Any]]:
    """The same training with θ in float32 both ways: no mask is ever sent."""
    torch.manual_seed(seed)
    data, masked = Digits(partition, seed), MaskedModule(make_net(), seed=seed, flat=True)
    theta, log = torch.sigmoid(masked.scores.detach()).numpy(), []
    for _ in range(rounds):
        thetas = [probs for probs, _ in client_thetas(masked, data, theta)]
        theta = np.mean(thetas, axis=0).clip(0.01, 0.99).astype(np.float32)
        log.append({"up": {"float θ": 4 * SIZE}, "down": 4 * SIZE, **evaluate(masked, data, theta)})
    return log


def run_fedavg(partition: str, seed: int, rounds: int) -> list[dict[str, Any]]:
    """FedAvg of the weights in float32, Adam at 0.001."""
    torch.manual_seed(seed)
    data, net = Digits(partition, seed), make_net()
    log = []
    for _ in range(rounds):
        start = {name: w.clone() for name, w in net.state_dict().items()}
        sums = {name: torch.zeros_like(w) for name, w in start.items()}
        for client, share in enumerate(data.shares):
            net.load_state_dict(start)
            data.fit(net, client, lr=1e-3)
            for name, w in net.state_dict().items():
                sums[name] += w * (len(share) / 1437)
        net.load_state_dict(sums)
        accuracy = data.accuracy(net)
        log.append({"up": {"FedAvg": 4 * SIZE}, "down": 4 * SIZE, "mean mask": accuracy, "sampled": accuracy})
    return log


def run(uplink: str, partition: str, seed: int, rounds: int) -> list[dict[str, Any]]:
    if uplink == "float θ":
        return run_float_theta(partition, seed, rounds)
    if uplink == "FedAvg":
        return run_fedavg(partition, seed, rounds)
    return run_masks(uplink, partition, seed, rounds)


# --- table and plot ---------------------------------------------------------------------------------------


def rows(results: dict[tuple[str, str, int], list[dict[str, Any]]]) -> Iterator[tuple[str, str, list[Any]]]:
    """One row for each partition and way up: name, partition, the runs of all seeds."""
    for partition in PARTITIONS:
        for uplink in UPLINKS:
            runs = [log for (u, p, _), log in results.items() if (u, p) == (uplink, partition)]
            for code in runs[0][0]["up"] if runs else ():
                name = f"{code}, stratified" if uplink == "stratified" else code
                yield name, partition, [(log, code) for log in runs]


def print_tables(results: dict[tuple[str, str, int], list[dict[str, Any]]]) -> None:
    print(
        "\npartition  up                  accuracy: mean mask  sampled  bits up   last  bits down  MB total"
    )
    for name, partition, runs in rows(results):
        last = [[log[-1]["mean mask"], log[-1]["sampled"]] for log, _ in runs]
        (mean, sampled), (spread, _) = np.mean(last, axis=0), np.std(last, axis=0)
        up = np.mean([[r["up"][code] for r in log] for log, code in runs], axis=0) * 8 / SIZE
        down = np.mean([[r["down"] for r in log] for log, _ in runs], axis=0) * 8 / SIZE
        total = CLIENTS * (up + down).sum() * SIZE / 8e6
        print(
            f"{partition:10} {name:20}{mean:12.3f} ±{spread:.3f} {sampled:8.3f}"
            f" {up.mean():8.4f} {up[-1]:7.4f} {down.mean():9.2f} {total:9.2f}"
        )
    print("\nIndependent masks by round: bits up (dithered), bits down, down given the last round's counts,")
    print("fraction of parameters whose score no client moved, accuracy of the mean mask")
    for partition in PARTITIONS:
        runs = [log for (u, p, _), log in results.items() if (u, p) == ("independent", partition)]
        for i in range(0, len(runs[0]) if runs else 0, 4):
            row = [
                np.mean([log[i]["up"]["dithered"] for log in runs]) * 8 / SIZE,
                np.mean([log[i]["down"] for log in runs]) * 8 / SIZE,
                np.mean([log[i]["down given last"] for log in runs]) * 8 / SIZE,
                np.mean([log[i]["stopped"] for log in runs]),
                np.mean([log[i]["mean mask"] for log in runs]),
            ]
            print(f"{partition:10} round {i + 1:2}  " + "".join(f"{value:9.4f}" for value in row))


def plot(results: dict[tuple[str, str, int], list[dict[str, Any]]], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(10, 4), sharey=True, layout="constrained")
    for axis, partition in zip(axes, PARTITIONS, strict=True):
        for name, where, runs in rows(results):
            if where == partition:
                sent = [[CLIENTS * (r["up"][code] + r["down"]) / 1e6 for r in log] for log, code in runs]
                accuracy = np.mean([[r["mean mask"] for r in log] for log, _ in runs], axis=0)
                axis.plot(np.cumsum(np.mean(sent, axis=0)), accuracy, label=name, linewidth=1.3)
        axis.set(xscale="log", xlabel="MB sent by all, up and down", title=partition, ylim=(0.5, 1))
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("test accuracy (mean mask)")
    axes[0].legend(fontsize=8)
    figure.savefig(path)
    print(f"\nplot: {path}")


# --- speed ------------------------------------------------------------------------------------------------


class MaskedLinear(nn.Linear):
    """One class per layer, from the formula: what a wrapper is measured against."""

    def __init__(self, size: int) -> None:
        super().__init__(size, size, bias=False)
        self.weight.requires_grad_(False)
        self.scores = nn.Parameter(torch.randn(size, size))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight * bernoulli_sample(torch.sigmoid(self.scores)))


def best_of(function: Callable[[], Any], repeats: int = 5) -> float:
    """Seconds of processor time of the fastest call: other programs on the machine hardly count."""
    times = []
    for _ in range(repeats):
        start = time.process_time()
        function()
        times.append(time.process_time() - start)
    return min(times)


def print_speed(size: int) -> None:
    rng = np.random.Generator(np.random.PCG64(0))
    logits = np.log(1 / rng.uniform(0.01, 0.99, size) - 1)
    public = to_fixed_point(1 / (1 + np.exp(logits)))
    theta = to_fixed_point(1 / (1 + np.exp(logits + rng.normal(0, 0.3, size))))
    key = MaskKey(0, 1, "speed", "client")
    print(f"\ncodes, {size} parameters, one thread, million parameters per second: encode, decode")
    for code in ("packed", "dithered", "random"):
        n = min(size, 300_000) if code == "random" else size
        payload = encode_mask(theta[:n], public[:n], key, code)
        write = best_of(lambda n=n, code=code: encode_mask(theta[:n], public[:n], key, code))
        read = best_of(lambda n=n, payload=payload: decode_mask(payload, public[:n], key))
        print(f"{code:10}{n / write / 1e6:8.1f}{n / read / 1e6:8.1f}   {8 * len(payload) / n:.4f} bits")
    counts = ThetaCounts(rng.integers(0, 11, size).astype(np.uint16), 10)
    payload = encode_theta(counts, key)
    write, read = (
        best_of(lambda: encode_theta(counts, key)),
        best_of(lambda: decode_theta(payload, size, key)),
    )
    print(f"{'θ':10}{size / write / 1e6:8.1f}{size / read / 1e6:8.1f}   {8 * len(payload) / size:.4f} bits")

    layers, width = 50, 64
    print("\nforward and backward, milliseconds:")
    for name, x, nets in [
        ("conv net, batch 32", torch.randn(32, 1, 8, 8), {"plain": make_net()}),
        (
            f"{layers} × Linear({width}), batch 32",
            torch.randn(32, width),
            {
                "plain": nn.Sequential(*(nn.Linear(width, width, bias=False) for _ in range(layers))),
                "class per layer": nn.Sequential(*(MaskedLinear(width) for _ in range(layers))),
            },
        ),
    ]:
        plain = nets["plain"]
        for flat in (False, True):
            nets["MaskedModule, flat" if flat else "MaskedModule"] = MaskedModule(deepcopy(plain), flat=flat)
        for label, net in nets.items():
            seconds = best_of(lambda net=net, x=x: net(x).sum().backward(), 20)
            print(f"{name:28} {label:20}{1e3 * seconds:8.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="one seed, IID, 4 rounds")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--uplinks", nargs="+", default=UPLINKS, choices=UPLINKS)
    parser.add_argument("--partitions", nargs="+", default=PARTITIONS, choices=PARTITIONS)
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--out", type=Path, default=Path("runs/masks"))
    args = parser.parse_args()
    if args.quick:
        args.seeds, args.partitions, args.rounds, args.out = [0], ["IID"], 4, args.out / "quick"
    args.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    results = {}
    for seed in args.seeds:
        for partition in args.partitions:
            for uplink in args.uplinks:
                path = args.out / f"{uplink}_{partition}_{seed}_{args.rounds}.json"
                if not path.exists():
                    start = time.perf_counter()
                    path.write_text(json.dumps(run(uplink, partition, seed, args.rounds)))
                    print(
                        f"{uplink}, {partition}, seed {seed}: {time.perf_counter() - start:.0f} s", flush=True
                    )
                results[uplink, partition, seed] = json.loads(path.read_text())
    print_tables(results)
    plot(results, args.out / "masks.png")
    print_speed(1_000_000 if args.quick else 10_000_000)


if __name__ == "__main__":
    main()
