"""SecureFedAvg: the same bits as ExactFedAvg over the survivors, and a server that sees none of them."""

import json

import _toy as toy
import pytest
import torch
from _secure import STEPS, Recording, lose, make_app, step_of
from _secure_fit import fit, why

from lightning_fl_ext import (
    ExactFedAvg,
    LocalGrid,
    RoundCheckpoint,
    RoundLedger,
    SecureFedAvg,
    verify_ledger,
)
from lightning_fl_ext.server import Reason
from lightning_fl_ext.wire import from_record, to_record

# The same bits


@pytest.mark.parametrize("number", [3, 5, 10])
def test_the_digest_is_that_of_exact_fedavg(plain, number):
    secure = fit(number=number)
    assert secure.digest == plain(number).digest
    assert [record.void for record in secure.rounds] == [False, False]


def test_forty_clients_and_a_neighbourhood_give_the_digest_of_exact_fedavg(plain):
    assert fit(number=40, max_rounds=1).digest == plain(40, max_rounds=1).digest


@pytest.mark.parametrize("step", STEPS)
def test_one_that_drops_out_leaves_the_digest_of_the_others(plain, step):
    secure = fit(faults=lose("02", step))
    assert secure.digest == plain(without=() if step == "unmask" else ["02"]).digest
    assert why(secure) == ([] if step == "unmask" else [("02", Reason.NO_REPLY)] * 2)
    inside = secure.rounds[-1].accepted
    assert inside == tuple(f"{i:02d}" for i in range(5) if step == "unmask" or i != 2)


def test_two_that_drop_out_at_different_steps_leave_the_digest_of_the_others(plain):
    def faults(instruction, reply):
        gone = {"01": "share", "06": "mask"}.get(toy.client_of(reply))
        return None if gone and gone == step_of(instruction) else reply

    secure = fit(number=10, faults=faults)
    assert secure.digest == plain(10, without=["01", "06"]).digest


def test_a_round_under_the_threshold_is_void_and_reveals_nothing():
    def faults(instruction, reply):
        gone = step_of(instruction) == "mask" and toy.client_of(reply) in ("00", "01")
        return None if gone and reply.content["client"]["server-round"] == 2 else reply

    recording = Recording(faults)
    result = fit(faults=recording, min_accepted=1, max_rounds=3)
    assert [record.void for record in result.rounds] == [False, True, False]
    assert result.rounds[1].digest == result.rounds[0].digest
    assert result.rounds[1].accepted == ()
    assert {r.client_id for r in result.rejected if r.server_round == 2} == {f"{i:02d}" for i in range(5)}
    assert "3 masked updates, and the threshold is 4 of 5" in str(result.rejected[-1])
    assert len(recording.of("unmask")) == 10  # of the first and the third round alone


def test_values_that_need_two_words_have_the_digest_of_exact_fedavg(plain):
    def large():
        model = toy.Net(buffers=True)
        with torch.no_grad():
            model.weight.mul_(1e6)
        return model

    secure = fit(model=large)
    assert secure.digest == plain(model=large).digest
    numbers = sum(v.numel() for v in large().state_dict().values())
    assert secure.rounds[0].metrics["bytes_up"] > 5 * 16 * numbers


def test_each_number_takes_eight_bytes_up():
    model = toy.Net(size=20_000)
    result = fit(model=model, max_rounds=1)
    per_client = result.rounds[0].metrics["bytes_up"] / 5
    assert 8 * 20_002 <= per_client < 8 * 20_002 + 100


def test_metrics_are_weighted_means_as_in_the_plain(plain):
    secure, exact = fit(max_rounds=1).rounds[0].metrics, plain(max_rounds=1).rounds[0].metrics
    assert secure["train_loss"] == pytest.approx(exact["train_loss"], rel=1e-12)


# What the server sees


def test_no_message_to_the_server_holds_an_update_or_anything_computed_from_one_alone():
    recording, updates = Recording(), []

    def remember(arrays, partition, server_round):
        updates.append(toy.local_fit(arrays, partition, server_round))
        return updates[-1]

    result = fit(app=make_app(fit=remember), faults=recording, max_rounds=1)
    assert len(updates) == 5
    seen = b"".join(_bytes_of(reply.content) for _, reply in recording.passed)
    for update in updates:
        assert not any(a.tobytes() in seen for a in update.values() if a.nbytes >= 8)
    for reply in recording.of("announce"):
        assert set(reply.content) == {"secure", "client"}
        assert set(reply.content["client"]) == {"client-id", "server-round"}
        told = set(reply.content["secure"])
        assert told == {"client-id", "mask-key", "share-key", "signature", "wide", "metrics"}
    for reply in recording.of("mask"):
        assert set(reply.content) == {"secure", "client", "masked"}
    for reply in recording.of("unmask"):
        told = reply.content["secure"]
        assert set(told) == {"survivors", "self-shares", "dropped", "key-shares", "tag"}
        assert not set(told["survivors"]) & set(told["dropped"])
    assert result.rounds[0].metrics["train_loss"] > 0


def test_masked_vectors_of_the_same_update_are_new_in_every_round():
    recording = Recording()
    fit(app=make_app(fit=lambda arrays, *_: dict(arrays)), faults=recording)
    first, second = recording.of("mask")[:5], recording.of("mask")[5:]
    for a, b in zip(first, second, strict=True):
        x, y = (from_record(reply.content["masked"])["masked"] for reply in (a, b))
        assert not (x == y).any()


def _bytes_of(content):
    parts = []
    for record in content.values():
        for value in record.values():
            for item in value if isinstance(value, list) else [value]:
                data = getattr(item, "data", item)
                parts.append(data if isinstance(data, bytes) else repr(data).encode())
    return b"|".join(parts)


def test_secrets_are_in_the_clients_context_between_messages_and_nowhere_after(tmp_path, caplog):
    secrets_seen = set()

    class Grid(LocalGrid):
        def _execute(self, instruction):
            reply = super()._execute(instruction)
            state = self._contexts[instruction.metadata.dst_node_id].state
            if "secure-round" in state:
                kept = state["secure-round"]
                secrets_seen.update(kept[name] for name in ("mask-seed", "self-seed", "tag-secret"))
            return reply

    caplog.set_level("DEBUG")
    grid = Grid(make_app(), 5, faults=lose("03", "mask"))
    callbacks = [RoundLedger(), RoundCheckpoint()]
    trainer = toy.make_trainer(SecureFedAvg(), callbacks=callbacks, default_root_dir=tmp_path)
    trainer.fit(toy.Net(), grid)
    left = {n: [k for k in c.state if k.startswith("secure")] for n, c in grid._contexts.items()}
    assert sum(bool(names) for names in left.values()) == 1  # of the one that dropped out, until it is asked
    secrets_seen.discard(b"")
    assert len(secrets_seen) == 2 * 5 * 3
    written = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    written += caplog.text.encode() + repr(trainer.rounds).encode() + repr(vars(trainer.strategy)).encode()
    for secret in secrets_seen:
        assert secret not in written
        assert secret.hex().encode() not in written
        assert repr(secret)[2:-1].encode() not in written


# Durability


def test_a_run_that_goes_on_after_a_stop_has_the_same_bytes(tmp_path):
    whole = fit(max_rounds=3)
    options = {"callbacks": [RoundLedger(), RoundCheckpoint()], "default_root_dir": tmp_path}
    fit(max_rounds=1, **options)
    again = {"callbacks": [RoundLedger(), RoundCheckpoint()], "default_root_dir": tmp_path}
    (tmp_path / "ledger.jsonl").write_bytes(
        b"".join((tmp_path / "ledger.jsonl").read_bytes().splitlines(keepends=True)[:2])
    )
    went_on = fit(max_rounds=3, ckpt_path="last", **again)
    assert went_on.digest == whole.digest
    assert [r.sum_digest for r in went_on.rounds] == [r.sum_digest for r in whole.rounds]


def test_the_ledger_tells_the_sums_digest_who_was_in_it_and_who_was_not(tmp_path):
    result = fit(
        faults=lose("02", "mask"), callbacks=[RoundLedger()], default_root_dir=tmp_path, max_rounds=1
    )
    line = json.loads((tmp_path / "ledger.jsonl").read_text().splitlines()[1])
    assert line["round"]["accepted"] == ["00", "01", "03", "04"]
    assert [r["client_id"] for r in line["round"]["rejected"]] == ["02"]
    assert line["round"]["sum_digest"] == result.rounds[0].sum_digest != ""
    assert line["accepted"] == []
    assert verify_ledger(tmp_path).ok


def test_it_works_under_flowers_own_loop():
    model = toy.Net()
    grid = LocalGrid(make_app(), 5)
    arrays = to_record({k: v.detach().numpy() for k, v in model.state_dict().items()})
    run = {}
    for strategy in (SecureFedAvg(), ExactFedAvg(fraction_evaluate=0.0)):
        result = strategy.start(grid, arrays, num_rounds=2)
        run[type(strategy)] = {k: v.tobytes() for k, v in from_record(result.arrays).items()}
    assert run[SecureFedAvg] == run[ExactFedAvg]
