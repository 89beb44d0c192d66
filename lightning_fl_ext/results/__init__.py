"""Updates, scores, order, digests: numpy only."""

from lightning_fl_ext.results.digest import digest
from lightning_fl_ext.results.order import decode_and_pseudo_sort_results, order_results
from lightning_fl_ext.results.score import pseudo_sort_scoring_function, select_zeroeth_element
from lightning_fl_ext.results.update import Arrays, ClientUpdate, EpochResult

__all__ = [
    "Arrays",
    "ClientUpdate",
    "EpochResult",
    "decode_and_pseudo_sort_results",
    "digest",
    "order_results",
    "pseudo_sort_scoring_function",
    "select_zeroeth_element",
]
