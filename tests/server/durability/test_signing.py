"""A signed ledger: who does not have the key cannot write another one in its place."""

import json
import shutil

import pytest
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

from lightning_fl_ext import RoundCheckpoint, RoundLedger, verify_ledger
from lightning_fl_ext.server import CallbackError, KeyFileError, make_keys
from lightning_fl_ext.server.callbacks.base import RoundCallback
from lightning_fl_ext.server.durability.ledger import GENESIS, make_line
from lightning_fl_ext.server.durability.signing import name_of, private_key, public_key, signature_file

KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
OTHER = Ed25519PrivateKey.from_private_bytes(bytes(range(1, 33)))


def fit(toy, folder, sign=KEY, more=(), **options):
    ckpt_path = options.pop("ckpt_path", None)
    callbacks = [RoundLedger(sign=sign), RoundCheckpoint(), *more]
    trainer = toy.make_trainer(callbacks=callbacks, default_root_dir=folder, **{"max_rounds": 3, **options})
    return trainer.fit(toy.Net(), toy.make_grid(3), ckpt_path=ckpt_path)


@pytest.fixture(scope="module")
def signed(toy, tmp_path_factory):
    folder = tmp_path_factory.mktemp("signed")
    fit(toy, folder)
    return folder


@pytest.fixture
def copied(signed, tmp_path):
    return shutil.copytree(signed, tmp_path / "copied")


def problems(folder, key=KEY):
    return " ".join(verify_ledger(folder, key=key).problems)


def rewrite_whole(folder, alter, key=None):
    """Write all lines anew, each with the hash that fits; sign the last, if with a key."""
    head, data = GENESIS, b""
    for number, raw in enumerate((folder / "ledger.jsonl").read_bytes().splitlines()):
        line = alter(number, json.loads(raw))
        content = {k: v for k, v in line.items() if k not in ("index", "event", "previous", "hash")}
        head, made = make_line(head, number, line["event"], content)
        data += made
    (folder / "ledger.jsonl").write_bytes(data)
    if key is not None:
        (folder / "ledger.sig").write_bytes(signature_file(key, number, head))


def more_examples(number, line):
    if number == 2:
        line["accepted"][0]["num_examples"] += 1
    return line


def test_a_signature_changes_no_byte_of_the_ledger(toy, signed, tmp_path):
    fit(toy, tmp_path, sign=None)
    assert (signed / "ledger.jsonl").read_bytes() == (tmp_path / "ledger.jsonl").read_bytes()
    assert not (tmp_path / "ledger.sig").exists()
    assert verify_ledger(signed).signed
    assert verify_ledger(signed).ok
    assert not verify_ledger(tmp_path).signed


def test_a_signed_ledger_is_sound_to_whoever_has_the_public_key(signed):
    assert verify_ledger(signed, key=KEY.public_key()).ok
    assert problems(signed, OTHER) == (
        f"the ledger is not signed by the key {name_of(OTHER.public_key())[:16]}…, but by the key"
        f" {name_of(KEY.public_key())[:16]}…"
    )


def test_a_signature_stands_after_every_round_and_at_the_end(toy, tmp_path):
    class Verify(RoundCallback):
        seen = []

        def on_round_end(self, trainer):
            self.seen.append(verify_ledger(trainer.default_root_dir, key=KEY))

    fit(toy, tmp_path, more=[Verify()])
    assert [(report.rounds, report.problems) for report in Verify.seen] == [(1, ()), (2, ()), (3, ())]
    assert verify_ledger(tmp_path, key=KEY).finished


@pytest.mark.parametrize(
    ("signer", "says"), [(None, "the ledger was rewritten: line 5 is not"), (OTHER, "not signed by the key")]
)
def test_a_ledger_rewritten_whole_is_found_though_its_hashes_fit(copied, signer, says):
    shutil.rmtree(copied / "checkpoints")
    rewrite_whole(copied, more_examples, signer)
    assert verify_ledger(copied).ok
    assert says in problems(copied)


def test_a_cut_ledger_is_found_without_a_checkpoint(copied):
    shutil.rmtree(copied / "checkpoints")
    path = copied / "ledger.jsonl"
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:3]))
    assert verify_ledger(copied).ok
    assert problems(copied) == "lines are missing at the end: line 5 was signed, and there are 3"


def test_the_signatures_in_checkpoints_do_not_pass_beside_a_cut_ledger(copied):
    state = json.loads((copied / "checkpoints/round-00003/state.json").read_bytes())["callbacks"]
    note = state["RoundLedger"]
    path = copied / "ledger.jsonl"
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[: note["index"]]))
    made = {"entry": note["index"] - 1, **{k: note[k] for k in ("head", "key", "signature")}}
    (copied / "ledger.sig").write_text(json.dumps(made))
    assert "but by nobody: it was altered" in problems(copied)


def test_a_line_appended_by_another_hand_is_found(copied):
    path = copied / "ledger.jsonl"
    last = json.loads(path.read_bytes().splitlines()[-1])
    _, line = make_line(last["hash"], last["index"] + 1, "end", {})
    path.write_bytes(path.read_bytes() + line)
    assert problems(copied) == "the lines after line 5 are not signed"


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (None, "there is no `ledger.sig` beside it"),
        (b"", "`ledger.sig` was altered or cut"),
        (b"[]", "`ledger.sig` was altered or cut"),
        (b'{"entry":"1"}', "`ledger.sig` was altered or cut"),
        (b"[" * 100_000, "`ledger.sig` was altered or cut"),
        (b'{"entry":4,"head":"00","key":"x","signature":"zz"}', "but by the key x…"),
    ],
)
def test_an_unsigned_ledger_and_a_broken_signature_are_found(copied, data, says):
    (copied / "ledger.sig").unlink() if data is None else (copied / "ledger.sig").write_bytes(data)
    assert says in problems(copied)


def test_going_on_with_the_same_key_gives_the_ledger_and_signature_of_one_run(toy, signed, tmp_path):
    fit(toy, tmp_path, max_rounds=1)
    (tmp_path / "ledger.sig").unlink()  # as if killed before it was written
    fit(toy, tmp_path, ckpt_path="last")
    for name in ("ledger.jsonl", "ledger.sig"):
        assert (tmp_path / name).read_bytes() == (signed / name).read_bytes()


def test_going_on_with_another_key_or_without_is_refused_and_changes_nothing(toy, tmp_path):
    fit(toy, tmp_path, max_rounds=1)
    ours, theirs = (name_of(key.public_key())[:16] for key in (KEY, OTHER))
    before = {name: (tmp_path / name).read_bytes() for name in ("ledger.jsonl", "ledger.sig")}
    for sign, says in (
        (OTHER, f"signed with the key {ours}….* `sign` is the key {theirs}…"),
        (None, f"signed with the key {ours}…: resume with `sign=` that key"),
    ):
        with pytest.raises(CallbackError, match=says):
            fit(toy, tmp_path, sign=sign, ckpt_path="last")
        assert {name: (tmp_path / name).read_bytes() for name in before} == before


def test_an_unsigned_run_does_not_become_signed(toy, tmp_path):
    fit(toy, tmp_path, sign=None, max_rounds=1)
    with pytest.raises(CallbackError, match="unsigned ledger: resume without `sign`"):
        fit(toy, tmp_path, ckpt_path="last")


def test_a_ledger_and_checkpoint_falsified_together_are_not_signed_on_resuming(toy, tmp_path):
    fit(toy, tmp_path, max_rounds=2)
    rewrite_whole(tmp_path, more_examples)
    path = tmp_path / "ledger.jsonl"
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:3]))  # as the checkpoint has it
    head = json.loads(path.read_bytes().splitlines()[-1])["hash"]
    from lightning_fl_ext.files import read_folder, write_folder

    checkpoint = tmp_path / "checkpoints" / "round-00002"
    files = read_folder(checkpoint)
    state = json.loads(files["state.json"])
    state["callbacks"]["RoundLedger"]["head"] = head
    write_folder(checkpoint, {**files, "state.json": json.dumps(state).encode()})
    with pytest.raises(CallbackError, match=r"is not signed by the key .*: it was altered"):
        fit(toy, tmp_path, ckpt_path="last")


def test_a_head_noted_in_an_earlier_round_vouches_for_the_lines_up_to_it(signed):
    hashes = [json.loads(line)["hash"] for line in (signed / "ledger.jsonl").read_bytes().splitlines()]
    assert all(verify_ledger(signed, head=noted).ok for noted in hashes)
    assert verify_ledger(signed, head=f" {hashes[1].upper()}\n").ok
    assert "no line has the hash that was noted" in verify_ledger(signed, head="0" * 64).problems[0]


def test_a_key_pair_is_made_once_and_the_private_one_is_its_owner_s(toy, tmp_path):
    private, public = make_keys(tmp_path / "server.pem")
    assert private.stat().st_mode & 0o777 == 0o600
    fit(toy, tmp_path / "run", sign=private, max_rounds=1)
    assert verify_ledger(tmp_path / "run", key=str(public)).ok
    before = private.read_bytes()
    with pytest.raises(KeyFileError, match="never written over"):
        make_keys(private)
    public.rename(tmp_path / "elsewhere.pem")
    with pytest.raises(KeyFileError, match="never written over"):
        make_keys(private)
    assert private.read_bytes() == before


def test_what_is_no_such_key_is_refused_by_name(tmp_path):
    path = tmp_path / "key.pem"
    for read in (private_key, public_key):
        with pytest.raises(KeyFileError, match=r"cannot read the key `.*key\.pem`: No such file"):
            read(path)
        with pytest.raises(TypeError, match="Got int"):
            read(3)
    path.write_bytes(b"no key")
    for read, kind in ((private_key, "private"), (public_key, "public")):
        with pytest.raises(KeyFileError, match=f"holds no {kind} key as PEM"):
            read(path)
    elliptic = generate_private_key(SECP256R1())
    path.write_bytes(elliptic.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    with pytest.raises(KeyFileError, match="expected an Ed25519 key, got ECPrivateKey"):
        private_key(path)
    with pytest.raises(KeyFileError, match="holds no public key"):
        public_key(path)
    path.write_bytes(elliptic.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    with pytest.raises(KeyFileError, match="expected an Ed25519 key, got ECPublicKey"):
        public_key(path)
    path.write_bytes(KEY.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"pw")))
    with pytest.raises(KeyFileError, match="is encrypted"):
        private_key(path)
