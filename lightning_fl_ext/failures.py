r"""What an exception says where its traceback is not: its type, its words, and the user's own line.

That line is of the innermost frame outside of Python, of installed packages and of this package: not the
line in torch where two shapes did not fit, but the one that called it.

A client's exception reaches a server as text. Flower's SuperNodes send type and message alone, its simulation
the message, so a client writes type, line and its id at the message's end; a traceback tells the line itself.
"""

from __future__ import annotations

import re
import traceback
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from lightning_fl_ext.text import shown

_HERE = Path(__file__).parent
_INSTALLED = re.compile(r"/(?:site|dist)-packages/|/lib/python3|/python3\d*/lib/|\A<", re.IGNORECASE)
_FRAME = re.compile(r'^ *File "(?P<file>[^"\n]+)", line (?P<line>\d{1,9})', re.MULTILINE)
_ORIGIN = re.compile(
    r"(?:; | )?\((?P<kind>\w+)(?: at (?P<place>[^()`;]+:\d+))?; client `(?P<client>[^`]+)`\)"
    r"(?P<quote>['\"]?)\Z"
)
_BY_RAY = re.compile(r"\A(?:[\w.]*ClientAppException: )?Exception ClientAppException occurred\. Message: ")
_WITHOUT_TRACE = re.compile(r"\A<class '(?P<type>[^']+)'>:<'(?P<words>.*)'>\Z", re.DOTALL)


@dataclass(frozen=True)
class Failure:
    """What a text tells of an exception.

    Attributes:
        words: Its type and message, in one line.
        place: The user's own line, such as ``"fit.py:7"``; ``""`` if it is not told.
        client_id: Who wrote it; ``""`` if it is not told.
    """

    words: str
    place: str = ""
    client_id: str = ""

    def __str__(self) -> str:
        return f"{self.words} ({self.place})" if self.place and self.place not in self.words else self.words


def described(error: BaseException) -> str:
    """Give an exception's type, message and the user's own line, as plain text of bounded length.

    Example:
        >>> described(ValueError("one"))
        'ValueError: one'
    """
    words = f"{type(error).__name__}: {shown(error, 2000)}".rstrip(".: ")
    return str(Failure(words, own_line(error)))


def own_line(error: BaseException) -> str:
    """Give the user's own line nearest to the fault, such as ``"fit.py:7"``; ``""`` if there is none.

    Where the exception itself has none, that of the one that caused it counts.
    """
    frames = [(frame.filename, frame.lineno or 0) for frame in traceback.extract_tb(error.__traceback__)]
    found = _own([*frames, *_frames_in(str(error))])  # a DataLoader's worker writes its own into the text
    before = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return found or (own_line(before) if before is not None else "")


@contextmanager
def signed(client_id: str) -> Iterator[None]:
    """Have exceptions tell the user's own line and the client, wherever their messages are read.

    They keep their type. The message of one that is not a single text gets a note.
    """
    try:
        yield
    except Exception as error:
        sign(error, client_id)
        raise


def sign(error: BaseException, client_id: str) -> None:
    r"""Write the user's own line and the client at the end of an exception's message, once.

    Example:
        >>> error = ValueError("one")
        >>> sign(error, "site-a"); sign(error, "site-a")
        >>> error
        ValueError('one (ValueError; client `site-a`)')
    """
    if not isinstance(error, Exception) or _ORIGIN.search(_told(error)):
        return
    place, known = own_line(error), shown(client_id) == client_id and "`" not in client_id
    place = "" if place in str(error) else place
    if client_id and known:
        origin = f"({type(error).__name__}{f' at {place}' if place else ''}; client `{client_id}`)"
    elif place:
        origin = f"({place})"
    else:
        return
    plain = type(error).__str__ in (BaseException.__str__, KeyError.__str__)
    text = error.args[0] if error.args else ""
    if plain and len(error.args) <= 1 and isinstance(text, str):
        words = f"{text.rstrip()} {origin}".strip()
        error.args = (words if type(text) is str else type(text)(words),)  # torch has one with its own repr
    else:
        error.add_note(origin)


def read_failure(text: str) -> Failure:
    r"""Read an exception's traceback, or its type and message as Flower's engines write them.

    Args:
        text: Of the traceback's last exception the message is read, with all its lines in one.

    Example:
        >>> trace = ['Traceback:', '  File "fit.py", line 7, in f', '    x()', 'ValueError: one', '  two']
        >>> print(read_failure(chr(10).join(trace)))
        ValueError: one; two (fit.py:7)
        >>> read_failure("<class 'ValueError'>:<'one (ValueError at fit.py:7; client `site-a`)'>")
        Failure(words='ValueError: one', place='fit.py:7', client_id='site-a')
    """
    text = _WITHOUT_TRACE.sub(r"\g<type>: \g<words>", text)
    frames = list(_FRAME.finditer(text))
    lines = text[frames[-1].end() :].splitlines()[1:] if frames else text.splitlines()
    while frames and lines and lines[0].startswith("    "):  # the line of code
        lines = lines[1:]
    words = "; ".join(line.strip() for line in lines if line.strip()).replace(":; ", ": ")
    place = _own(_frames_in(text))
    if origin := _ORIGIN.search(words):
        words = words[: origin.start()].rstrip(": ") + origin["quote"]
        words = _BY_RAY.sub(f"{origin['kind']}: ", words)
        return Failure(words, origin["place"] or place, origin["client"])
    return Failure(words, place)


def _told(error: BaseException) -> str:
    return "; ".join([str(error), *getattr(error, "__notes__", [])])


def _frames_in(text: str) -> list[tuple[str, int]]:
    return [(frame["file"], int(frame["line"])) for frame in _FRAME.finditer(text)]


def _own(frames: Iterable[tuple[str, int]]) -> str:
    paths = [(file.replace("\\", "/"), line) for file, line in frames]
    places = [f"{PurePosixPath(path).name}:{line}" for path, line in paths if _is_own(path)]
    return shown(places[-1], 100) if places else ""


def _is_own(path: str) -> bool:
    _, package, rest = path.rpartition(f"/{_HERE.name}/")
    return not _INSTALLED.search(path) and not (package and (_HERE / rest).is_file())
