"""`compare` names the first round, client and tensor in which two runs differ."""

import json

from lightning_fl_ext.files import arrays_from_bytes, arrays_to_bytes, read_folder, write_folder
from lightning_fl_ext.results import digest


def test_a_run_equals_its_copy(finished, copied, call):
    done = call("compare", finished, copied)
    assert (done.code, done.out.splitlines()[-1]) == (0, "the runs are equal")
    assert json.loads(call("compare", finished, copied, "--json").out)["equal"]


def test_a_planted_difference_is_told_to_the_tensor(finished, copied, call, rewrite):
    folder = copied / "updates" / "round-00002"
    files = read_folder(folder)
    arrays = arrays_from_bytes(files["update-00002.safetensors"])
    arrays["body.weight"] = arrays["body.weight"].copy()
    arrays["body.weight"][1, 3] += 0.5
    write_folder(folder, {**files, "update-00002.safetensors": arrays_to_bytes(arrays)})

    def claim(lines):
        line = json.loads(lines[2])
        line["accepted"][2]["digest"] = digest(arrays)
        return [
            *lines[:2],
            json.dumps(line, sort_keys=True, separators=(",", ":")).encode() + b"\n",
            *lines[3:],
        ]

    rewrite(copied, claim)
    done = call("compare", finished, copied)
    assert done.code == 1
    assert "is not sound: line 3 (entry 2) was altered" in done.err
    for text in (
        "the first round that differs: 2",
        "client 2: update",
        "the first tensor that differs in the update of client 2: body.weight",
        "1 of 16 elements, by at most 0.5",
        "the first at [1, 3]: ",
    ):
        assert text in done.out
    found = json.loads(call("compare", finished, copied, "--json").out)
    assert (found["server_round"], found["tensor_of"]) == (2, "2")
    assert (found["tensor"]["name"], found["tensor"]["index"]) == ("body.weight", [1, 3])


def test_another_seed_is_named_first(project, federate, call):
    federate("one", "--seed", 1, "--keep-updates")
    federate("two", "--seed", 2, "--keep-updates")
    done = call("compare", "one", "two")
    assert done.code == 1
    assert done.out.splitlines()[:2] == ["setting seed: 1 against 2", "the first round that differs: 1"]
    assert "the first tensor that differs in the update of client 0: body.weight" in done.out


def test_without_kept_updates_it_is_said_that_the_client_is_all(project, federate, call):
    federate("one", "--seed", 1)
    federate("two", "--seed", 2)
    done = call("compare", "one", "two")
    assert done.code == 1
    assert "  client 0: update " in done.out
    assert "which tensor differs cannot be told: `one` did not keep its updates" in done.out


def test_a_longer_run_goes_on_where_the_other_ends(project, federate, call):
    federate("short", rounds=1)
    federate("long", rounds=2)
    done = call("compare", "short", "long")
    assert done.code == 1
    assert "the first 1 rounds have equal updates and weights" in done.out
    assert "only long goes on, to round 2" in done.out


def test_what_the_clients_were_told_differently_is_named(project, federate, call):
    federate("one", "--model-option", "lr=0.1")
    federate("two", "--model-option", "lr=0.2", "--max-epochs", 2)
    done = call("compare", "one", "two")
    assert done.out.splitlines()[:3] == [
        "run.toml max-epochs: 1 against 2",
        "run.toml model-option lr: 0.1 against 0.2",
        "the first round that differs: 1",
    ]
