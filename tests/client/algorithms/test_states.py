"""What an algorithm keeps on either side: over kills, and rounds that do not count; and where it is kept."""

import numpy as np
import pytest
import torch
from _quadratic import (
    REFERENCES,
    SIZES,
    Quadratic,
    app,
    handwritten,
    local,
    mean,
    run,
    scaffold,
    steps,
    weights,
)

from lightning_fl_ext import FedDyn, LightningFLError, LocalGrid, RoundCallback, RoundCheckpoint, Scaffold
from lightning_fl_ext.files import read_folder, tensors_from_bytes, tensors_to_bytes, write_folder
from lightning_fl_ext.wire import from_record, to_record

STRATEGIES = {"scaffold": Scaffold, "feddyn": lambda **options: FedDyn(0.2, **options)}


@pytest.fixture(params=STRATEGIES)
def name(request):
    return request.param


def sampled(trainer):
    return [[int(client) for client in record.accepted] for record in trainer.rounds if not record.void]


class KillAt(RoundCallback):
    """Ends the fit in a round whose clients have all finished, before anything of it is written down."""

    def on_replies(self, trainer):
        if trainer.current_round == 2:
            raise KeyboardInterrupt


def test_a_killed_run_goes_on_to_the_same_bytes(name, tmp_path):
    def fit(folder, *callbacks, **options):
        options |= {"callbacks": [RoundCheckpoint(), *callbacks], "default_root_dir": tmp_path / folder}
        client = app(keep_local=tmp_path / folder / "clients")
        return run(STRATEGIES[name](fraction_train=0.75), client, **options)

    whole = fit("whole")
    with pytest.raises(KeyboardInterrupt):
        fit("killed", KillAt())
    resumed = fit("killed", fit={"ckpt_path": "last"})
    assert resumed.result.digest == whole.result.digest
    np.testing.assert_allclose(weights(resumed), REFERENCES[name](sampled(whole)), rtol=1e-9)


def test_a_client_written_by_hand_keeps_its_state_in_flower_s_context(name, kit, tmp_path):
    few = {"clients": 3}
    by_hand = run(STRATEGIES[name](), handwritten(kit), **few)
    assert by_hand.result.digest == run(STRATEGIES[name](), app(keep_local=tmp_path), **few).result.digest
    assert by_hand.result.digest == run(STRATEGIES[name](), app(keep_local=False), **few).result.digest
    assert [len(clients) for clients in sampled(by_hand)] == [3, 3, 3]


def broken_in(rounds, client):
    """Has the replies of a client in some rounds arrive with a weight that is not a number."""

    def faults(instruction, reply):
        if reply.has_error():  # the client by hand answers no query for its id
            return reply
        config, sent = instruction.content.get("config", {}), reply.content
        if config.get("server-round") in rounds and "arrays" in sent:
            if int(sent["client"]["client-id"]) != client:
                return reply
            arrays = {n: a.copy() for n, a in from_record(sent["arrays"]).items()}
            arrays["tail"][:] = np.nan
            reply.content["arrays"] = to_record(arrays)
        return reply

    return faults


@pytest.mark.parametrize("by_hand", [False, True])
def test_a_client_whose_updates_are_left_out_goes_on_from_the_last_that_counted(name, by_hand, kit, tmp_path):
    client = handwritten(kit) if by_hand else app(keep_local=tmp_path)
    trainer = run(STRATEGIES[name](), client, rounds=4, grid={"faults": broken_in((2, 3), client=1)})
    assert sampled(trainer) == [[0, 1, 2, 3], [0, 2, 3], [0, 2, 3], [0, 1, 2, 3]]
    np.testing.assert_allclose(weights(trainer), REFERENCES[name](sampled(trainer)), rtol=1e-9)


def test_a_void_round_leaves_no_trace_on_either_side(name, tmp_path):
    options = {"min_accepted": 4, "rounds": 4, "grid": {"faults": broken_in((2,), client=1)}}
    trainer = run(STRATEGIES[name](), app(keep_local=tmp_path), **options)
    assert [record.void for record in trainer.rounds] == [False, True, False, False]
    np.testing.assert_allclose(weights(trainer), REFERENCES[name]([range(4)] * 3), rtol=1e-9)


def test_a_lost_state_leaves_its_client_out_by_name(tmp_path):
    class Lose(RoundCallback):
        def on_round_end(self, trainer):
            if trainer.current_round == 1:
                for path in tmp_path.glob("2-*/*/round-00001"):
                    path.rename(path.with_name("lost"))

    trainer = run(Scaffold(), app(keep_local=tmp_path), rounds=2, callbacks=[Lose()])
    (left_out,) = trainer.rounds[1].rejected
    assert left_out.client_id == "2"
    assert "its state of `scaffold` after round 1, in which its update counted last, is gone" in left_out.got


def test_updates_that_no_client_of_the_algorithm_sends_are_left_out(tmp_path):
    def faults(instruction, reply):
        arrays = dict(from_record(reply.content["arrays"])) if "arrays" in reply.content else {}
        client = int(reply.content["client"]["client-id"])
        key = "algorithm/head"
        if key in arrays and client < 3:
            arrays[key] = [None, arrays[key] * np.inf, np.zeros(5)][client]
            reply.content["arrays"] = to_record({k: v for k, v in arrays.items() if v is not None})
        return reply

    trainer = run(Scaffold(), app(keep_local=tmp_path), rounds=1, grid={"faults": faults})
    told = [(r.client_id, str(r.reason), r.key) for r in trainer.rounds[0].rejected]
    key = "algorithm/head"
    assert told == [("0", "keys", key), ("1", "not-finite", key), ("2", "shape", key)]


def kept_controls(folder):
    from safetensors.torch import load_file

    return {
        int(path.parts[-4].split("-")[0]): load_file(path)
        for path in folder.glob("*/*/round-00001/tensors.safetensors")
    }


OPTIONS = {
    "accumulated": {"accumulate_grad_batches": 2},
    "clipped": {"gradient_clip_val": 0.1},
}


def test_the_control_variate_is_option_ii_s_after_a_round(tmp_path):
    trainer = run(Scaffold(), app(keep_local=tmp_path), rounds=1)
    for client, tensors in kept_controls(tmp_path).items():
        own = np.concatenate([tensors["state.head"], tensors["state.tail"]])
        np.testing.assert_allclose(own, -local(client, np.zeros(3)) / (steps(client) * 0.1), rtol=1e-9)
    controls = {
        i: np.concatenate([t["state.head"], t["state.tail"]]) for i, t in kept_controls(tmp_path).items()
    }
    assert len(controls) == len(SIZES)
    kept = trainer.strategy.kept
    np.testing.assert_allclose(np.concatenate([kept["head"], kept["tail"]]), mean(controls), rtol=1e-9)


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_the_control_variate_is_the_mean_of_what_optimizers_would_have_got(options, tmp_path):
    """Whatever accumulates before, and clips after."""
    seen = []

    class Telling(Quadratic):
        def on_before_optimizer_step(self, optimizer):  # after callbacks; in the first round nothing is added
            seen.append(torch.cat([p.grad for p in self.parameters()]).clone())

    run(Scaffold(), app(Telling, options, keep_local=tmp_path), rounds=1, clients=1)
    (tensors,) = kept_controls(tmp_path).values()
    own = torch.cat([tensors["state.head"], tensors["state.tail"]])
    torch.testing.assert_close(own, torch.stack(seen).mean(0))


def test_each_of_several_optimizers_counts_its_own_steps_under_manual_optimization(tmp_path):
    class Two(Quadratic):
        automatic_optimization = False

        def training_step(self, batch, index):
            for optimizer in self.optimizers()[: 1 + index % 2]:  # the second one every other time
                optimizer.zero_grad()
                self.manual_backward(self.loss(batch))
                optimizer.step()

        def configure_optimizers(self):
            return [torch.optim.SGD([p], 0.1) for p in (self.head, self.tail)]

    trainer = run(Scaffold(), app(Two, keep_local=tmp_path), rounds=1, clients=1)
    (tensors,) = kept_controls(tmp_path).values()
    for part, count in (("head", 4), ("tail", 2)):
        np.testing.assert_allclose(tensors[f"state.{part}"], -trainer.arrays[part] / (count * 0.1))


def test_flower_s_own_loop_drives_both_halves_too():
    """Without a trainer nobody tells buffers from parameters, or which round counted last."""
    grid = LocalGrid(app(keep_local=False), 3)
    start = {name: tensor.numpy() for name, tensor in Quadratic().state_dict().items()}
    strategy = Scaffold(fraction_evaluate=0.0)
    end = from_record(strategy.start(grid, to_record(start), num_rounds=2).arrays)
    w = np.concatenate([end["head"], end["tail"]])
    np.testing.assert_allclose(w, scaffold([range(3)] * 2, clients=3), rtol=1e-9)
    assert end["seen"] > 0


def test_a_state_of_another_model_is_refused(tmp_path):
    class Swap(RoundCallback):
        def on_round_end(self, trainer):
            for folder in tmp_path.glob("0-*/*/round-00001"):
                files = read_folder(folder)
                tensors = tensors_from_bytes(files["tensors.safetensors"])
                files["tensors.safetensors"] = tensors_to_bytes({n: t[:1] for n, t in tensors.items()})
                write_folder(folder, files)

    trainer = run(Scaffold(), app(keep_local=tmp_path), rounds=2, clients=3, callbacks=[Swap()])
    (left_out,) = trainer.rounds[1].rejected
    assert left_out.client_id == "0"
    told = "this client's control variates are for 2 parameters, and 2 travel here. They differ at ['head']"
    assert told in left_out.got


def test_weights_other_than_the_last_are_refused(tmp_path):
    with pytest.raises(LightningFLError, match=r"`scaffold` counts on the weights at.*`submit='mean'`"):
        run(Scaffold(), app(keep_local=tmp_path, submit="mean"), rounds=1)


def test_the_formula_s_reference_moves_with_absent_clients():
    assert np.abs(scaffold([range(4)] * 3) - scaffold([range(4), [0, 2, 3], range(4)])).max() > 1e-3
