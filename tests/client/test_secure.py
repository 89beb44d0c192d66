"""A client under secure aggregation with real fits: the same digest and metrics, and no plain update."""

import lightning.pytorch as L
import pytest
from flwr.app import ConfigRecord
from flwr.clientapp import ClientApp
from torchmetrics import MeanSquaredError, PearsonCorrCoef

from lightning_fl_ext import (
    ExactFedAvg,
    FederatedTrainer,
    FlowerBridge,
    LightningFLError,
    LocalGrid,
    RoundCheckpoint,
    RoundLedger,
    SecureAggregation,
    SecureFedAvg,
    client_app,
    run_local,
    server_app,
    write_site_keys,
)

DEVICE = {"accelerator": "cpu", "devices": 1}


@pytest.fixture
def lit(kit):
    class Lit(kit.Lit):
        def __init__(self):
            super().__init__()
            self.error = MeanSquaredError()
            self.correlation = PearsonCorrCoef()

        def training_step(self, batch, batch_idx):
            loss = super().training_step(batch, batch_idx)
            self.log("batches", 1.0, on_step=False, on_epoch=True, reduce_fx="sum", batch_size=1)
            return loss

        def validation_step(self, batch, batch_idx):
            x, y = batch
            self.error(self.layer(self.norm(x)), y)
            self.log("val_error", self.error)
            self.correlation(self.layer(self.norm(x)).flatten(), y.flatten().float())
            self.log("val_correlation", self.correlation)
            self.log("val_loss", self.loss(batch), batch_size=len(x))

    return Lit


@pytest.fixture
def federate(kit, lit):
    def run(strategy, faults=None, rounds=2, **options):
        class Data(L.LightningDataModule):
            def __init__(self, partition):
                super().__init__()
                self.partition = partition

            def train_dataloader(self):
                return kit.loader(n=8 + 4 * self.partition)

            def val_dataloader(self):
                return kit.loader(n=20 - 2 * self.partition)

        client = client_app(lit, lambda context: Data(context.node_config["partition-id"]), DEVICE, **options)
        trainer = FederatedTrainer(rounds, strategy, seed=3, enable_progress_bar=False)
        run_local(server_app(lit, trainer), client, 5, faults=faults)
        return trainer.result

    return run


def gone(client, step=None, phase="train"):
    """Client `client` vanishes while training or evaluating, or at a step of secure rounds."""

    def faults(instruction, reply):
        if not reply.has_content() or "client" not in reply.content:
            return reply
        told = instruction.content.get("secure", {}).get("step")
        kind = instruction.metadata.message_type.startswith(phase)
        is_it = reply.content["client"]["client-id"] == client
        return None if is_it and kind and told == step else reply

    return faults


def test_real_fits_give_the_digest_and_the_means_of_exact_fedavg(federate, caplog):
    secure = federate(SecureFedAvg(), secure="required")
    plain = federate(ExactFedAvg(fraction_evaluate=0.0))
    assert secure.digest == plain.digest
    for ours, theirs in zip(secure.rounds, plain.rounds, strict=True):
        for name in ("loss", "val_loss"):  # weighted by the examples of their own stage
            assert ours.metrics[name] == pytest.approx(theirs.metrics[name], rel=1e-6)
        assert ours.metrics["batches"] == theirs.metrics["batches"] > 0
        assert ours.metrics["val_error"] == pytest.approx(theirs.metrics["val_error"], rel=1e-6)
        assert "val_correlation" not in ours.metrics  # its states are merged, not summed
    said = [record.message for record in caplog.records if "do not leave this client" in record.message]
    assert [message.partition(": ")[2] for message in said] in ([], ["`val_correlation`"])


def test_one_that_drops_out_while_masking_leaves_the_digest_of_the_plain_run_of_the_others(federate):
    secure = federate(SecureFedAvg(), gone("2", "mask"))
    assert secure.digest == federate(ExactFedAvg(fraction_evaluate=0.0), gone("2")).digest
    assert secure.rounds[-1].accepted == ("0", "1", "3", "4")


def test_evaluations_are_summed_under_masks_as_well(federate):
    seen = []

    def faults(instruction, reply):
        if instruction.metadata.message_type != "query":
            seen.append(reply)
        return reply

    secure = federate(SecureFedAvg(fraction_evaluate=1.0), faults, secure="required")
    plain = federate(ExactFedAvg())
    assert secure.digest == plain.digest
    assert all(set(reply.content) <= {"secure", "client", "masked"} for reply in seen)
    for ours, theirs in zip(secure.rounds, plain.rounds, strict=True):
        names = ("val_loss", "val_error", "fit_val_loss", "fit_val_error")
        assert [ours.metrics[n] for n in names] == pytest.approx([theirs.metrics[n] for n in names], rel=1e-6)
        assert "val_correlation" not in ours.metrics


@pytest.mark.parametrize("step", ["announce", "mask"])
def test_one_that_drops_out_of_an_evaluation_leaves_the_means_of_the_others(federate, step):
    secure = federate(SecureFedAvg(fraction_evaluate=1.0), gone("2", step, "evaluate"), rounds=1)
    plain = federate(ExactFedAvg(), gone("2", phase="evaluate"), rounds=1)
    for name in ("val_loss", "val_error"):
        assert secure.rounds[0].metrics[name] == pytest.approx(plain.rounds[0].metrics[name], rel=1e-6)
    assert [r.client_id for r in secure.rejected] == [r.client_id for r in plain.rejected] == ["2"]


def test_an_evaluation_under_the_threshold_tells_nothing_and_the_model_stays(federate):
    def faults(instruction, reply):
        lost = [gone(client, "mask", "evaluate")(instruction, reply) for client in ("1", "2")]
        return None if None in lost else reply

    result = federate(SecureFedAvg(fraction_evaluate=1.0), faults, rounds=1)
    assert not {"val_loss", "val_error"} & set(result.rounds[0].metrics)
    assert result.digest == federate(SecureFedAvg(), rounds=1).digest


def test_a_client_that_insists_gives_no_plain_update(federate):
    with pytest.raises(LightningFLError, match="Use `SecureFedAvg` on the server"):
        federate(ExactFedAvg(), secure="required", rounds=1)


def test_a_client_that_insists_gives_no_plain_evaluation(federate):
    class Half(SecureFedAvg):
        def configure_evaluate(self, *args):
            return ExactFedAvg.configure_evaluate(self, *args)

        def aggregate_evaluate(self, *args):
            return ExactFedAvg.aggregate_evaluate(self, *args)

    result = federate(Half(fraction_evaluate=1.0), secure="required", rounds=1)
    assert len(result.rejected) == 5
    assert "hands in its evaluation only under secure aggregation" in str(result.rejected[0])


def test_a_site_without_a_signature_is_refused_by_those_that_trust_keys(federate, tmp_path):
    for i in range(5):
        write_site_keys(tmp_path, str(i))
    with pytest.raises(LightningFLError, match="are not signed by its trusted key"):
        federate(SecureFedAvg(), trusted_keys=tmp_path, rounds=1)


def test_arguments_are_checked(lit, tmp_path):
    with pytest.raises(ValueError, match="`secure`"):
        client_app(lit, lambda _: None, secure="always")
    with pytest.raises(LightningFLError, match="`trusted_keys`: expected a folder"):
        client_app(lit, lambda _: None, trusted_keys=tmp_path)
    (tmp_path / "a.pub").write_text("no key")
    with pytest.raises(LightningFLError, match=r"a\.pub` is no public Ed25519 key"):
        client_app(lit, lambda _: None, trusted_keys=tmp_path)
    with pytest.raises(LightningFLError, match="`signing_key`"):
        client_app(lit, lambda _: None, signing_key=tmp_path / "a.pub")
    private, public = write_site_keys(tmp_path, "b")
    assert private.stat().st_mode & 0o077 == 0
    with pytest.raises(LightningFLError, match="cannot be written"):
        write_site_keys(tmp_path, "b")
    with pytest.raises(LightningFLError, match="cannot be the name of a file"):
        write_site_keys(tmp_path, "../b")
    assert public.exists()


@pytest.mark.parametrize("kept", ["spool", "state"])
def test_nothing_secret_lies_in_a_folder_a_log_or_an_error(kit, tmp_path, caplog, kept):
    secrets, told = set(), [b""]

    class Grid(LocalGrid):
        def _execute(self, instruction):
            reply = super()._execute(instruction)
            kept = self._contexts[instruction.metadata.dst_node_id].state.get("secure-round", {})
            secrets.update(kept.get(name, b"") for name in ("mask-seed", "self-seed", "tag-secret"))
            told.extend(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
            told.append(repr(reply).encode())
            return reply

    def faults(instruction, reply):
        step = instruction.content.get("secure", {}).get("step")
        if step == "share" and reply.content["client"]["client-id"] == "1":  # refused by who opens its shares
            answer = reply.content["secure"]
            reply.content["secure"] = ConfigRecord({**answer, "sealed": bytes(len(answer["sealed"]))})
        return gone("2", "mask")(instruction, reply)

    spooling = ClientApp()

    @spooling.train("secure", mods=[SecureAggregation()])
    def train(message, context):
        bridge = FlowerBridge.from_message(message, context, spool_dir=tmp_path / "spool")
        kit.trainer(callbacks=[bridge], default_root_dir=tmp_path).fit(kit.Lit(), kit.loader())
        return bridge.reply()

    state = {"keep_optimizer": tmp_path / "state", "trainer": {"default_root_dir": tmp_path, **DEVICE}}
    keeping = client_app(kit.Lit, lambda _: kit.loader(), **state)
    caplog.set_level("DEBUG")
    callbacks = [RoundLedger(), RoundCheckpoint()]
    options = {"enable_progress_bar": False, "default_root_dir": tmp_path / "run"}
    trainer = FederatedTrainer(2, SecureFedAvg(), callbacks=callbacks, **options)
    trainer.fit(kit.Lit(), Grid(spooling if kept == "spool" else keeping, 7, faults=faults))
    assert (tmp_path / kept).is_dir()
    assert [record.void for record in trainer.rounds] == [False, False]
    secrets.discard(b"")
    assert len(secrets) == 2 * 7 * 3
    everything = b"|".join([*told, caplog.text.encode(), repr(trainer.rounds).encode()])
    for secret in secrets:
        assert secret not in everything
        assert secret.hex().encode() not in everything
        assert repr(secret)[2:-1].encode() not in everything
