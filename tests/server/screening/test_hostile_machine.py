"""A client that sends anything, round after round, against a twin run in which what is refused never came."""

import shutil
import tempfile
from pathlib import Path

import _toy as toy
from _altering import BAD
from _hostile import ENTRIES_BYTES, metrics, record, renamed, reports
from flwr.app import ConfigRecord, MetricRecord
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule, run_state_machine_as_test

from lightning_fl_ext import RoundCheckpoint, RoundLedger, verify_ledger

REFUSED = {
    "a huge number": metrics(train_loss=1e300),
    "no number": metrics(train_loss=float("nan")),
    "a long list": metrics(train_loss=[1.0] * 20_000),
    "a bad name": metrics(**{"\ud800": 1.0}),
    "many names": metrics(**{f"n{i}": 1.0 for i in range(1200)}),
    "another round": record("client", ConfigRecord({"client-id": BAD, "server-round": 77})),
    "another client": record("client", ConfigRecord({"client-id": "00"})),
    "a record named metrics": record("metrics", ConfigRecord({"a": 1})),
    "a record named arrays": record("arrays", ConfigRecord({"a": 1})),
    "a long text": record("more", ConfigRecord({"a": "x" * 5000})),
    "too many examples": metrics(**{"num-examples": 2**53}),
}
TAKEN = {
    "nothing odd": lambda _, reply: reply,
    "exchanged names": renamed(arrays="metrics", metrics="arrays"),
    "the server's names": reports(server_accuracy=1.0, clients_accepted=9.0),
    "names of one's own": reports(**{f"own{i}": 1.0 for i in range(500)}),
    "damaged states": record("metric-states", ConfigRecord({"train": b"x" * 99, "validate": "y"})),
    "states of another kind": record("metric-states", MetricRecord({"a": 1.0})),
}
SENT = REFUSED | TAKEN


class HostileClient(RuleBasedStateMachine):
    """Each step resumes both runs from their checkpoints for one round more."""

    def __init__(self):
        super().__init__()
        self.folder = Path(tempfile.mkdtemp())
        self.rounds = 0

    def teardown(self):
        shutil.rmtree(self.folder)

    @rule(train=st.sampled_from(sorted(SENT)), evaluation=st.sampled_from(sorted(SENT)))
    def a_round(self, train, evaluation):
        self.rounds += 1
        hostile = self.go_on("hostile", {"train": train, "evaluate": evaluation})
        twin = self.go_on("twin", {"train": train, "evaluate": evaluation}, lost=True)
        assert hostile.digest == twin.digest
        assert hostile.rounds[-1].accepted == twin.rounds[-1].accepted
        assert hostile.rounds[-1].metrics.keys() == twin.rounds[-1].metrics.keys()
        assert {r.client_id for r in hostile.rejected} <= {BAD}
        assert (train in REFUSED) == (BAD not in hostile.rounds[-1].accepted)
        assert verify_ledger(self.folder / "hostile").ok
        for file in ("ledger.jsonl", f"checkpoints/round-{self.rounds:05d}/state.json"):
            sizes = [(self.folder / run / file).stat().st_size for run in ("hostile", "twin")]
            assert sizes[0] < sizes[1] + self.rounds * ENTRIES_BYTES

    def go_on(self, run, sent, lost=False):
        def faults(instruction, reply):
            kind = sent.get(instruction.metadata.message_type)
            if kind is None or toy.client_of(reply) != BAD:
                return reply
            if lost:
                return None if kind in REFUSED else reply
            return SENT[kind](toy, reply)

        trainer = toy.make_trainer(
            max_rounds=self.rounds,
            callbacks=[RoundCheckpoint(), RoundLedger()],
            default_root_dir=self.folder / run,
        )
        return trainer.fit(toy.Net(), toy.make_grid(4, faults=faults), ckpt_path="last")


def test_whatever_one_client_sends_the_run_goes_on_as_if_the_refused_had_not_come():
    steps = settings(max_examples=4, stateful_step_count=5, derandomize=True, deadline=None)
    run_state_machine_as_test(HostileClient, settings=steps)
