"""`export`: a run's model, written for others."""

import logging
import sys

import pytest
import torch


@pytest.fixture
def ran(finished, project):
    return finished


def test_the_file_is_what_lightning_loads(ran, call, project):
    done = call("export", ran, "model.ckpt")
    assert (done.code, done.out) == (0, "wrote model.ckpt\n")
    lit = sys.modules["lit"]
    loaded = lit.Validated.load_from_checkpoint(project / "model.ckpt", weights_only=True)
    assert call("export", ran, "model.safetensors").code == 0
    from safetensors.torch import load_file

    weights = load_file(project / "model.safetensors")
    assert weights
    assert all(torch.equal(weights[name], value) for name, value in loaded.state_dict().items())


def test_an_earlier_round_that_is_kept_can_be_chosen(ran, call, project):
    assert call("export", ran, "a.safetensors", "--round", 2).code == 0
    assert call("export", ran, "b.safetensors").code == 0
    assert (project / "a.safetensors").read_bytes() != (project / "b.safetensors").read_bytes()


def test_closed_gates_are_cut_out_on_demand(call, federate, project):
    assert federate("gated", model="lit:Gated").code == 0
    assert call("export", "gated", "small.pt2", "--shrink").out == "wrote small.pt2\n"
    assert call("export", "gated", "whole.pt2").code == 0
    small, whole = (torch.export.load(f"{name}.pt2") for name in ("small", "whole"))
    rows = torch.randn(7, 4)
    assert torch.allclose(small.module()(rows), whole.module()(rows), atol=1e-6)
    assert small.state_dict["body.weight"].shape == (2, 4)
    refused = call("export", "gated", "small.ckpt", "--shrink")
    assert (refused.code, "does not take a smaller model" in refused.err) == (2, True)


def test_the_onnx_graph_without_closed_gates_gives_what_the_whole_model_gives(call, federate, project):
    pytest.importorskip("onnxscript", reason="needs the extra `onnx`")
    onnx = pytest.importorskip("onnx.reference", reason="needs the extra `onnx`")
    assert federate("gated", model="lit:Gated").code == 0
    assert call("export", "gated", "small.onnx", "--shrink").out == "wrote small.onnx\n"
    assert call("export", "gated", "whole.pt2").code == 0
    graph = onnx.ReferenceEvaluator("small.onnx")
    shapes = [tuple(weight.dims) for weight in graph.proto_.graph.initializer]
    assert {(2, 4), (2,)} <= {*shapes}
    rows = torch.randn(7, 4)
    expected = torch.export.load("whole.pt2").module()(rows)
    (given,) = graph.run(None, {graph.input_names[0]: rows.numpy()})
    assert torch.allclose(torch.from_numpy(given), expected, rtol=0, atol=1e-6 * expected.abs().max().item())


def test_flower_does_not_tell_of_the_settings_of_the_run_once_more(call, project, copied, caplog):
    settings = (copied / "run.toml").read_text()
    (copied / "run.toml").write_text(f"fraction-evaluate = 0.0\n{settings}")
    with caplog.at_level(logging.INFO, "flwr"):
        done = call("export", copied, "model.ckpt")
    assert (done.code, done.out) == (0, "wrote model.ckpt\n")
    assert not [record for record in caplog.records if record.name.startswith("flwr")]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("model.pth",), "expected a name that ends with .ckpt, .safetensors, .pt2, .onnx"),
        (("model.ckpt", "--round", 1), "round 1 is not kept; there are [2, 3]"),
        (("model.ckpt", "--model", "lit:Nope"), "module `lit` has no `Nope`"),
        (("model.pt2",), "needs an example of what `forward` takes"),
    ],
)
def test_what_cannot_be_written_is_refused_in_a_line(ran, call, project, arguments, message):
    done = call("export", ran, *arguments)
    assert done.code == 2
    assert message in done.err
    assert "Traceback" not in done.err
    assert not (project / arguments[0]).exists()


def test_a_run_of_python_needs_the_models_name(ran, call, project, copied):
    (copied / "run.toml").unlink()
    assert "give `--model MODULE:CLASS`" in call("export", copied, "model.ckpt").err
    assert call("export", copied, "model.ckpt", "--model", "lit:Validated").code == 0


def test_a_folder_without_a_checkpoint_is_no_run(call, project):
    done = call("export", project, "model.ckpt", "--model", "lit:Validated")
    assert done.code == 2
    assert "there is no checkpoint in" in done.err


@pytest.mark.parametrize("setting", ["model", "strategy"])
def test_no_function_is_called_because_a_folder_names_it(call, project, copied, setting):
    file = copied / "run.toml"
    lines = [line for line in file.read_text().splitlines() if not line.startswith(f"{setting} =")]
    spoilt = [f'{setting} = "os:mkdir"', f"{setting}-option = {{path = 'called'}}"]
    file.write_text("\n".join([*spoilt, *lines]))
    done = call("export", copied, "model.ckpt")
    assert (done.code, (project / "called").exists()) == (2, False)
    assert "got `os:mkdir`, which would be called" in done.err


def test_a_function_that_makes_the_model_is_given_by_hand(call, project, copied):
    (project / "made_by_hand.py").write_text("import lit\n\n\ndef make():\n    return lit.Validated()\n")
    file = copied / "run.toml"
    file.write_text(file.read_text().replace('"lit:Validated"', '"made_by_hand:make"'))
    assert "If you trust it: `--model made_by_hand:make`" in call("export", copied, "model.ckpt").err
    assert call("export", copied, "model.ckpt", "--model", "made_by_hand:make").code == 0
