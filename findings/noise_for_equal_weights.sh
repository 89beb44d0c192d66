#!/usr/bin/env bash
# flwr 1.41.0 with numpy 2.4.6: the DifferentialPrivacy... wrappers add noise of deviation `noise_multiplier *
# clipping_norm / num_sampled_clients`, which is right for a mean in which every client weighs the same. FedAvg, around
# which they are documented, weighs by examples. Only with an accountant are unequal weights refused; without one
# nothing is said.
#
# Output seen (ten clients, clipping norm 1, noise multiplier 1):
#   equal counts of examples:      one client moves the model by 0.10, noise 0.10, so the noise multiplier is 0.99
#   one has 1000, the others 10:   one client moves the model by 0.92, noise 0.10, so the noise multiplier is 0.11
#
# Why it matters: the hospital with the most patients is protected the least, by a multiple that no one sees: an epsilon
# computed from the noise multiplier is that of equal weights. McMahan et al. 2018, which the source names (lemma 1), has
# the sensitivity grow with the largest weight. Weigh by a metric that every client reports as 1 (`weighted_by_key`).
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


def record(value):
    return ArrayRecord({"w": Array(np.full(10_000, value))})


def aggregate(counts, first, noise):
    """A round in which the first client moves the model by `first`, and the others leave it (almost) as it is."""
    strategy = DifferentialPrivacyServerSideFixedClipping(FedAvg(), noise, 1.0, num_sampled_clients=len(counts))
    strategy.current_arrays = record(0.0)
    replies = []
    for number, count in enumerate(counts):
        content = {"arrays": record(1e-9 if number else first), "metrics": MetricRecord({"num-examples": count})}
        replies.append(Message(RecordDict(content), number + 2, "train"))
    return strategy.aggregate_train(1, replies)[0]["w"].numpy()


np.random.seed(0)
found = []
for counts, words in (([10] * 10, "equal counts of examples:"), ([1000] + [10] * 9, "one has 1000, the others 10:")):
    moved = np.linalg.norm(aggregate(counts, 1.0, 0.0))
    noise = aggregate(counts, 1e-9, 1.0).std()
    found.append(noise / moved)
    print(f"{words:<30} one client moves the model by {moved:.2f}, noise {noise:.2f}, so the noise multiplier is {found[-1]:.2f}")
assert abs(found[0] - 1) < 0.05 and abs(found[1] - 0.109) < 0.01, found
PYTHON
