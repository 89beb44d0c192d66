"""Who a client says it is."""

from __future__ import annotations

from flwr.app import Context


def client_id(context: Context) -> str:
    """Give the client's declared name.

    Args:
        context: What Flower hands to a ``ClientApp``.

    Returns:
        ``node_config["client-id"]``, else ``node_config["partition-id"]`` in a form that sorts as the numbers
        do, else ``""``: the node declares no name, and the server knows it by its registered one, if any.

    Example:
        >>> from flwr.app import RecordDict
        >>> client_id(Context(1, 1, {"client-id": "site-a", "partition-id": 0}, RecordDict(), {}))
        'site-a'
        >>> client_id(Context(1, 1, {"partition-id": 7, "num-partitions": 100}, RecordDict(), {}))
        '07'
    """
    declared = context.node_config.get("client-id")
    if declared is not None:
        return str(declared)
    partition = context.node_config.get("partition-id")
    if partition is None:
        return ""
    width = len(str(int(context.node_config.get("num-partitions", 1)) - 1))
    return str(partition).zfill(width)
