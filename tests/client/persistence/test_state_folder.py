"""What a client keeps from round to round: of which round it is, whose it is, and where it lies."""

import json
import re
import shutil
import stat
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.strategies import FSDPStrategy, ModelParallelStrategy
from torch import optim

from lightning_fl_ext import LightningFLError, client_app, digest
from lightning_fl_ext.client.bridge.refusals import refuse_to_keep_shards
from lightning_fl_ext.client.persistence.state_folder import StateFolder, default_root

DEVICE = {"accelerator": "cpu", "devices": 1}


def adam(module):
    return optim.Adam(module.parameters(), 0.05)


# Which round a state is of


def test_a_round_that_is_asked_for_again_gives_the_same_bits(kit, ask, globals_):
    make = kit.AdamLit
    once = [digest(kit.weights(ask(make, arrays, n))) for n, arrays in enumerate(globals_, 1)]
    for server_round in (4, 4):
        assert (
            digest(kit.weights(ask(make, globals_[server_round - 1], server_round))) == once[server_round - 1]
        )


def test_a_first_round_that_is_asked_for_again_is_no_loss(kit, ask, globals_, caplog):
    make = kit.AdamLit
    once, again = (digest(kit.weights(ask(make, globals_[0], 3))) for _ in range(2))
    assert once == again
    assert "is gone" not in caplog.text


def test_an_evaluation_keeps_nothing_and_says_nothing(kit, ask, globals_, tmp_path, caplog):
    make = type("Lit", (kit.Validated,), {"configure_optimizers": adam})
    context = kit.context()
    ask(make, globals_[0], 1, to=context)
    before = files_under(tmp_path)
    for server_round in (1, 2, 0):
        reply = ask(make, globals_[0], server_round, kind="evaluate", to=context)
        assert reply.has_content()
    assert files_under(tmp_path) == before
    assert context.state["kept-state"]["round"] == 1
    assert not [r for r in caplog.records if r.name.startswith("lightning_fl_ext.client.persistence")]


def files_under(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# Lost, damaged, and of something else


def kept_folders(tmp_path):
    return sorted((tmp_path / "kept").glob("*/*/round-*"))


def test_files_are_private_and_hold_no_pickle(kit, ask, globals_, tmp_path):
    make = kit.AdamLit
    for server_round in (1, 2, 3):
        ask(make, globals_[0], server_round)
    folders = kept_folders(tmp_path)
    assert [folder.name for folder in folders] == ["round-00002", "round-00003"]
    client = folders[0].parents[1]
    assert [stat.S_IMODE(f.stat().st_mode) for f in (client.parent, client, folders[0].parent)] == [0o700] * 3
    for folder in folders:
        names = sorted(path.name for path in folder.iterdir())
        assert names == ["manifest.json", "state.json", "tensors.safetensors"]
        assert json.loads((folder / "state.json").read_text())["round"] == int(folder.name[-5:])
        assert not any(b"\x80\x04" in (folder / name).read_bytes()[:2] for name in names)


@pytest.mark.parametrize("context_is_kept", [True, False], ids=["same_context", "new_context"])
def test_a_state_that_is_gone_is_a_warning_and_a_fresh_optimizer(
    kit, ask, globals_, tmp_path, caplog, context_is_kept
):
    make = kit.AdamLit
    context = kit.context()
    ask(make, globals_[0], 1, to=context)
    shutil.rmtree(tmp_path / "kept")
    reply = ask(make, globals_[1], 2, to=context if context_is_kept else kit.context())
    fresh = ask(make, globals_[1], 2, keep_optimizer=False)
    assert digest(kit.weights(reply)) == digest(kit.weights(fresh))
    warning = (
        f"client `0`, round 2, state in `{kept_folders(tmp_path)[0].parent}`: its last state before this"
        " round is gone. It goes on afresh."
    )
    # Where Flower's context is gone as well, a client cannot tell that it has taken part before.
    assert (warning in caplog.text) == context_is_kept


def test_the_state_before_is_used_where_the_last_one_is_damaged(kit, ask, globals_, tmp_path, caplog):
    make = kit.AdamLit
    ask(make, globals_[0], 1)
    expected = digest(kit.weights(ask(make, globals_[1], 3)))
    ask(make, globals_[1], 2)
    damaged = kept_folders(tmp_path)[-1] / "tensors.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"?")
    assert digest(kit.weights(ask(make, globals_[1], 3))) == expected
    assert "client `0`, round 3" in caplog.text
    assert f"`{damaged}` is not what was written" in caplog.text
    assert "It goes on from its state after round 1." in caplog.text


def test_a_first_state_that_is_damaged_is_a_warning_and_a_fresh_optimizer(
    kit, ask, globals_, tmp_path, caplog
):
    make = kit.AdamLit
    ask(make, globals_[0], 1)
    (kept_folders(tmp_path)[0] / "manifest.json").unlink()
    reply = ask(make, globals_[1], 2)
    kit.assert_same(kit.weights(reply), kit.weights(ask(make, globals_[1], 2, keep_optimizer=False)))
    assert "It goes on afresh." in caplog.text


def test_a_server_that_went_back_further_than_states_reach_is_told_of(kit, ask, globals_, tmp_path, caplog):
    make = kit.AdamLit
    for server_round in (1, 2, 3, 4):
        ask(make, globals_[0], server_round)
    ask(make, globals_[0], 2)
    assert "client `0`, round 2" in caplog.text
    assert "its last state before this round is gone. It goes on afresh." in caplog.text
    assert [folder.name for folder in kept_folders(tmp_path)] == ["round-00002"], "later rounds are undone"


def sgd(module):
    return optim.SGD(module.parameters(), 0.1)


def groups(module):
    return optim.Adam([{"params": module.norm.parameters()}, {"params": module.layer.parameters()}], 0.05)


def narrower(module):
    return optim.Adam(module.layer.parameters(), 0.05)


def other_order(module):
    return optim.Adam(reversed(list(module.parameters())), 0.05)


def with_schedule(module):
    optimizer = optim.Adam(module.parameters(), 0.05)
    return [optimizer], [optim.lr_scheduler.StepLR(optimizer, 1)]


OTHERS = {
    "class": (sgd, {}, "optimizer 0: the state has Adam, this fit SGD"),
    "parameters": (narrower, {}, "parameter 0: the state has norm.weight: float32[3], this fit layer.weight"),
    "order": (other_order, {}, "parameter 3: the state has layer.bias: float32[1], this fit norm.weight"),
    "groups": (groups, {}, "optimizer 0, group 1, parameter 0: the state has nothing, this fit layer.weight"),
    "scheduler": (with_schedule, {}, "scheduler 0: the state has nothing, this fit StepLR"),
    "precision": (adam, {"precision": "bf16-mixed"}, "precision: the state has 32-true, this fit bf16-mixed"),
}


@pytest.mark.parametrize(("configure", "trainer", "says"), OTHERS.values(), ids=OTHERS)
def test_a_state_of_another_model_is_refused_and_says_what_differs(
    kit, ask, globals_, tmp_path, configure, trainer, says
):
    ask(kit.AdamLit, globals_[0], 1)
    before = files_under(tmp_path)
    other = type("Lit", (kit.Lit,), {"configure_optimizers": configure})
    with pytest.raises(LightningFLError) as refused:
        ask(other, globals_[1], 2, trainer=trainer)
    message = str(refused.value)
    assert message.startswith("client `0`: its state after round 1 is of another model or optimizer.")
    assert says in message
    assert f"remove `{kept_folders(tmp_path)[0].parent}`" in message
    assert files_under(tmp_path) == before


def test_a_wider_layer_is_another_model(kit, ask, globals_):
    class Wide(kit.Lit):
        configure_optimizers = adam

        def __init__(self):
            super().__init__()
            self.layer = torch.nn.Linear(3, 2)

        def loss(self, batch):
            return super().loss((batch[0], batch[1].expand(-1, 2)))

    ask(kit.AdamLit, globals_[0], 1)
    with pytest.raises(
        LightningFLError, match=r"layer.weight: float32\[1, 3\], this fit layer.weight: float32\[2, 3\]"
    ):
        ask(Wide, kit.arrays_of(Wide()), 2)


@pytest.mark.parametrize("run", ["r", "other"])
@pytest.mark.parametrize("partition", [0, 1])
def test_a_state_of_another_run_or_client_is_refused(kit, ask, globals_, tmp_path, run, partition):
    """Each has a folder of its own; this one was moved there by hand."""
    if (run, partition) == ("r", 0):
        return
    make = kit.AdamLit
    ask(make, globals_[0], 1)
    target = StateFolder(tmp_path / "kept", str(partition), run).path
    shutil.copytree(kept_folders(tmp_path)[0].parent, target)
    says = (
        rf"expected format 1, client '{partition}', run '{run}', round 1\n  got format 1, client '0', run 'r'"
    )
    with pytest.raises(LightningFLError, match=says):
        ask(make, globals_[1], 2, run=run, to=kit.context(partition, of=2))


def test_what_cannot_be_kept_is_refused_before_the_fit(kit, ask, globals_, tmp_path):
    trained = []

    class Odd(kit.Lit):
        def configure_optimizers(self):
            return optim.SGD([{"params": self.parameters(), "hook": print}], 0.1)

        def on_train_start(self):
            trained.append(self)

    message = (
        r"`state\.optimizers\.0\.param_groups\.0\.hook` of type .* cannot be kept.*without `keep_optimizer`"
    )
    with pytest.raises(LightningFLError, match=message):
        ask(Odd, globals_[0], 1)
    assert (trained, kept_folders(tmp_path)) == ([], [])


def test_what_a_kill_left_half_written_is_no_state_and_goes_with_the_next(kit, ask, globals_, tmp_path):
    ask(kit.AdamLit, globals_[0], 1)
    half = kept_folders(tmp_path)[0].with_name(".round-00002.part")
    half.mkdir()
    (half / "state.json").write_text("{")
    (half.parent / "notes.txt").write_text("mine")
    ask(kit.AdamLit, globals_[1], 3)
    assert sorted(p.name for p in half.parent.iterdir()) == ["notes.txt", "round-00001", "round-00003"]


def test_parameters_that_were_added_in_a_fit_are_a_difference(kit, ask, globals_):
    class Unfreezes(kit.Lit):
        def configure_optimizers(self):
            return sgd(self.layer)

        def on_train_start(self):
            self.optimizers().optimizer.add_param_group({"params": self.norm.parameters()})

    ask(Unfreezes, globals_[0], 1)
    with pytest.raises(
        LightningFLError, match=r"group 1, parameter 0: the state has norm\.weight.* this fit noth"
    ):
        ask(Unfreezes, globals_[0], 2)


class Breaks(Callback):
    def __init__(self, hook):
        setattr(self, hook, self.fail)

    def fail(self, *_, **__):
        raise OSError("disk")


@pytest.mark.parametrize("hook", ["on_train_batch_end", "on_train_end", "on_fit_end", "teardown"])
def test_a_fit_that_raises_leaves_the_state_as_it_was(kit, ask, globals_, tmp_path, hook):
    make, context = kit.AdamLit, kit.context()
    ask(make, globals_[0], 1, to=context)
    before = files_under(tmp_path)
    with pytest.raises(OSError, match="disk"):
        ask(make, globals_[1], 2, trainer={"callbacks": [Breaks(hook)]}, to=context)
    assert files_under(tmp_path) == before
    assert context.state["kept-state"]["round"] == 1


def test_a_folder_that_cannot_be_written_is_refused_before_the_fit(kit, ask, globals_, tmp_path):
    (tmp_path / "kept").write_text("a file")
    with pytest.raises(
        LightningFLError, match=r"client `0`: its state cannot be written to .* give `keep_optimizer`"
    ):
        ask(kit.Lit, globals_[0], 1)


def test_a_server_that_tells_no_round_is_refused(kit, ask, globals_):
    with pytest.raises(LightningFLError, match="`keep_optimizer` needs to know the round"):
        ask(kit.Lit, globals_[0], 0)


class DeepSpeedStrategy:
    """Known by its name: Lightning's cannot be made without DeepSpeed."""


@pytest.mark.parametrize(
    ("strategy", "nodes"),
    [(DeepSpeedStrategy(), 1), (FSDPStrategy(), 2), (ModelParallelStrategy(), 2), ("auto", 2)],
)
def test_optimizers_of_deepspeed_or_on_several_machines_are_refused(strategy, nodes):
    trainer = SimpleNamespace(strategy=strategy, num_nodes=nodes)
    with pytest.raises(ValueError, match="keeps the optimizer of one machine"):
        refuse_to_keep_shards(trainer)
    refuse_to_keep_shards(SimpleNamespace(strategy="auto", num_nodes=1))
    for sharding in (FSDPStrategy(), ModelParallelStrategy()):
        refuse_to_keep_shards(SimpleNamespace(strategy=sharding, num_nodes=1))


# Where it lies


@given(st.text(), st.text())
def test_no_id_leads_out_of_the_folder_and_no_two_share_one(one, other):
    root = Path("root")
    paths = [StateFolder(root, client, run).path for client, run in ((one, other), (other, one))]
    for path in paths:
        assert path.parent.parent == root
        assert re.fullmatch(r"root/[\w-]{13,53}/[\w-]{13,53}", path.as_posix(), re.ASCII)
    assert (paths[0] == paths[1]) == (one == other)
    assert StateFolder(root, one, "").path != StateFolder(root, one.swapcase() + "-", "").path


@pytest.mark.parametrize("client", ["../../away", "/etc/passwd", "..", "a/b\\c\0", "x" * 500, "ö ä"])
def test_a_client_of_any_name_keeps_its_state(kit, ask, globals_, tmp_path, client):
    context = kit.context(**{"client-id": client})
    for server_round in (1, 2):
        ask(kit.AdamLit, globals_[0], server_round, to=context)
    assert len(kept_folders(tmp_path)) == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["kept"]


def test_clients_without_an_id_are_told_apart_by_their_nodes(kit, ask, globals_, tmp_path):
    for node_id in (3, 4):
        context = kit.context()
        context.node_config.clear()
        context.node_id = node_id
        ask(kit.AdamLit, globals_[0], 1, to=context)
    assert sorted(path.name[:7] for path in (tmp_path / "kept").iterdir()) == ["node_3-", "node_4-"]


def test_true_keeps_states_in_the_users_own_folder(kit, globals_, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "xdg"))
    client_app(kit.Lit, lambda _: kit.loader(), DEVICE, keep_optimizer=True)(
        kit.message(globals_[0]), kit.context()
    )
    assert len(list((tmp_path / "xdg" / "lightning_fl_ext").glob("0-*/1-*/round-00001"))) == 1


def test_without_a_home_for_states_it_is_below_the_home_folder(monkeypatch, tmp_path):
    monkeypatch.delenv("XDG_STATE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert default_root() == tmp_path / ".local" / "state" / "lightning_fl_ext"


def test_nothing_is_kept_unless_asked_for(kit, globals_, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    context = kit.context()
    client_app(kit.Lit, lambda _: kit.loader(), DEVICE)(kit.message(globals_[0]), context)
    assert (list(tmp_path.iterdir()), dict(context.state)) == ([], {})


def test_a_relative_folder_stays_where_it_was_meant(kit, globals_, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    app = client_app(kit.Lit, lambda _: kit.loader(), DEVICE, keep_optimizer="states")
    monkeypatch.chdir("/")
    app(kit.message(globals_[0]), kit.context())
    assert list(tmp_path.glob("states/0-*"))


@pytest.mark.parametrize("value", [1, None, ["states"]], ids=repr)
def test_another_kind_of_folder_is_refused_at_once(kit, value):
    with pytest.raises(TypeError, match=r"`keep_optimizer` must be True, False or a folder\. Got an inst"):
        client_app(kit.Lit, lambda _: kit.loader(), keep_optimizer=value)
