"""What takes Flower a minute to notice, and what comes of it: ``make faults``."""

import pytest
from _faults import Federation

pytestmark = [pytest.mark.engines, pytest.mark.slow]


def clientapp_of(federation, name):
    """The process that a SuperNode has started for its current message."""
    (found,) = [p for p in federation.nodes[name].family() if "flwr-clientapp" in " ".join(p.cmdline())]
    return found


def test_what_happens_to_a_supernode_costs_the_round_its_reply_and_no_more(tmp_path):
    names = "cut-off", "killed", "out-of-memory", "sound", "stopped"
    with Federation(tmp_path / "f", *names, secure=True) as federation:
        troubled = [name for name in names if name != "sound"]
        for name in troubled:
            federation.order(name, 1, "wait")
        run = federation.run()
        for name in troubled:
            federation.wait_until_obeyed(name, 1)
        for process in federation.nodes["cut-off"].family():
            process.suspend()
        clientapp_of(federation, "out-of-memory").kill()
        federation.nodes["stopped"].stop()
        federation.nodes["killed"].kill()
        run.wait_for("round 1/2", timeout=180)
        for process in federation.nodes["cut-off"].family():
            process.resume()
        for name in troubled:
            federation.release(name, 1)
        for name in ("killed", "stopped"):
            federation.nodes[name].start()
        run.wait(timeout=180)
        first, second = federation.rounds()
        assert first.accepted == ("sound",)
        silence = "Error: Node Unavailable — The destination node failed to report a heartbeat"
        assert [(r.client_id, r.reason, r.got.startswith(silence)) for r in first.rejected] == [
            ("cut-off", "no-reply", True),
            ("killed", "no-reply", True),
            ("out-of-memory", "client-error", False),
            ("stopped", "no-reply", True),
        ]
        assert first.rejected[2].got == "ClientApp stopped responding."
        assert second.accepted == names


def test_a_supernode_without_a_key_that_is_killed_between_two_rounds_and_started_again_takes_part(tmp_path):
    """It is a new node, while the old one is listed until Flower has missed it."""
    with Federation(tmp_path / "f", "a", "b", "c") as federation:
        federation.order("a", 1, "wait")
        run = federation.run()
        federation.wait_until_obeyed("a", 1)
        for name in ("b", "c"):
            # Who it is, and its update.
            federation.nodes[name].wait_for("Sent successfully", timeout=120, times=2)
        federation.nodes["b"].kill()
        federation.nodes["b"].start()
        federation.release("a", 1)
        run.wait(timeout=180)
        assert [record.accepted for record in federation.rounds()] == [("0", "1", "2")] * 2


def test_a_client_that_lacks_a_package_is_left_out_and_a_run_whose_server_app_was_killed_goes_on(tmp_path):
    with Federation(tmp_path / "f", "a", "b", "c", secure=True) as federation:
        missing = federation.nodes["c"].folder / "a-package-is-missing"
        missing.touch()
        federation.order("b", 2, "wait")
        run = federation.run(ckpt_path="last")
        federation.wait_until_obeyed("b", 2)
        (server_app,) = [
            p for p in federation.superlink.family() if "flwr-serverapp" in " ".join(p.cmdline())
        ]
        server_app.kill()
        missing.unlink()
        federation.release("b", 2)
        run.wait(timeout=180)
        assert federation.status(run) == "finished:failed"
        resumed = federation.run(ckpt_path="last").wait(timeout=180)
        assert "going on after round 1" in resumed
        first, second = federation.rounds()
        assert [str(rejection) for rejection in first.rejected] == [
            "client `c`, round 1: client-error: ModuleNotFoundError: No module named 'no_such_package'"
        ]
        assert second.accepted == ("a", "b", "c")


def test_a_run_that_cannot_go_on_says_why(tmp_path):
    with Federation(tmp_path / "f", "a", "b") as federation:
        federation.add_nodes({"twin of b": {"partition-id": 1, "num-partitions": 2}})
        run = federation.run(max_rounds=1, min_accepted=2)
        why = {
            "[void, the model stays: 1 of 3 updates count, `min_accepted` is 2]",
            "client `1`, round 1: duplicate-client, `client-id`: expected one node of this name, got several",
            "none of the 1 round(s) counts, and the model is the one the run began with.",
        }
        said = run.wait(timeout=180)
        assert {line for line in why if line in said} == why
        complaints = {
            "raise": "all 3 clients asked failed, before any round has worked. One of them: client `0`, round"
            " 1: client-error: OSError: the disk is full",
            "wait": "none of the 3 clients asked in round 1 answered within 20 s. Look after the clients, or"
            " wait longer with `round_timeout`.",
        }
        for what, complaint in complaints.items():
            for name in ("a", "b"):
                federation.order(name, 1, what)
            run = federation.run(round_timeout=20.0, output_dir=tmp_path / what)
            assert complaint in run.wait(timeout=180)
            assert federation.status(run) == "finished:failed"
