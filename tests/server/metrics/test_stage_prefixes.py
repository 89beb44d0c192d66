"""What a fit's own validation says of a client's model is never told as the global model's."""

import pytest
import torch.nn.functional as F
from _pooling import DEVICE, WARNINGS, Data, LogsObjects, app_of_apps, expected, pooled_predictions, run

from lightning_fl_ext import client_app

pytestmark = WARNINGS

OPTIONS = {
    "all alike": [{}] * 4,
    "one metric excluded": [{"exclude_metrics": ("acc",)}] * 4,
    "all metrics excluded": [{"exclude_metrics": ("acc", "val")}] * 4,
    "one client excludes": [{}, {"exclude_metrics": ("acc",)}, {}, {}],
    "most clients exclude": [{"exclude_metrics": ("acc",)}] * 3 + [{}],
    "small clients keep back": [{"min_examples": 10}] * 4,
}


class LogsLossAlone(LogsObjects):
    def measure(self, logits, y):
        self.log("val_loss", F.cross_entropy(logits, y))


def no_evaluation(_, reply):
    return None if "evaluate" in reply.metadata.message_type else reply


@pytest.mark.parametrize("module", [LogsObjects, LogsLossAlone])
@pytest.mark.parametrize("answered", [True, False], ids=["evaluations come", "no evaluation comes"])
@pytest.mark.parametrize("kind", OPTIONS)
def test_the_prefix_follows_the_stage_whatever_clients_leave_out(tmp_path, kind, answered, module):
    options = OPTIONS[kind] if module is LogsObjects else [{}] * 4
    client = app_of_apps([client_app(module, Data, DEVICE, **own) for own in options])
    faults = None if answered else no_evaluation
    trainer = run(tmp_path, module, client=client, faults=faults)
    metrics = trainer.callback_metrics
    validated = {name for name in metrics if name.startswith("val")}
    assert "fit_val_loss" in metrics
    if not answered:
        assert validated == set()
        return
    assert validated == {n.removeprefix("fit_") for n in metrics if n.startswith("fit_val")}
    members = [0, 3] if any("min_examples" in own for own in options) else range(4)
    want = expected(*pooled_predictions(trainer.result.model, members))
    assert metrics["val_loss"] == pytest.approx(float(want["val_loss"]), abs=1e-5)
    assert metrics["val_loss"] != pytest.approx(metrics["fit_val_loss"], abs=1e-3)
