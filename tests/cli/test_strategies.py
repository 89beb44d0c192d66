"""Strategies by name on the command line: the digests that they give in Python, and what does not fit."""

import tomllib

import pytest

from lightning_fl_ext import (
    Ditto,
    ExactFedAdam,
    FedDyn,
    FederatedTrainer,
    FedNova,
    FedProx,
    FedRep,
    KrumSelection,
    LocalGrid,
    RobustFedAvg,
    Scaffold,
    TrimmedMean,
    WeightExchange,
    client_app,
)
from lightning_fl_ext.report import read_history

HEAD = ("--exclude", "head.*", "--max-epochs", 2)
NAMED = {
    "FedProx": (["mu=0.5"], (), lambda **options: FedProx(0.5, **options)),
    "Scaffold": ([], (), Scaffold),
    "FedNova": ([], (), FedNova),
    "FedDyn": (["alpha=0.1"], (), lambda **options: FedDyn(0.1, **options)),
    "Ditto": (["strength=0.1"], (), lambda **options: Ditto(0.1, **options)),
    "FedRep": ([], HEAD, FedRep),
    "ExactFedAdam": (["eta=0.02"], (), lambda **options: ExactFedAdam(0.02, **options)),
    "TrimmedMean": (["fraction=0.2"], (), lambda **options: RobustFedAvg(TrimmedMean(0.2), **options)),
    "KrumSelection": (
        ["malicious=1", "select=2"],
        (),
        lambda **options: RobustFedAvg(KrumSelection(1, 2), **options),
    ),
}


def options_of(pairs):
    return [part for pair in pairs for part in ("--strategy-option", pair)]


@pytest.mark.parametrize("name", NAMED)
def test_a_named_strategy_gives_the_digest_of_the_same_run_in_python(project, federate, name):
    pairs, more, make = NAMED[name]
    done = federate("run", "--strategy", name, *options_of(pairs), *more, clients=5)
    assert (done.code, done.err) == (0, "")
    import lit

    exchange = WeightExchange(exclude="head.*") if more else WeightExchange()
    strategy, quiet = make(fraction_evaluate=0.0), {"enable_progress_bar": False, "exchange": exchange}
    fits = {"accelerator": "cpu", "max_epochs": 2 if more else 1}
    client = client_app(lit.Lit, lit.data, fits, exchange=exchange, keep_local=project / "states")
    result = FederatedTrainer(2, strategy, **quiet).fit(lit.Lit, LocalGrid(client, 5))
    assert read_history(project / "run").digest == result.digest


@pytest.mark.parametrize("strategy", ["ExactFedAvg", "ExactFedAdam", "CoordinateMedian"])
def test_settings_of_a_fit_go_with_any_strategy_and_into_the_run_s_file(project, federate, strategy):
    pulled = federate("pulled", "--strategy", strategy, "--train-config", "proximal-mu=0.5", rounds=1)
    assert (pulled.code, pulled.err) == (0, "")
    assert tomllib.loads((project / "pulled" / "run.toml").read_text())["train-config"] == {
        "proximal-mu": 0.5
    }
    federate("plain", "--strategy", strategy, rounds=1)
    assert read_history(project / "pulled").digest != read_history(project / "plain").digest


def test_a_pull_by_setting_is_that_of_the_strategy(project, federate):
    federate("named", "--strategy", "FedProx", "--strategy-option", "mu=0.5", rounds=1)
    federate("set", "--train-config", "proximal-mu=0.5", rounds=1)
    digests = {read_history(project / folder).digest for folder in ("named", "set")}
    assert len(digests) == 1


def test_an_algorithm_goes_on_with_what_its_clients_keep(project, federate):
    options = "--strategy", "FedDyn", "--strategy-option", "alpha=0.1"
    federate("whole", *options, rounds=3)
    federate("parts", *options, rounds=2)
    assert federate("parts", *options, "--resume", rounds=3).code == 0
    ledgers = [(project / name / "ledger.jsonl").read_bytes() for name in ("whole", "parts")]
    assert ledgers[0] == ledgers[1]


WRONG = {
    "a name in other letters": (("--strategy", "scaffold"), "no `scaffold`. Did you mean `Scaffold`?"),
    "the rule's strategy": (
        ("--strategy", "RobustFedAvg"),
        "name its rule instead, such as `--strategy",
    ),
    "no strength": (("--strategy", "FedProx"), "`--strategy FedProx` needs `--strategy-option mu=...`."),
    "no number of bad ones": (("--strategy", "KrumSelection"), "needs `--strategy-option malicious=...`."),
    "a strength below 0": (
        ("--strategy", "FedProx", "--strategy-option", "mu=-1"),
        "`--strategy-option mu` must be a finite number of at least 0. Got -1.",
    ),
    "a strength in words": (
        ("--strategy", "FedDyn", "--strategy-option", "alpha=much"),
        "`--strategy-option alpha` must be a finite number above 0. Got 'much'.",
    ),
    "a fraction of more than half": (
        ("--strategy", "TrimmedMean", "--strategy-option", "fraction=0.5"),
        "`--strategy-option fraction` must be",
    ),
    "too few clients for the rule": (
        ("--strategy", "KrumSelection", "--strategy-option", "malicious=1"),
        "KrumSelection(malicious=1, select=1) needs at least 5 clients",
    ),
    "no head": (("--strategy", "FedRep"), "Name the head on both sides"),
    "an option of no rule": (
        ("--strategy", "CoordinateMedian", "--strategy-option", "fraction=0.2"),
        "`--strategy-option fraction` is not taken",
    ),
    "a setting without =": (("--train-config", "proximal-mu"), "expected KEY=VALUE. Got `proximal-mu`."),
    "the trainer's own": (("--train-config", "run-seed=1"), "`--train-config`: `run-seed` is the trainer's"),
    "nothing": (("--train-config", "rate=none"), "`--train-config`: 'rate' is None; expected"),
    "a pull backwards": (("--train-config", "proximal-mu=-1"), "expected a finite number of at least 0"),
    "two at once": (
        ("--strategy", "Scaffold", "--train-config", "proximal-mu=0.1"),
        "One half is at work at a time",
    ),
    "masked and robust": (("--secure", "--strategy", "TrimmedMean"), "`--strategy TrimmedMean` sees each"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_does_not_fit_is_said_in_one_line_in_the_command_line_s_words(project, federate, case):
    arguments, says = WRONG[case]
    done = federate("run", *arguments)
    assert done.code == 2
    assert done.err.startswith("error: ")
    assert says in done.err
    assert len(done.err.splitlines()) == 1
