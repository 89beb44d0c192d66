"""Exceptions told elsewhere: type, message, and the user's own line, not one inside a library."""

import traceback

import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from lightning_fl_ext import LightningFLError
from lightning_fl_ext.failures import described, own_line, read_failure, sign, signed


class Custom(RuntimeError):
    def __init__(self, code, words):
        super().__init__(code, words)

    def __str__(self):
        return f"{self.args[1]} ({self.args[0]})"


class NoRow(Dataset):
    def __len__(self):
        return 2

    def __getitem__(self, index):
        return {}["age"]


def line_of(function):
    return function.__code__.co_firstlineno + 1


def does_not_fit():
    torch.nn.Linear(4, 1)(torch.ones(2, 5))


def reads_in_a_worker():
    list(DataLoader(NoRow(), num_workers=1))


def wraps():
    try:
        does_not_fit()
    except RuntimeError as error:
        raise LightningFLError("another thing") from error


def raised(function):
    with pytest.raises(Exception) as caught:  # noqa: PT011
        function()
    return caught.value


def as_flower_sends(error):
    return f"{type(error)}:<'{error}'>"


def as_the_simulation_sends(error):
    kind = "flwr.clientapp.client_app.ClientAppException"
    return f"<class '{kind}'>:<'\nException ClientAppException occurred. Message: {error}'>"


def as_a_traceback(error):
    return "".join(traceback.format_exception(error))


@pytest.mark.parametrize("send", [as_flower_sends, as_the_simulation_sends, as_a_traceback])
@pytest.mark.parametrize(
    ("function", "line", "words"),
    [
        (does_not_fit, line_of(does_not_fit), "RuntimeError: mat1 and mat2 shapes cannot be multiplied"),
        (reads_in_a_worker, line_of(NoRow.__getitem__), "KeyError: 'age'"),
    ],
)
def test_the_line_is_the_users_and_survives_every_way_to_the_server(send, function, line, words):
    error = raised(function)
    assert own_line(error) == f"test_failures.py:{line}"
    sign(error, "site-a")
    told = read_failure(send(error))
    assert told.words.startswith(words)
    assert (told.place, told.client_id) == (f"test_failures.py:{line}", "site-a")


def test_a_signed_exception_keeps_its_type_and_is_signed_once():
    error = KeyError("age")
    for _ in range(2):
        sign(error, "site-a")
    assert (type(error), str(error)) == (KeyError, "'age (KeyError; client `site-a`)'")
    assert read_failure(as_flower_sends(error)).words == "KeyError: 'age'"


@pytest.mark.parametrize("error", [Custom(7, "odd"), OSError(28, "No space left", "/data")])
def test_a_message_of_more_than_one_text_stays_and_gets_a_note(error):
    before = str(error)
    for _ in range(2):
        sign(error, "site-a")
    assert str(error) == before
    told = read_failure(as_a_traceback(error))
    assert told.words.endswith(before)
    assert told.client_id == "site-a"


@pytest.mark.parametrize("client_id", ["", "a`b", "line\nbreak", "x" * 300])
def test_an_id_that_could_not_be_read_back_is_left_out(client_id):
    error = ValueError("one")
    sign(error, client_id)
    assert str(error) == "one"


def test_an_interrupt_is_left_alone():
    with pytest.raises(KeyboardInterrupt) as stop, signed("site-a"):
        raise KeyboardInterrupt
    assert stop.value.args == ()


def test_an_exception_without_words_has_its_line():
    def check():
        raise AssertionError

    error = raised(check)
    assert described(error) == f"AssertionError (test_failures.py:{line_of(check)})"
    sign(error, "a")
    assert str(read_failure(as_flower_sends(error))) == f"AssertionError (test_failures.py:{line_of(check)})"


def test_a_class_inside_a_function_keeps_its_name():
    class Mine(Exception):
        pass

    assert "Mine: one" in read_failure(as_flower_sends(Mine("one"))).words


def test_the_line_of_what_caused_it_counts_if_it_has_none_of_its_own():
    try:
        does_not_fit()
    except RuntimeError as error:
        outer = LightningFLError("another thing")
        outer.__cause__ = error
    assert own_line(outer) == f"test_failures.py:{line_of(does_not_fit)}"
    assert own_line(raised(wraps)) == f"test_failures.py:{line_of(wraps) + 3}"


@pytest.mark.parametrize(
    "path",
    [
        "/home/a/.venv/lib/python3.11/site-packages/torch/nn/modules/linear.py",
        r"C:\Python311\Lib\threading.py",
        r"C:\env\Lib\site-packages\lightning\pytorch\trainer\trainer.py",
        "/usr/lib/python3/dist-packages/numpy/core.py",
        "/src/lightning_fl_ext/lightning_fl_ext/client/app.py",
        "<frozen importlib._bootstrap>",
    ],
)
def test_libraries_and_this_package_are_not_the_users(path):
    trace = f'  File "/home/lit.py", line 7, in step\n    x()\n  File "{path}", line 9, in f\nValueError: one'
    assert str(read_failure(trace)) == "ValueError: one (lit.py:7)"
    assert str(read_failure(f'  File "{path}", line 9, in f\nValueError: one')) == "ValueError: one"


def test_a_users_file_in_a_folder_of_the_packages_name_is_the_users():
    trace = '  File "/src/lightning_fl_ext/examples/lit.py", line 7, in step\nValueError: one'
    assert read_failure(trace).place == "lit.py:7"
