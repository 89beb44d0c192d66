"""Lets tests import the modules beside them; plain runs to compare secure ones with."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

import _toy as toy
from _secure_fit import fit

from lightning_fl_ext import ExactFedAvg


@pytest.fixture(scope="module")
def plain():
    def run(number=5, without=(), **options):
        def faults(instruction, reply):
            return None if toy.is_train(instruction) and toy.client_of(reply) in without else reply

        return fit(ExactFedAvg(fraction_evaluate=0.0), number, toy.make_app(), faults, **options)

    return run
