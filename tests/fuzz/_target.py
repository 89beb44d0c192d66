"""What is fuzzed."""

from dataclasses import dataclass

from lightning_fl_ext import LightningFLError


@dataclass(frozen=True)
class Target:
    """A decoder: how its input is made from random numbers, and what it may raise."""

    make: object
    decode: object
    raises: tuple = (LightningFLError,)
