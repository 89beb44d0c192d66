#!/usr/bin/env bash
# flwr 1.41.0 with numpy 2.4.6: Krum, MultiKrum and Bulyan measure distances between models as |x|^2 + |y|^2 - 2xy, in
# the models' own float32, over all arrays. Where a model is long beside what clients change of it, nothing is left of
# the distances after the subtraction: they come out as 0, negative, or as large for honest clients as for an attacker.
# And an integer such as batch norm's count of batches outweighs all weights: whoever has as many batches as most is near.
#
# Output seen (ten clients; two attackers change the model 100 times as far as the others; five clients are chosen; how
# often in float32 depends on the processor's matrix product):
#   a frozen body of length 95, float32:      attackers chosen 13 of 40 times, honest distances -2.0e-03 to 0.0e+00
#   the same in float64:                      attackers chosen 0 of 40 times, honest distances 1.9e-07 to 2.2e-07
#   a count of batches beside the weights:    attackers chosen 2 of 2 times
#   the same without the count:               attackers chosen 0 of 2 times
#
# Why it matters: fine-tuning with a frozen body, and late rounds of any run, are of the first kind; every model with
# batch norm is of the second. The rule that is to leave attackers out then takes them in, by chance or by their count.
# Blanchard et al. 2017 (section 4) choose by the distances of the updates. Subtract first, in float64, floats alone.
set -euo pipefail
here=$(mktemp -d)
trap 'rm -rf "$here"' EXIT
python3 -m pip install -q --disable-pip-version-check --target "$here" flwr==1.41.0 numpy==2.4.6
PYTHONPATH=$here FLWR_TELEMETRY_ENABLED=0 python3 -W ignore - <<'PYTHON'
import numpy as np
from flwr.app import Array, ArrayRecord, MetricRecord, RecordDict
from flwr.serverapp.strategy.multikrum import compute_distances, select_multikrum

ATTACKERS, CHOSEN = 2, 5


def reply(number, **arrays):
    arrays = {name: Array(np.asarray(array)) for name, array in arrays.items()}
    return RecordDict({"arrays": ArrayRecord(arrays), "metrics": MetricRecord({"number": number})})


def attackers_chosen(replies):
    chosen = select_multikrum(replies, ATTACKERS, CHOSEN)
    return sum(content["metrics"]["number"] < ATTACKERS for content in chosen)


def models(dtype, seed=0):
    """The first two move their weights 100 times as far."""
    random = np.random.default_rng(seed)
    for number in range(10):
        step = 1e-3 if number < ATTACKERS else 1e-5
        yield (1.0 + step * random.standard_normal(1000)).astype(dtype)


found = []
for dtype, words in ((np.float32, "a frozen body of length 95, float32:"), (np.float64, "the same in float64:")):
    chosen, body = 0, np.full(9000, 1.0, dtype)
    for seed in range(20):
        replies = [reply(n, body=body, head=head) for n, head in enumerate(models(dtype, seed))]
        chosen += attackers_chosen(replies)
    found.append(chosen)
    honest = compute_distances([content["arrays"] for content in replies])[2, 3:]
    print(f"{words:<41} attackers chosen {chosen} of 40 times, honest distances {honest.min():.1e} to {honest.max():.1e}")

batches = [31, 33, 10, 15, 21, 28, 36, 45, 55, 66]
for counted, words in ((True, "a count of batches beside the weights:"), (False, "the same without the count:")):
    more = [{"num_batches_tracked": np.int64(n)} if counted else {} for n in batches]
    replies = [reply(n, head=head, **m) for n, (head, m) in enumerate(zip(models(np.float64), more))]
    found.append(attackers_chosen(replies))
    print(f"{words:<41} attackers chosen {found[-1]} of 2 times")
assert found[0] > 4 and found[1] == 0 and found[2] == 2 and found[3] == 0, found
PYTHON
