"""The touches on names that Flower does not document still mean what they are used for."""

import copy
import os
import subprocess
import sys

import pytest
from flwr.app import (
    Array,
    ArrayRecord,
    ConfigRecord,
    Context,
    Error,
    Message,
    MetricRecord,
    RecordDict,
)
from flwr.supercore.task_identity import TaskIdentity

from lightning_fl_ext.engines import private


def test_without_an_identity_flower_refuses_to_construct_messages_and_with_ours_it_does_not():
    program = """if True:
        from flwr.app import Message, RecordDict
        try:
            Message(RecordDict(), 5, "train")
        except RuntimeError:
            print("refused")
        from lightning_fl_ext.engines.private import ensure_identity
        ensure_identity()
        print(Message(RecordDict(), 5, "train").metadata.dst_node_id)
    """
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, env={**os.environ}
    )
    assert done.stdout.split() == ["refused", "5"]


def test_the_identity_of_a_runtime_is_left_alone(monkeypatch):
    for name, value in {"_task_id": 7, "_run_id": 8, "_node_id": 9}.items():
        monkeypatch.setattr(TaskIdentity, name, value)
    private.ensure_identity()
    assert (TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id) == (7, 8, 9)


def test_a_message_id_can_be_set_and_is_what_a_reply_refers_to():
    private.ensure_identity()
    message = Message(RecordDict(), 5, "train")
    private.set_message_id(message, "id-1")
    assert message.metadata.message_id == "id-1"
    assert Message(RecordDict(), reply_to=message).metadata.reply_to_message_id == "id-1"


def test_an_empty_run_has_its_id():
    assert private.empty_run(3).run_id == 3


def every_kind():
    private.ensure_identity()
    arrays = ArrayRecord({"w": Array("float32", (2,), "numpy.ndarray", b"12345678")})
    records = {"arrays": arrays, "config": ConfigRecord({"a": [1, 2], "b": b"x"}), "metrics": MetricRecord()}
    records["metrics"]["loss"] = [0.5, 1.5]
    message = Message(RecordDict(records), 5, "train")
    refused = Message(Error(3, "no"), reply_to=message)
    return message, refused, Context(1, 5, {"partition-id": 0}, RecordDict(records), {"rate": 0.1})


def plain_parts(value):
    """Everything of a value, as far as it has parts, in plain containers."""
    if hasattr(value, "__dict__"):
        return type(value).__name__, {k: plain_parts(v) for k, v in vars(value).items() if "_fn" not in k}
    if isinstance(value, dict):
        return {k: plain_parts(v) for k, v in value.items()}
    return value


def changeable_parts(value):
    parts = vars(value) if hasattr(value, "__dict__") else value
    if isinstance(value, dict | list) or (hasattr(value, "__dict__") and not callable(value)):
        yield id(value)
        for part in parts.values() if isinstance(parts, dict) else parts:
            yield from changeable_parts(part)


@pytest.mark.parametrize("index", range(3))
def test_a_copy_is_equal_and_shares_nothing_that_can_change(index):
    value = every_kind()[index]
    copied = private.copied(value)
    assert plain_parts(copied) == plain_parts(value) == plain_parts(copy.deepcopy(value))
    assert not set(changeable_parts(copied)) & set(changeable_parts(value))


def test_a_copied_record_refuses_what_the_record_refuses():
    message, _, _ = every_kind()
    with pytest.raises(TypeError):
        private.copied(message).content["metrics"]["loss"] = "high"


def test_what_is_no_part_of_a_message_is_copied_as_python_copies_it():
    class Own:
        def __init__(self):
            self.values = [1]

    own = Own()
    copied = private.copied([own, own])
    assert copied[0] is not own
    assert copied[0].values == [1]
