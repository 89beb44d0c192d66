#!/usr/bin/env bash
# flwr 1.41.0 with numpy 2.4.6: what clips updates for differential privacy (the four DifferentialPrivacy... wrappers,
# fixedclipping_mod and adaptiveclipping_mod) takes the norm over all arrays, integers among them. Batch norm's count of
# batches is then most of the norm, and the weights are scaled down by it. And an array without dimensions (that count,
# a learned temperature or scale) is in the norm, but is not clipped: numpy gives a scalar for the difference of two such
# arrays, and `array *= factor` makes another scalar instead of changing it.
#
# Output seen (clipping norm 1, FedAvg of clients that all send the same, no noise):
#   weights that move by 1.00:                                after clipping they move by 1.00
#   the same, and batch norm counts 50 batches:               after clipping they move by 0.02
#   a learned scale without dimensions that moves by 50.00:   after clipping it moves by 50.00
#
# Why it matters: a model with batch norm hardly learns under clipping, by a factor that is its number of batches; under
# adaptive clipping the bound follows the counts. And a single number of a client may move the model as far as it likes,
# past the bound that the noise is made for: the privacy that is stated does not hold. Hand in floats alone, none of
# them without dimensions, or reshape these to one element.
set -euo pipefail
here=$(mktemp -d)
trap 'rm -rf "$here"' EXIT
python3 -m pip install -q --disable-pip-version-check --target "$here" flwr==1.41.0 numpy==2.4.6
PYTHONPATH=$here FLWR_TELEMETRY_ENABLED=0 python3 -W ignore - 2>"$here/said" <<'PYTHON' || { cat "$here/said"; exit 1; }
import numpy as np
from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict
from flwr.serverapp.strategy import DifferentialPrivacyServerSideFixedClipping, FedAvg
from flwr.supercore.task_identity import TaskIdentity

TaskIdentity.task_id = TaskIdentity.run_id = TaskIdentity.node_id = 1  # else no Message can be made here


def record(arrays):
    return ArrayRecord({name: Array(np.asarray(array)) for name, array in arrays.items()})


def moved(name, before, after):
    """How far one round of two clients that send the same moves an array."""
    strategy = DifferentialPrivacyServerSideFixedClipping(FedAvg(), 0.0, 1.0, num_sampled_clients=2)
    strategy.current_arrays = record(before)
    content = {"arrays": record(after), "metrics": MetricRecord({"num-examples": 1})}
    replies = [Message(RecordDict(content), node, "train") for node in (2, 3)]
    arrays, _ = strategy.aggregate_train(1, replies)
    return float(np.linalg.norm(np.ravel(arrays[name].numpy() - before[name])))


weights = np.zeros(100, np.float32), np.full(100, 0.1, np.float32)
count = np.int64(0), np.int64(50)
scale = np.float32(1), np.float32(51)
found = [
    moved("w", *({"w": w} for w in weights)),
    moved("w", *({"w": w, "num_batches_tracked": n} for w, n in zip(weights, count))),
    moved("scale", *({"scale": s} for s in scale)),
]
print(f"weights that move by 1.00:                                after clipping they move by {found[0]:.2f}")
print(f"the same, and batch norm counts 50 batches:               after clipping they move by {found[1]:.2f}")
print(f"a learned scale without dimensions that moves by 50.00:   after clipping it moves by {found[2]:.2f}")
assert np.allclose(found, [1.0, 0.02, 50.0], atol=0.005), found
PYTHON
