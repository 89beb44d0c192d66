"""The touches on names that Flower does not document still mean what they are used for."""

import os
import subprocess
import sys

from flwr.app import Message, RecordDict
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
