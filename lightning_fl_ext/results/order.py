"""One order for results, whatever order they arrive in."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, TypeVar

from numpy.typing import NDArray

from lightning_fl_ext.results.digest import digest
from lightning_fl_ext.results.score import pseudo_sort_scoring_function
from lightning_fl_ext.results.update import ClientUpdate, EpochResult

if TYPE_CHECKING:
    from flwr.common import FitRes
    from flwr.server.client_proxy import ClientProxy

ResultT = TypeVar("ResultT", ClientUpdate, EpochResult)


def order_results(results: Iterable[ResultT]) -> list[ResultT]:
    """Sort updates or epoch results into the one order that does not depend on how they arrived.

    Updates that all declare a client id are sorted by it. Otherwise results are sorted by score, NaN
    last, and equal scores by digest, count, client id and epoch. What still compares equal holds equal
    bytes, so its order cannot change a sum.

    Args:
        results: In any order.

    Returns:
        A new list.

    Example:
        >>> import numpy as np
        >>> w = {"w": np.array([0.5])}
        >>> updates = [ClientUpdate(w, 10, client_id="b"), ClientUpdate(w, 99, client_id="a")]
        >>> [u.client_id for u in order_results(updates)]
        ['a', 'b']
        >>> values = [0.5, np.nan, -0.5]
        >>> epochs = [EpochResult({"w": np.array([v])}, 10, epoch=e) for e, v in enumerate(values)]
        >>> [r.epoch for r in order_results(epochs)]
        [2, 0, 1]
    """
    ordered = list(results)
    named = all(_client_id(r) for r in ordered)
    ordered.sort(
        key=lambda r: (
            _client_id(r) if named else "",
            *_key(r.score, r.digest, r.num_examples),
            _client_id(r),
            r.epoch if isinstance(r, EpochResult) else 0,
        )
    )
    return ordered


def decode_and_pseudo_sort_results(
    results: list[tuple[ClientProxy, FitRes]],
) -> list[tuple[ClientProxy, list[NDArray[Any]], int]]:
    """Decode Flower's ``(ClientProxy, FitRes)`` results and sort them by score.

    The score is :func:`pseudo_sort_scoring_function`. Equal scores are ordered by the digest of the arrays,
    then by count and by the proxy's ``cid``, and NaN scores come last, so that every arrival order gives one
    answer.

    Args:
        results: What a legacy Flower strategy's ``aggregate_fit`` receives.

    Returns:
        ``(client, arrays, sample_count)`` in the deterministic order.

    Example:
        >>> import numpy as np
        >>> from flwr.common import Code, FitRes, Status, ndarrays_to_parameters
        >>> def fit_res(value, count):
        ...     return FitRes(Status(Code.OK, ""), ndarrays_to_parameters([np.array([value])]), count, {})
        >>> from types import SimpleNamespace
        >>> values = {"a": 0.3, "b": 0.1, "c": 0.2}
        >>> arrived = [(SimpleNamespace(cid=c), fit_res(v, 5)) for c, v in values.items()]
        >>> [client.cid for client, _, _ in decode_and_pseudo_sort_results(arrived)]
        ['b', 'c', 'a']
    """
    from flwr.common import parameters_to_ndarrays

    decoded = [(proxy, parameters_to_ndarrays(res.parameters), res.num_examples) for proxy, res in results]
    decoded.sort(
        key=lambda r: (*_key(float(pseudo_sort_scoring_function(r)), digest(r[1]), r[2]), str(r[0].cid))
    )
    return decoded


def _client_id(result: ClientUpdate | EpochResult) -> str:
    return result.client_id if isinstance(result, ClientUpdate) else ""


def _key(score: float, digest_: str, num_examples: int) -> tuple[bool, float, str, int]:
    nan = math.isnan(score)
    return nan, 0.0 if nan else score, digest_, num_examples
