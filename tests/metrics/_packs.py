"""From metrics to what clients send."""

from torch import nn

from lightning_fl_ext.metrics import MetricPack, pack_metrics


def packs_of(case, ids=True):
    """One pack of each client, through the flat form as over a wire."""
    packs = [
        pack_metrics(case.client(batches), client_id=client if ids else None, allow_example_states=("m",))
        for client, batches in case.data().items()
    ]
    return [MetricPack.from_arrays(*pack.to_arrays()) for pack in packs]


def pack_of(metric, client_id=None, **kwargs):
    return pack_metrics(nn.ModuleDict({"m": metric}), client_id=client_id, **kwargs)
