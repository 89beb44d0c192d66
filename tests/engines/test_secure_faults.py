"""A real SuperNode that drops out of a secure round, at each of its steps: ``make faults``."""

import pytest
from _faults import Federation

pytestmark = [pytest.mark.engines, pytest.mark.slow]

STEPS = {1: "share", 2: "mask", 3: "unmask"}
"""The step at which one SuperNode is stopped, by round."""

WHILE = {1: "sharing keys", 2: "masking"}


def test_a_supernode_that_drops_out_of_a_secure_round_leaves_the_model_of_the_others(tmp_path):
    with Federation(tmp_path / "f", "lyon", "oslo", "porto", secure=True) as federation:
        for number, step in STEPS.items():
            federation.order("porto", f"{number}-{step}", "wait")
        federation.order("oslo", "4-mask", "wait")  # late
        run = federation.run(max_rounds=4, step_timeout=90.0, output_dir=tmp_path / "run")
        federation.run_dir = tmp_path / "run"
        for number, step in STEPS.items():
            federation.wait_until_obeyed("porto", f"{number}-{step}", timeout=300)
            federation.nodes["porto"].stop()
            federation.release("porto", f"{number}-{step}")
            run.wait_for(f"round {number}/4", timeout=300)
            federation.nodes["porto"].start()
        run.wait(timeout=600)
        federation.release("oslo", "4-mask")
        rounds = federation.rounds()
        assert [record.accepted for record in rounds] == [
            *[("lyon", "oslo")] * 2,
            ("lyon", "oslo", "porto"),
            ("lyon", "porto"),
        ]
        assert [str(rejection) for record in rounds for rejection in record.rejected] == [
            *(
                f"client `porto`, round {number}: no-reply: dropped out while {what}: Error: Node Unavailable"
                " — The destination node failed to report a heartbeat within 2 × its expected interval."
                for number, what in WHILE.items()
            ),
            "client `oslo`, round 4: no-reply: expected a reply while masking, got none",
        ]
        federation.run_locally(lost, max_rounds=4, step_timeout=90.0, output_dir=tmp_path / "local")
        federation.run_dir = tmp_path / "local"
        assert [record.digest for record in federation.rounds()] == [record.digest for record in rounds]


def lost(instruction, reply):
    """The same in this process: who stays in the sum is all that counts."""
    if "secure" not in instruction.content or not reply.has_content():
        return reply
    about, step = reply.content["client"], instruction.content["secure"]["step"]
    place, number = about["client-id"], about["server-round"]
    gone = (place == "2" and STEPS.get(number) == step) or (place, number, step) == ("1", 4, "mask")
    return None if gone else reply
