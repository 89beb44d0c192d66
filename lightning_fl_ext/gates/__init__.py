"""Stochastic gates: samples with gradients, and the layers built on them. Needs torch only."""

from lightning_fl_ext.gates.bernoulli import BernoulliSample
from lightning_fl_ext.gates.estimators import Estimator, bernoulli_sample, open_probability
from lightning_fl_ext.gates.masked import MaskedModule
from lightning_fl_ext.gates.modules import gate_modules
from lightning_fl_ext.gates.projection import project_open_fraction
from lightning_fl_ext.gates.shrinking.costs import gate_costs
from lightning_fl_ext.gates.shrinking.cut import ShrinkError
from lightning_fl_ext.gates.shrinking.shrink import shrink
from lightning_fl_ext.gates.stochastic import StochasticGateModule

__all__ = [
    "BernoulliSample",
    "Estimator",
    "MaskedModule",
    "ShrinkError",
    "StochasticGateModule",
    "bernoulli_sample",
    "gate_costs",
    "gate_modules",
    "open_probability",
    "project_open_fraction",
    "shrink",
]
