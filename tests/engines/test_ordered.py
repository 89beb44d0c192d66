"""A grid whose nodes stand in one order."""

import time

import pytest
from flwr.clientapp import ClientApp

from lightning_fl_ext import LocalGrid
from lightning_fl_ext.engines import NotEnoughClientsError, OrderedGrid


def test_nodes_stand_in_the_order_given_and_everything_else_is_passed_on():
    grid = LocalGrid(ClientApp(), 3, node_ids=[30, 10, 20])
    ordered = OrderedGrid(grid, lambda nodes: sorted(nodes, reverse=True))
    assert list(ordered.get_node_ids()) == [30, 20, 10]
    assert ordered.run is grid.run
    assert ordered.in_process


def test_who_keeps_asking_after_the_deadline_is_stopped_with_the_number():
    ordered = OrderedGrid(LocalGrid(ClientApp(), 2), sorted)
    ordered.wait_at_most(0.0, "Nine are needed.")
    time.sleep(0.001)
    with pytest.raises(NotEnoughClientsError, match=r"2 client\(s\) are connected. Nine are needed."):
        _ask(ordered, 100)


def _ask(grid, times):
    return [list(grid.get_node_ids()) for _ in range(times)]


def test_who_asks_twice_as_every_strategy_does_is_not_stopped():
    ordered = OrderedGrid(LocalGrid(ClientApp(), 2), sorted)
    ordered.wait_at_most(0.0, "")
    time.sleep(0.001)
    assert len(_ask(ordered, 3)) == 3


def test_without_a_deadline_nobody_is_stopped():
    ordered = OrderedGrid(LocalGrid(ClientApp(), 2), sorted)
    ordered.wait_at_most(None, "")
    assert len(_ask(ordered, 50)) == 50
