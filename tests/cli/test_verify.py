"""`verify` finds what was done to a ledger, or to what was kept beside it."""

import json
import shutil

import pytest

from lightning_fl_ext.files import arrays_from_bytes, arrays_to_bytes, read_folder, write_folder
from lightning_fl_ext.report import read_history


def test_a_sound_run_is_sound(finished, call):
    head = read_history(finished).head
    done = call("verify", finished, "--replay", "--head", head)
    assert done.code == 0
    assert done.out.splitlines() == [
        f"sound: 3 rounds, head {head}",
        "replayed: the kept updates give the digests of all 3 rounds",
    ]


def recount(line):
    return line.replace(b'"num_examples":16', b'"num_examples":61', 1)


CHANGES = {
    "altered": (lambda lines: [*lines[:2], recount(lines[2]), *lines[3:]], "line 3 (entry 2) was altered"),
    "moved": (lambda lines: [lines[0], lines[2], lines[1], *lines[3:]], "line 2 is entry 2, expected entry"),
    "missing": (lambda lines: [*lines[:2], *lines[3:]], "1 missing before it"),
    "cut off": (lambda lines: lines[:2], "lines are missing at the end"),
    "cut": (lambda lines: [*lines[:-1], lines[-1][:40]], "was altered or cut"),
}


@pytest.mark.parametrize("change", sorted(CHANGES))
def test_an_altered_ledger_is_not_sound_and_the_line_is_named(copied, call, change, rewrite):
    alter, says = CHANGES[change]
    rewrite(copied, alter)
    done = call("verify", copied)
    assert done.code == 1
    assert says in done.out
    assert "not sound: " in done.out
    outcome = json.loads(call("verify", copied, "--json").out)
    assert (outcome["ok"], says in " ".join(outcome["problems"])) == (False, True)


def test_a_ledger_that_was_rewritten_whole_shows_against_a_head_noted_elsewhere(copied, call, rewrite):
    noted = read_history(copied).head
    shutil.rmtree(copied / "checkpoints")
    rewrite(copied, lambda lines: lines[:2])
    assert call("verify", copied).code == 0
    done = call("verify", copied, "--head", noted)
    assert done.code == 1
    assert "no line has the hash that was noted" in done.out


def test_a_checkpoint_kept_elsewhere_knows_how_long_the_ledger_was(copied, call, rewrite):
    noted = shutil.copytree(copied / "checkpoints" / "round-00003", copied.parent / "noted")
    shutil.rmtree(copied / "checkpoints")
    rewrite(copied, lambda lines: lines[:2])
    done = call("verify", copied, "--checkpoint", noted)
    assert (done.code, "lines are missing at the end" in done.out) == (1, True)


def test_an_update_that_was_changed_afterwards_is_found_by_replaying(copied, call):
    folder = copied / "updates" / "round-00002"
    files = read_folder(folder)
    arrays = arrays_from_bytes(files["update-00001.safetensors"])
    arrays["head.bias"] = arrays["head.bias"] + 1
    write_folder(folder, {**files, "update-00001.safetensors": arrays_to_bytes(arrays)})
    assert call("verify", copied).code == 0
    done = call("verify", copied, "--replay")
    assert (done.code, "round 2: the kept update of `1` differs" in done.out) == (1, True)
    (folder / "update-00001.safetensors").write_bytes(b"")
    assert call("verify", copied, "--replay").code == 1
    assert json.loads(call("verify", copied, "--replay", "--json").out)["replayed"] is None


def test_what_cannot_be_replayed_is_wrong_input(copied, call):
    shutil.rmtree(copied / "updates")
    done = call("verify", copied, "--replay")
    assert (done.code, done.err) == (
        2,
        "error: round 1: its updates were not kept; use `keep_updates=True`\n",
    )


def test_a_signed_run_is_verified_with_the_public_key(project, federate, call):
    assert call("key", "server.pem").out.splitlines() == [
        "private key, for the server alone: server.pem",
        "public key, for whoever verifies: server.pub.pem",
    ]
    assert federate("run", "--sign", "server.pem", rounds=1).code == 0
    head = read_history(project / "run").head
    done = call("verify", "run", "--key", "server.pub.pem")
    assert (done.code, done.out.splitlines()) == (
        0,
        [f"sound: 1 rounds, head {head}", "signed: by server.pub.pem"],
    )
    assert call("verify", "run").out.splitlines()[1:] == [
        "signed, but not checked: give the server's public key as `--key`"
    ]
    assert call("verify", "run", "--key", "server.pub.pem", "--print-head").out == f"{head}\n"
    (project / "run" / "ledger.sig").unlink()
    done = call("verify", "run", "--key", "server.pub.pem", "--print-head")
    assert (done.code, "the ledger is not signed" in done.out) == (1, True)
    assert json.loads(call("verify", "run", "--key", "server.pub.pem", "--json").out)["signed"] is False
    assert call("verify", "run", "--key", "nowhere.pem").code == 2
