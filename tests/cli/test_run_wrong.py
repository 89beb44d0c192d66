"""What `run` was told wrong, it says in one line; an error of the user's own code keeps its traceback."""

import pytest

WRONG = {
    "no model": ((), {"model": "--quiet"}, "MODULE:CLASS, the model, is missing"),
    "no module": ((), {"model": "nowhere:Lit"}, "the model: there is no module `nowhere`"),
    "no name": ((), {"model": "lit:Litt"}, "module `lit` has no `Litt`. Did you mean `Lit`?"),
    "no colon": ((), {"model": "lit"}, "expected MODULE:NAME, such as `lit:LitDigits`. Got `lit`."),
    "a file": ((), {"model": "lit.py:Lit"}, "not a file's. Got `lit.py:Lit`. Write `lit:Lit`"),
    "an instance": ((), {"model": "lit:instance"}, "must be a class, or a function that makes"),
    "a number": ((), {"model": "lit:number"}, "must be a class, or a function"),
    "a plain module": ((), {"model": "lit:plain"}, "makes a torch.nn.modules.linear.Linear; expected"),
    "model options are missing": ((), {"model": "lit:needs"}, "missing a required argument: 'width'"),
    "one model option too many": (("--model-option", "depth=3"), {}, "unexpected keyword argument 'depth'"),
    "data of two arguments": ((), {"data": "lit:index_and_number"}, "with one named `round` (a"),
    "data of other arguments": ((), {"data": "lit:index_and_number"}, "return index_and_number(...)`"),
    "data that is none": ((), {"data": "lit:number"}, "must be a function of the client's Context. Got int."),
    "no clients": ((), {"clients": 0}, "`--clients` must be at least 1. Got 0."),
    "too few clients": (
        ("--strategy-option", "min_available_nodes=4"),
        {},
        "At least 4 are needed: ExactFedAvg(min_available_nodes=4)",
    ),
    "rounds in words": ((), {"rounds": "three"}, "'three' is not a valid integer"),
    "a negative seed": (("--seed", -1), {}, "`--seed` must be at least 0. Got -1."),
    "no strategy": (("--strategy", "FedSomething"), {}, "there is no `FedSomething`. There are Exact"),
    "strategy options": (("--strategy-option", "etta=1"), {}, "`--strategy-option etta` is not taken"),
    "a client option that is a flag": (("--client-option", "exchange=3"), {}, "it has a flag of its own"),
    "masks' options as the strategy's": (
        ("--strategy", "FedPM", "--strategy-option", "down=relay"),
        {},
        "`--strategy-option down` is for the masks: `--exchange-option down=...`",
    ),
    "callbacks in words": (("--trainer-option", "callbacks=Timer"), {}, "`configure_callbacks` give them"),
    "a strategy that is none": (("--strategy", "lit:make"), {}, "`lit:make` made a Lit, not a"),
    "secure with another strategy": (("--secure", "--strategy", "FedAdam"), {}, "`--secure` is for ExactFed"),
    "a fraction in words": (("--fraction", "half"), {}, "'half' is not a valid float"),
    "a pair without =": (("--trainer-option", "devices"), {}, "expected KEY=VALUE. Got `devices`."),
    "no such trainer option": (("--trainer-option", "epochs=3"), {}, "`--trainer-option` holds ['epochs']"),
    "client options": (("--client-option", "submit=first"), {}, "`--client-option submit` must be "),
    "no such algorithm": (("--client-option", "algorithms=lit:Sings"), {}, "Did you mean `Signs`?"),
    "an algorithm that is none": (("--client-option", "algorithms=lit:Lit"), {}, "must be classes derived"),
    "a setting in another spelling": (
        ("--train-config", "learning_rate=0.1"),
        {},
        "`--train-config`: clients heed `learning-rate`",
    ),
    "a setting": (("--max-update-norm", -1), {}, "`--max-update-norm` must be > 0"),
    "rounds": ((), {"rounds": -1}, "`--rounds` must"),
    "a site metric without a mode": (("--site-metric", "val_mae"), {}, "expected NAME=MODE, such as"),
    "a site metric of another mode": (("--site-metric", "val_mae=up"), {}, "must be 'min' or 'max'"),
    "what to do with a bad update": (("--on-bad-update", "ignore"), {}, "must be 'exclude' or 'raise'"),
    "no such limit": (("--limit", "metric=5"), {}, "`--limit`: there is no `metric`. There are records"),
    "a limit in words": (("--limit", "metrics=many"), {}, "`limits.metrics` must be"),
    "min accepted": (("--min-accepted", 0), {}, "`--min-accepted` must be at least 1. Got 0."),
    "a pattern that excludes nothing": (("--exclude", "tail.*"), {}, "the pattern `tail.*` excludes nothing"),
    "a pattern that includes nothing": (("--include", "tail.*"), {}, "selects none of the model's 4 entries"),
    "exchange options without masks": (("--exchange-option", "code=packed"), {}, "is for the masks of FedPM"),
    "masks without a module": (("--strategy", "FedPM"), {}, "needs a model that holds a `MaskedModule`"),
    "patience without a metric": (("--patience", 2), {}, "needs a metric to watch: give `--monitor`."),
    "mode": (("--monitor", "train_loss", "--mode", "best"), {}, "`--mode` must be 'min' or 'max'"),
    "no metric": (("--monitor", "val_lozz"), {}, "there is no metric `val_lozz` to monitor"),
    "evaluation": (("--evaluate", "lit:number"), {}, "`lit:number` must be a function of the model"),
    "no config": (("--config", "none.toml"), {}, "`--config`: cannot read `none.toml`"),
    "no such flag": (("--epochs", 2), {}, "No such option"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_wrong_input_is_one_line_and_code_2(project, federate, case):
    arguments, options, says = WRONG[case]
    done = federate("run", *arguments, **options)
    assert done.code == 2
    assert done.err.startswith("error: ")
    assert says in done.err
    assert "Traceback" not in done.err
    assert len(done.err.splitlines()) == 1


@pytest.mark.parametrize("case", ["no module", "data of two arguments", "no strategy", "client options"])
def test_wrong_input_leaves_nothing_behind(project, federate, case):
    arguments, options, _ = WRONG[case]
    federate("run", *arguments, **options)
    assert not (project / "run").exists()


def test_an_error_in_the_user_s_own_code_keeps_its_traceback(project, federate):
    with pytest.raises(ZeroDivisionError, match="in the user's own constructor"):
        federate("run", model="lit:broken")
    assert not (project / "run").exists()


def test_a_module_that_a_user_s_module_lacks_is_not_taken_for_a_wrong_name(project, federate):
    (project / "halfway.py").write_text("import not_installed_anywhere\n")
    with pytest.raises(ModuleNotFoundError, match="not_installed_anywhere"):
        federate("run", model="halfway:Lit")


def test_a_folder_that_is_a_file_is_refused(project, federate):
    (project / "taken").write_text("")
    done = federate("taken")
    assert (done.code, done.err) == (2, "error: `--dir`: `taken` is not a folder.\n")


def test_going_on_needs_a_folder(project, call):
    done = call("run", "lit:Lit", "--data", "lit:data", "--clients", 3, "--resume")
    assert (done.code, "`--resume` needs the folder of the run" in done.err) == (2, True)
