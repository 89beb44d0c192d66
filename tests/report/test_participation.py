"""The grid says for each client and round what became of it."""

from lightning_fl_ext.report.history import left_out
from lightning_fl_ext.report.participation import MAX_CLIENTS, lay_out
from lightning_fl_ext.server.record import RoundRecord
from lightning_fl_ext.server.screening.rejection import Reason, Rejection


def test_every_cell_tells_what_became_of_a_client(records):
    grid = lay_out(records, ["a", "b", "c", "d", "e"])
    statuses = {row.client: [cell.status for cell in row.cells] for row in grid.rows}
    assert statuses["a"] == ["counted"] * 3 + ["left-out"] + ["counted"] * 2
    assert statuses["b"] == ["counted", "left-out", "counted", "left-out", "counted", "counted"]
    assert statuses["d"] == ["counted"] * 4 + ["partly", "counted"]
    assert statuses["e"] == ["not-asked"] * 6
    assert grid.void == {4}
    (b,) = [row for row in grid.rows if row.client == "b"]
    assert (b.counted, b.asked, b.left_out) == (4, 6, 2)
    assert b.cells[1].tooltip == "client b, round 2: left out: not-finite at net.0.weight"


def test_a_client_that_trained_but_failed_to_evaluate_counted_partly():
    failed = Rejection("a", 1, Reason.CLIENT_ERROR, got="ValueError", phase="evaluate")
    grid = lay_out([RoundRecord(1, ("a",), ("a",), (failed,))], ["a"])
    assert grid.rows[0].cells[0].status == "partly"
    assert "its evaluation was left out: client-error" in grid.rows[0].cells[0].tooltip


def test_a_client_without_examples_is_idle_and_not_left_out():
    idle = Rejection("a", 1, Reason.IDLE, got="no training examples")
    unmeasured = Rejection("b", 1, Reason.IDLE, got="no validation examples", phase="evaluate")
    record = RoundRecord(1, ("a", "b"), ("b",), (idle, unmeasured))
    grid = lay_out([record], ["a", "b"])
    assert [row.cells[0].status for row in grid.rows] == ["idle", "counted"]
    assert [row.asked for row in grid.rows] == [0, 1]
    assert left_out(record) == []


def test_a_client_nobody_asked_whose_reply_came_is_left_out():
    stray = Rejection("z", 1, Reason.NOT_SAMPLED)
    assert lay_out([RoundRecord(1, rejected=(stray,))], ["z"]).rows[0].cells[0].status == "left-out"


def test_of_many_clients_those_left_out_most_are_shown():
    clients = [f"{i:03d}" for i in range(200)]
    gone = tuple(Rejection(c, 1, Reason.NO_REPLY) for c in ("150", "199"))
    accepted = tuple(c for c in clients if c not in ("150", "199"))
    grid = lay_out([RoundRecord(1, tuple(clients), accepted, gone)], clients)
    shown = [row.client for row in grid.rows]
    assert len(shown) == MAX_CLIENTS
    assert {"150", "199"} <= set(shown)
    assert shown == sorted(shown)
    assert grid.hidden == 140
