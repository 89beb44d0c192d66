"""Damaged input for everything that is decoded: each outcome is a value or one of the package's errors.

python tests/fuzz/_decoders.py --seconds 600 --seed 1
"""

import argparse
import resource
import sys
import time
import traceback
import warnings
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from _mutations import generator
from _targets import INPUTS_AT_ONCE, TARGETS

SLOW = 5.0
"""Seconds of one input that are too many, in a run by hand."""

MUCH = 2**30
"""Bytes by which the process may grow over a run."""


@dataclass
class Found:
    """What a run found."""

    inputs: Counter
    values: Counter
    faults: list
    slowest: float = 0.0
    grown: int = 0

    def __str__(self):
        lines = [
            f"{name:<15} {self.inputs[name]:>9} inputs, {self.values[name]:>9} taken" for name in TARGETS
        ]
        return "\n".join(
            [
                *lines,
                f"{sum(self.inputs.values())} inputs, {len(self.faults)} faults; the slowest took"
                f" {self.slowest:.2f} s; the process grew by {self.grown / 2**20:.0f} MiB",
                *self.faults[:20],
            ]
        )


def fuzz(seed, turns=None, seconds=None, only=None, faults_at_most=20):
    """Feed damaged input to every target, in turns.

    Args:
        seed: Of the random numbers: the same seed and turns make the same inputs.
        turns: How many; None for as many as there is time for.
        seconds: How long.
        only: One target's name.
        faults_at_most: After which to stop.
    """
    found = Found(Counter(), Counter(), [])
    rngs = {name: generator(seed, name) for name in TARGETS if only in (None, name)}
    before, start, turn = peak(), time.monotonic(), 0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        while (turns is None or turn < turns) and (seconds is None or time.monotonic() - start < seconds):
            turn += 1
            for name, rng in rngs.items():
                for _ in range(INPUTS_AT_ONCE.get(name, 200)):
                    one(name, TARGETS[name], rng, found)
                if len(found.faults) >= faults_at_most:
                    return found
    found.grown = peak() - before
    return found


def one(name, target, rng, found):
    given = target.make(rng)
    start = time.process_time()
    found.inputs[name] += 1
    try:
        target.decode(given)
        found.values[name] += 1
    except target.raises:
        pass
    except Exception:
        where = traceback.format_exc(limit=-4)
        found.faults.append(f"{name}, input {found.inputs[name]}: {str(given)[:200]}\n{where[-1500:]}")
    found.slowest = max(found.slowest, time.process_time() - start)


def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=sorted(TARGETS))
    asked = parser.parse_args()
    import logging

    logging.disable(logging.WARNING)
    found = fuzz(asked.seed, seconds=asked.seconds, only=asked.only)
    print(found)
    sys.exit(bool(found.faults) or found.slowest > SLOW or found.grown > MUCH)


if __name__ == "__main__":
    main()
