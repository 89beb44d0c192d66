"""Who a client says it is."""

from __future__ import annotations

import re
from hashlib import sha256

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


def file_name(name: str) -> str:
    """Make a name safe for files, and still unique; one that is safe stays.

    Example:
        >>> file_name("site-a"), file_name("../site a")
        ('site-a', '___site_a-bcda218694e2')
    """
    readable = re.sub(r"[^A-Za-z0-9_-]", "_", name)[:40]
    return name if name and readable == name else f"{readable}-{sha256(name.encode()).hexdigest()[:12]}"
