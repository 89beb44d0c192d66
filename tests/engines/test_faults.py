"""What fails on real processes costs a round its reply, and nothing else."""

import pytest
from _faults import Federation


@pytest.mark.slow
@pytest.mark.engines
def test_clients_that_raise_hang_or_are_killed_are_left_out_by_name_and_take_part_again(tmp_path):
    with Federation(tmp_path / "f", "lyon", "oslo", "porto", secure=True) as federation:
        federation.order("oslo", 1, "wait")
        federation.order("porto", 1, "wait")
        federation.order("lyon", 2, "raise")
        run = federation.run(round_timeout=30.0)
        federation.wait_until_obeyed("oslo", 1)
        federation.wait_until_obeyed("porto", 1)
        federation.nodes["oslo"].kill()
        federation.unregister("oslo")
        federation.register("oslo")  # another machine takes its place
        federation.nodes["oslo"].start()
        too_few = federation.run(min_clients=9, round_timeout=1.0, output_dir=tmp_path / "too-few")
        run.wait_for("round 1/2", timeout=120)
        federation.release("porto", 1)
        run.wait(timeout=120)
        first, second = federation.rounds()
        assert (first.accepted, second.accepted) == (("lyon",), ("oslo", "porto"))
        oslo, porto = map(str, first.rejected)
        (lyon,) = map(str, second.rejected)
        assert oslo.startswith("client `oslo`, round 1: no-reply: Error: Node Unavailable")
        assert porto == "client `porto`, round 1: no-reply: expected a reply within 30 s, got none"
        assert lyon == "client `lyon`, round 2: client-error: OSError: the disk is full"
        assert all(f"left out {rejection}" in run.log for rejection in (oslo, porto, lyon))
        assert (
            "3 client(s) are connected after 1 s. At least 9 are needed: ExactFedAvg(min_available_nodes=9)."
            in too_few.wait(timeout=60)
        )


@pytest.mark.engines
@pytest.mark.slow
def test_a_run_whose_superlink_was_killed_goes_on_to_the_digest_and_ledger_of_one_that_was_not(tmp_path):
    with Federation(tmp_path / "f", "a", "b", "c") as federation:
        federation.order("b", 2, "wait")
        killed = federation.run(ckpt_path="last")
        federation.wait_until_obeyed("b", 2)
        federation.superlink.kill()
        assert "Connection to the SuperLink is unavailable" in killed.wait(timeout=60)
        federation.superlink.start()
        federation.release("b", 2)
        resumed = federation.run(ckpt_path="last").wait(timeout=120)
        assert "going on after round 1\nround 2/2  clients 3/3" in resumed
        federation.run_locally(output_dir=tmp_path / "undisturbed")
        ledgers = [
            (folder / "ledger.jsonl").read_bytes()
            for folder in (federation.run_dir, tmp_path / "undisturbed")
        ]
        assert ledgers[0] == ledgers[1]
