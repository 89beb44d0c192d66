"""The toy federation, for every test of the server."""

import importlib.util
import logging
import random
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from flwr.serverapp.strategy import (
    Bulyan,
    DifferentialPrivacyClientSideAdaptiveClipping,
    DifferentialPrivacyClientSideFixedClipping,
    DifferentialPrivacyServerSideAdaptiveClipping,
    DifferentialPrivacyServerSideFixedClipping,
    FedAdagrad,
    FedAdam,
    FedAvg,
    FedAvgM,
    FedMedian,
    FedProx,
    FedTrimmedAvg,
    FedYogi,
    Krum,
    MultiKrum,
    QFedAvg,
)

from lightning_fl_ext import ExactFedAdam, ExactFedAvg, ExactFedAvgM, KrumSelection, RobustFedAvg

sys.path.insert(0, str(Path(__file__).parent))  # tests import the modules beside them


@pytest.fixture(scope="session")
def toy():
    name = "lightning_fl_ext_toy_federation"
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name("_toy.py"))
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(autouse=True)
def _quiet_flower():
    logging.getLogger("flwr").setLevel(logging.ERROR)


STRATEGIES = {
    "ExactFedAvg": ExactFedAvg,
    "ExactFedAvgM": ExactFedAvgM,
    "ExactFedAdam": ExactFedAdam,
    "RobustFedAvg": lambda: RobustFedAvg(KrumSelection(1, select=2)),
    "FedAvg": FedAvg,
    "FedProx": lambda: FedProx(proximal_mu=0.1),
    "FedAvgM": lambda: FedAvgM(server_learning_rate=0.7, server_momentum=0.9),
    "FedAdam": FedAdam,
    "FedYogi": FedYogi,
    "FedAdagrad": FedAdagrad,
    "FedMedian": FedMedian,
    "FedTrimmedAvg": FedTrimmedAvg,
    "Krum": lambda: Krum(num_malicious_nodes=1),
    "MultiKrum": lambda: MultiKrum(num_malicious_nodes=1, num_nodes_to_select=3),
    "Bulyan": lambda: Bulyan(num_malicious_nodes=0),
    "QFedAvg": lambda: QFedAvg(client_learning_rate=0.1),
    "DPServerFixed": lambda: DifferentialPrivacyServerSideFixedClipping(FedAvg(), 0.1, 0.5, 5),
    "DPClientFixed": lambda: DifferentialPrivacyClientSideFixedClipping(FedAvg(), 0.1, 0.5, 5),
    "DPServerAdaptive": lambda: DifferentialPrivacyServerSideAdaptiveClipping(FedAvg(), 0.1, 5),
    "DPClientAdaptive": lambda: DifferentialPrivacyClientSideAdaptiveClipping(FedAvg(), 0.1, 5),
}


@pytest.fixture
def make_strategy():
    """From a name and arguments to a strategy; the default arguments fit five clients."""

    def make(name):
        return STRATEGIES[name]()

    return make


@pytest.fixture(params=sorted(STRATEGIES))
def strategy_name(request):
    return request.param


@pytest.fixture
def untouched_random_state():
    """Fails a test that leaves a global random state changed."""

    def snapshot():
        return random.getstate(), str(np.random.get_state()), torch.get_rng_state().tolist()  # noqa: NPY002

    before = snapshot()
    yield
    assert snapshot() == before
