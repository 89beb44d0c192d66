"""`run` federates a user's LightningModule for real."""

import json
import sys
import tomllib
from pathlib import Path

import pytest

from lightning_fl_ext import (
    ExactFedAvg,
    FederatedTrainer,
    Limits,
    client_app,
    run_local,
    server_app,
    verify_ledger,
)
from lightning_fl_ext.report import read_history


def files_in(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_a_run_gives_the_digest_of_the_same_run_in_python(project, federate):
    done = federate("run", "--seed", 7, "--fraction", 0.7, "--max-epochs", 2)
    assert (done.code, done.err) == (0, "")
    import lit

    trainer = FederatedTrainer(
        max_rounds=2,
        strategy=ExactFedAvg(fraction_train=0.7, fraction_evaluate=0.0),
        seed=7,
        enable_progress_bar=False,
    )
    client = client_app(lit.Lit, lit.data, trainer={"max_epochs": 2, "accelerator": "cpu"})
    run_local(server_app(lit.Lit, trainer), client, num_clients=3)
    assert f"digest of the final model: {trainer.result.digest}" in done.out
    assert "round 2/2  clients 2/2  train_loss" in done.out
    assert "left out" not in done.out  # no client is asked to evaluate a model that cannot be
    assert "to look at it: lightning-fl-ext show run" in done.out


def test_a_secure_run_gives_the_digest_of_the_plain_one_and_a_ledger_without_updates(project, federate):
    plain, secure = federate("plain"), federate("secure", "--secure")
    assert (secure.code, secure.err) == (0, "")
    digests = [done.out.partition("digest of the final model: ")[2][:64] for done in (plain, secure)]
    assert digests[0] == digests[1]
    history = read_history(project / "secure")
    assert history.fingerprint["strategy"] == "SecureFedAvg"
    assert all(record.sum_digest for record in history.rounds if record.server_round)
    assert verify_ledger(project / "secure").ok


def test_limits_are_those_of_python_by_name(project, federate, call):
    done = federate("run", "--limit", "metrics=0", "--limit", "name=300", rounds=1)
    assert "expected at most 0 metrics (`Limits.metrics`)" in done.out + done.err
    kept = tomllib.loads((project / "run" / "run.toml").read_text())
    assert Limits(**kept["limit"]) == Limits(metrics=0, name=300)
    assert federate("more", "--limit", "metrics=5", rounds=1).code == 0


def test_the_folder_gets_a_ledger_checkpoints_and_the_settings(project, federate):
    federate("run", "--keep-updates", "--keep-checkpoints", 1)
    assert verify_ledger(project / "run").ok
    files = files_in(project / "run")
    assert {"ledger.jsonl", "run.toml", "checkpoints/round-00002/model.safetensors"} <= set(files)
    assert not [name for name in files if "checkpoints/round-00001" in name]
    assert sum(name.endswith(".safetensors") and name.startswith("updates") for name in files) == 6


def test_a_run_is_repeated_by_the_settings_in_its_folder(project, federate, call):
    federate(
        "first", "--seed", 3, "--model-option", "width=5", "--strategy", "FedAdam", "--exclude", "head.*"
    )
    again = call("run", "--config", "first/run.toml", "--dir", "second", "--quiet")
    assert (again.code, again.out, again.err) == (0, "", "")
    assert (project / "first" / "ledger.jsonl").read_bytes() == (
        project / "second" / "ledger.jsonl"
    ).read_bytes()
    settings = read_history(project / "second").fingerprint
    assert settings["strategy"] == "FedAdam"
    assert settings["model.body.weight"] == "float32[5, 4]"
    assert "model.head.weight" not in settings


def test_going_on_gives_the_digest_of_the_undisturbed_run(project, federate):
    federate("whole", "--strategy", "FedAdam", rounds=4)
    federate("parts", "--strategy", "FedAdam", rounds=2)
    refused = federate("parts", "--strategy", "FedAdam", rounds=4)
    assert refused.code == 2
    assert "`parts` holds a run already: go on with it by `--resume`" in refused.err
    resumed = federate("parts", "--strategy", "FedAdam", "--resume", rounds=4)
    assert "going on after round 2" in resumed.out
    ledgers = [(project / name / "ledger.jsonl").read_bytes() for name in ("whole", "parts")]
    assert ledgers[0] == ledgers[1]


def test_an_interrupted_run_says_how_to_go_on_and_does(project, federate):
    federate("whole", rounds=3)
    stopped = federate("parts", model="lit:Stopping", rounds=3)
    assert stopped.code == 130
    assert "stopped; to go on: the same command with `--dir parts --resume`" in stopped.err
    assert "Traceback" not in stopped.err
    assert federate("parts", "--resume", rounds=3).code == 0
    digests = [read_history(project / name).digest for name in ("whole", "parts")]
    assert digests[0] == digests[1]


def test_going_on_with_another_seed_is_refused_and_names_it(project, federate):
    federate("run", "--seed", 1)
    refused = federate("run", "--seed", 2, "--resume", rounds=3)
    assert refused.code == 2
    assert "seed: the checkpoint has 1, this run 2" in refused.err
    assert "Traceback" not in refused.err
    told = tomllib.loads((project / "run" / "run.toml").read_text())
    assert (told["seed"], told["rounds"]) == (1, 2)  # those of the run that is there


def test_an_algorithm_of_one_s_own_is_named_by_both_its_halves(project, federate):
    halves = "--strategy", "lit:SignedAvg", "--client-option", "algorithms=lit:Signs"
    assert federate("own", *halves).code == 0
    assert federate("plain").code == 0
    assert read_history(project / "own").digest != read_history(project / "plain").digest


def test_runs_without_a_folder_are_numbered(project, call):
    for number in (1, 2):
        done = call("run", "lit:Lit", "--data", "lit:data", "--clients", 3, "--rounds", 1)
        assert done.code == 0
        assert verify_ledger(project / "runs" / f"run-{number}").ok


def test_json_is_all_that_a_script_gets(project, federate):
    done = federate("run", "--json", "--evaluate", "lit:measure")
    outcome = json.loads(done.out)
    assert outcome["digest"] == read_history(project / "run").digest
    assert (outcome["dir"], outcome["rounds"], outcome["void"], outcome["rejected"]) == ("run", 2, 0, [])
    assert outcome["weights"] == "run/checkpoints/round-00002/model.safetensors"
    assert outcome["metrics"]["server_mse"] > 0
    assert "the user's own code prints" in done.err
    assert "round 1/2" in done.err


def test_clients_evaluate_if_the_module_can(project, federate):
    # Metrics of the fit are called fit_… only where the evaluation has one of the same name.
    federate("with", model="lit:Validated", data="lit:Data")
    federate("without", model="lit:Lit", data="lit:data")
    federate("not asked", "--fraction-evaluate", 0, model="lit:Validated", data="lit:Data")
    measured = {
        name: "fit_val_mae" in read_history(project / name).rounds[-1].metrics
        for name in ("with", "without", "not asked")
    }
    assert measured == {"with": True, "without": False, "not asked": False}


def test_a_function_named_on_the_command_line_counts_the_examples(project, federate):
    done = federate("run", "--batch-size", "lit:twice", rounds=1)
    assert (done.code, done.err) == (0, "")
    rounds = [json.loads(line) for line in (project / "run" / "ledger.jsonl").read_text().splitlines()]
    counts = [client["num_examples"] for line in rounds for client in line.get("accepted", ())]
    assert counts == [32, 40, 48]
    assert (
        "`--batch-size`: `lit:F.__name__` must be a function"
        in federate("other", "--batch-size", "lit:F.__name__").err
    )


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_module_of_pytorch_lightning(project, call):
    flags = ("--clients", 2, "--rounds", 1, "--trainer-option", "accelerator=cpu", "--data", "lit:data")
    done = call("run", "lit:other_name", *flags, "--dir", "other")
    assert (done.code, done.err) == (0, "")
    assert "round 1/1  clients 2/2" in done.out


@pytest.mark.parametrize("data", ["of_both", "of_the_round"])
def test_data_may_ask_for_the_round(project, federate, data):
    federate("run", data=f"lit:{data}")
    federate("plain")
    digests = [read_history(project / name).rounds[-1].digest for name in ("run", "plain")]
    assert digests[0] == digests[1]


def test_the_server_evaluates_on_a_data_module(project, federate):
    federate("run", "--evaluate", "lit:Central", model="lit:Validated", data="lit:Data")
    assert "server_val_mae" in read_history(project / "run").rounds[-1].metrics


def test_a_name_to_average_that_is_no_metric_is_one_line(project, federate):
    done = federate("run", "--average-metrics", "elbo", "--quiet")
    assert (done.code, done.err.count("\n")) == (2, 1)
    assert "`average_metrics` names `elbo`, which is no metric of the module" in done.err


def test_a_client_that_fails_is_named_with_its_error_and_the_run_goes_on(project, federate):
    done = federate("run", data="lit:fails_for_client_1")
    assert done.code == 0
    assert "left out client `1`, round 1: client-error: OSError: no such table: patients (lit.py:" in done.out


def test_if_all_clients_fail_the_error_is_one_line_and_names_the_place(project, federate):
    done = federate("run", data="lit:failing")
    assert done.code == 2
    assert done.err.splitlines()[-1].startswith("error: all 3 clients asked failed")
    assert "OSError: no such table: patients (lit.py:" in done.err
    assert "Traceback" not in done.err


def test_a_run_of_which_no_round_counts_is_an_error_that_names_the_client(project, federate):
    done = federate("run", "--min-accepted", 3, data="lit:fails_for_client_1")
    assert done.code == 2
    assert "none of the 2 round(s) counts" in done.err
    assert "client `1`, round 2: client-error" in done.err


def test_a_bad_update_stops_the_run_if_asked_to(project, federate):
    done = federate("run", "--on-bad-update", "raise", "--max-update-norm", 1e-6)
    assert done.code == 2
    assert "norm" in done.err


def test_the_best_round_is_kept_and_a_run_without_progress_stops(project, federate):
    options = ("--monitor", "train_loss", "--patience", 1, "--mode", "max", "--keep-checkpoints", 1)
    federate("run", *options, rounds=9)
    history = read_history(project / "run")
    assert len(history.rounds) < 9
    assert history.finished
    losses = [record.metrics["train_loss"] for record in history.rounds]
    best = f"round-{losses.index(max(losses)) + 1:05d}"
    assert (project / "run" / "checkpoints" / best).is_dir()


def test_masks_travel_with_fedpm(project, federate, call):
    (project / "masked.py").write_text(
        "import torch, lit\n"
        "from lightning_fl_ext import MaskedModule\n"
        "class Masked(lit.Lit):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.body = MaskedModule(torch.nn.Linear(4, 4), seed=1)\n"
    )
    options = ("--strategy", "FedPM", "--exchange-option", "code=packed")
    done = federate("run", *options, model="masked:Masked")
    assert (done.code, done.err) == (0, "")
    assert "code='packed'" in read_history(project / "run").fingerprint["exchange"]
    assert call("export", "run", "masked.ckpt").err == "", "what the frozen weights are is known"


def test_flags_go_before_the_config_file_and_tables_are_merged(project, call):
    Path("fed.toml").write_text(
        'model = "lit:Lit"\ndata = "lit:data"\nclients = 3\nrounds = 1\nseed = 5\ndir = "from-file"\n'
        '[trainer-option]\naccelerator = "cpu"\n[model-option]\nwidth = 3\nlr = 0.5\n'
    )
    assert call("run", "--config", "fed.toml", "--seed", 6, "--model-option", "width=7").code == 0
    settings = read_history(project / "from-file").fingerprint
    assert (settings["seed"], settings["model.body.weight"]) == (6, "float32[7, 4]")
    assert "lr = 0.5" in (project / "from-file" / "run.toml").read_text()


def test_a_folder_whose_run_has_come_to_no_round_can_be_used_again(project, federate):
    failed = federate("run", data="lit:failing")
    assert (failed.code, "no such table: patients" in failed.err) == (2, True)
    assert len((project / "run" / "ledger.jsonl").read_bytes().splitlines()) == 1
    assert federate("run", "--seed", 5).code == 0
    assert read_history(project / "run").fingerprint["seed"] == 5
    assert "holds a run already" in federate("run").err


def test_the_sites_values_and_the_test_are_in_the_run(project, federate):
    (project / "judged.py").write_text(
        "from lit import *\n"
        "class Judged(Validated):\n"
        "    def test_step(self, batch, batch_idx):\n"
        "        self.log('test_mse', F.mse_loss(self(batch[0]), batch[1]))\n"
        "class Halves(Data):\n"
        "    test_dataloader = Data.val_dataloader\n"
    )
    options = ("--test", "--site-metric", "val_mae=min")
    done = federate("run", *options, model="judged:Judged", data="judged:Halves")
    sys.modules.pop("judged")
    assert done.code == 0, done.err
    history = read_history(project / "run")
    assert "test_mse" in history.test.metrics
    values = [site.metrics["val_mae"] for site in history.rounds[-1].sites.values()]
    assert history.rounds[-1].metrics["val_mae/worst"] == max(values)


def test_the_report_is_written_while_the_run_goes_on(project, federate, monkeypatch):
    from lightning_fl_ext.cli import callbacks

    pages = []
    write = callbacks.LiveReport._write

    def watch(folder, refresh):
        write(folder, refresh)
        pages.append((folder / "report.html").read_text())

    monkeypatch.setattr(callbacks.LiveReport, "_write", staticmethod(watch))
    done = federate("run", "--live")
    assert done.code == 0
    assert done.out.startswith("report, anew after each round: run/report.html\n")
    assert ["1 round " in page for page in pages] == [True, False, False]
    assert ['http-equiv="refresh"' in page for page in pages] == [True, True, False]
    assert "all rounds are done" in pages[-1]


def test_the_page_of_a_run_that_was_stopped_no_longer_looks_again(project, federate):
    assert federate("run", "--live", model="lit:Stopping", rounds=3).code == 130
    page = (project / "run" / "report.html").read_text()
    assert "not finished" in page
    assert 'http-equiv="refresh"' not in page


@pytest.mark.parametrize("strategy", ["ExactFedAvg", "FedAdam"])
def test_one_client_is_enough_to_try_a_module(project, federate, strategy):
    done = federate("run", "--strategy", strategy, clients=1)
    assert (done.code, "clients 1/1" in done.out) == (0, True), done.err
