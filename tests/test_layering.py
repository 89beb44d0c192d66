"""Who may import whom, what is never used at all, and that importing the package is light."""

import ast
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

import lightning_fl_ext

ROOT = Path(lightning_fl_ext.__file__).parent
PACKAGE = ROOT.name

FREE = {
    *("arguments", "errors", "failures", "lazy", "lightnings", "locks", "metric_names", "once", "seeds"),
    "text",
}
"""Parts that every part may import."""

MAY_IMPORT = {
    "arguments": set(),
    "errors": set(),
    "failures": set(),
    "lazy": set(),
    "lightnings": set(),
    "metric_names": set(),
    "once": set(),
    "seeds": set(),
    "text": set(),
    "locks": set(),
    "partition": set(),
    "results": set(),
    "gates": {"results"},
    "aggregation": {"results"},
    "metrics": {"results"},
    "secure": {"results", "aggregation"},
    "wire": {"results", "gates", "aggregation"},
    "files": {"results", "wire"},
    "trees": {"wire"},
    "engines": {"results", "wire"},
    "client": {"results", "gates", "aggregation", "metrics", "secure", "wire", "files", "trees", "engines"},
    "server": {"results", "gates", "aggregation", "metrics", "secure", "wire", "files", "trees", "engines"},
    "callbacks": {"gates"},
    "report": {"results", "files", "server"},
    "cli": {"aggregation", "wire", "files", "engines", "client", "server", "report"},
    "__main__": {"cli"},
}
"""Other parts of the package that a part may import."""

ROOMS = {
    "server": {
        "screening": set(),
        "record": {"screening"},
        "result": {"record", "screening"},
        "fit": {"record", "result", "screening"},
        "metrics": {"record", "screening"},
        "strategies": {"metrics", "screening"},
        "durability": {"fit", "record", "screening"},
        "settings": {"fit", "record"},
        "rounds": {"fit", "record", "screening", "metrics", "settings", "strategies"},
        "callbacks": {"durability", "fit", "record", "screening"},
        "stopping": set(),
        "reporting": {"durability", "fit", "record", "screening", "stopping"},
        "trainer_arguments": {"callbacks", "screening", "settings"},
        "trainer": {
            *("callbacks", "durability", "metrics", "record", "reporting", "result", "rounds"),
            *("screening", "strategies", "trainer_arguments"),
        },
        "export": {"durability", "trainer_arguments"},
        "app": {"trainer"},
    },
    "client": {
        "identity": set(),
        "round": set(),
        "factories": {"round"},
        "trainers": {"identity"},
        "notices": set(),
        "results": set(),
        "metrics": set(),
        "instruction_limits": set(),
        "messages": {"instruction_limits", "results"},
        "algorithms": {"instruction_limits"},
        "launcher": set(),
        "bridge": {"algorithms", "identity", "messages", "metrics", "notices", "results", "round"},
        "persistence": {"bridge", "identity", "messages", "notices", "results"},
        "personal": {"algorithms", "bridge", "instruction_limits"},
        "secure": {"identity", "instruction_limits", "messages"},
        "answer": {
            *("algorithms", "bridge", "launcher", "messages", "notices", "persistence", "personal"),
            *("results", "trainers"),
        },
        "app_arguments": {"persistence", "trainers"},
        "app": {
            *("algorithms", "answer", "app_arguments", "bridge", "factories", "identity", "launcher"),
            *("messages", "personal", "secure"),
        },
        "worker": {"bridge", "launcher"},
    },
}
"""The rooms of the two crowded parts, lowest first, and which others each may import."""

LIBRARIES = {"torch", "torchmetrics", "lightning", "pytorch_lightning", "flwr"}
MAY_USE = {
    "arguments": set(),
    "errors": set(),
    "failures": set(),
    "lazy": set(),
    "lightnings": set(),
    "metric_names": set(),
    "once": set(),
    "seeds": {"torch"},
    "text": set(),
    "locks": set(),
    "partition": set(),
    "results": set(),
    "gates": {"torch"},
    "aggregation": set(),
    "metrics": {"torch", "torchmetrics"},
    "secure": set(),
    "wire": {"torch", "flwr"},
    "files": {"torch"},
    "trees": {"torch", "flwr"},
    "engines": {"torch", "flwr"},
    "client": LIBRARIES - {"pytorch_lightning"},
    "server": LIBRARIES - {"pytorch_lightning"},
    "callbacks": LIBRARIES - {"pytorch_lightning", "flwr"},
    "report": set(),
    "cli": LIBRARIES - {"pytorch_lightning"},
    "__main__": set(),
}

HEAVY = {"numba", "matplotlib", "ray", "constriction", "sklearn"}
"""Optional or slow to import: inside functions only."""

UNPICKLERS = {"pickle", "_pickle", "cPickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}

FLOWER = {"flwr.app", "flwr.clientapp", "flwr.serverapp", "flwr.serverapp.strategy"}
LEGACY_FLOWER = {"flwr.common", "flwr.server.client_proxy"}

PRIVATE = ROOT / "engines" / "private.py"
LEGACY = ROOT / "results" / "order.py"


@dataclass(frozen=True)
class Import:
    """One import of a module, and where it stands."""

    file: Path
    line: int
    module: str
    in_function: bool

    @property
    def library(self):
        return self.module.split(".")[0]

    def __str__(self):
        return f"{self.file.relative_to(ROOT)}:{self.line} imports {self.module}"


def sources():
    return sorted(ROOT.rglob("*.py"))


def part_of(file):
    return file.relative_to(ROOT).with_suffix("").parts[0]


def room_of(file):
    return file.relative_to(ROOT).with_suffix("").parts[1]


def imports_of(file):
    """Every import in a file; ``from a import b`` counts as ``a`` and, where that is a module, as ``a.b``."""
    found = []

    def visit(node, in_function):
        if isinstance(node, ast.Import):
            found.extend(Import(file, node.lineno, alias.name, in_function) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{file}:{node.lineno} has a relative import"
            for alias in node.names:
                inner = ROOT.parent.joinpath(*node.module.split("."), alias.name)
                is_module = inner.is_dir() or inner.with_suffix(".py").is_file()
                name = f"{node.module}.{alias.name}" if is_module else node.module
                found.append(Import(file, node.lineno, name, in_function))
        in_function = in_function or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        for child in ast.iter_child_nodes(node):
            visit(child, in_function)

    visit(ast.parse(file.read_text()), False)
    return found


IMPORTS = [found for file in sources() for found in imports_of(file)]
INNER = [found for found in IMPORTS if part_of(found.file) != "__init__"]


def complain(wrong):
    lines = [str(line) for line in wrong]
    assert not lines, "\n".join(lines)


def test_every_part_and_room_stands_in_the_architecture():
    docs = ROOT.parent / "docs"
    page, picture = ((docs / f"architecture.{kind}").read_text() for kind in ("md", "svg"))
    table = {name for row in re.findall(r"^\| (`.+?) \|", page, re.M) for name in re.findall(r"`(\w+)`", row)}
    assert table == set(MAY_IMPORT) - {"__main__"}
    drawn = {name for text in re.findall(r">(.+?)</text>", picture) for name in text.split(", ")}
    assert {name for part, rooms in ROOMS.items() for name in (part, *rooms)} <= drawn


def test_every_make_target_stands_in_contributing():
    targets = re.findall(r"^([a-z-]+):.*## ", (ROOT.parent / "Makefile").read_text(), re.M)
    page = (ROOT.parent / "CONTRIBUTING.md").read_text()
    assert [target for target in targets if target != "help" and f"`make {target}`" not in page] == []


def test_every_part_on_disk_has_a_rule():
    assert {part_of(file) for file in sources()} - {"__init__"} <= set(MAY_IMPORT) == set(MAY_USE)


def test_parts_import_only_the_parts_below_them():
    def allowed(found):
        own = part_of(found.file)
        target = found.module.split(".")[1:2]
        return target and target[0] in {own} | FREE | MAY_IMPORT[own]

    complain(found for found in INNER if found.library == PACKAGE and not allowed(found))


@pytest.mark.parametrize("part", ROOMS)
def test_rooms_import_only_the_rooms_below_them(part):
    rooms = ROOMS[part]
    inside = [found for found in INNER if part_of(found.file) == part and room_of(found.file) != "__init__"]
    assert {room_of(found.file) for found in inside} <= rooms.keys()
    order = list(rooms)
    for room, below in rooms.items():
        assert below <= set(order[: order.index(room)]), f"{room} is not above {below}"

    def allowed(found):
        target = found.module.split(".")[1:3]
        return target[:1] != [part] or (
            target[1:] and target[1] in {room_of(found.file)} | rooms[room_of(found.file)]
        )

    complain(found for found in inside if found.library == PACKAGE and not allowed(found))


def test_client_and_server_never_know_each_other():
    assert "server" not in MAY_IMPORT["client"]
    assert "client" not in MAY_IMPORT["server"]


def test_parts_use_only_their_libraries():
    used = (found for found in INNER if found.library in LIBRARIES and found.file != LEGACY)
    complain(found for found in used if found.library not in MAY_USE[part_of(found.file)])


def test_flowers_legacy_types_are_named_in_one_function_alone():
    flower = [found for found in IMPORTS if found.library == "flwr"]
    complain(
        found for found in flower if found.module in LEGACY_FLOWER and found.file not in (LEGACY, PRIVATE)
    )
    sort_rejections = [found for found in flower if found.file == LEGACY]
    assert {found.module for found in sort_rejections} == LEGACY_FLOWER


def test_undocumented_flower_modules_are_imported_in_one_file_alone():
    outside = (found for found in IMPORTS if found.library == "flwr" and found.file not in (PRIVATE, LEGACY))
    complain(found for found in outside if found.module not in FLOWER)


def test_attributes_behind_flowers_interface_are_set_in_one_file_alone():
    wrong = [
        f"{file.relative_to(ROOT)}:{node.lineno} reaches into __dict__"
        for file in sources()
        if file != PRIVATE
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.Subscript)
        and isinstance(node.value, ast.Attribute)
        and node.value.attr == "__dict__"
    ]
    complain(wrong)


def test_heavy_and_optional_libraries_are_imported_when_used():
    complain(found for found in IMPORTS if found.library in HEAVY and not found.in_function)


def test_nothing_is_ever_unpickled():
    complain(found for found in IMPORTS if found.library in UNPICKLERS)
    unsafe = {"weights_only": False, "allow_pickle": True}
    wrong = []
    for file in sources():
        for node in ast.walk(ast.parse(file.read_text())):
            if not isinstance(node, ast.Call):
                continue
            options = {k.arg: k.value.value for k in node.keywords if isinstance(k.value, ast.Constant)}
            torch_load = ast.unparse(node.func) == "torch.load" and options.get("weights_only") is not True
            if torch_load or any(options.get(name) is value for name, value in unsafe.items()):
                wrong.append(f"{file.relative_to(ROOT)}:{node.lineno}: {ast.unparse(node)}")
    complain(wrong)


def loaded_after(*statements):
    """What a fresh interpreter prints and has loaded, after each statement."""
    program = "import sys" + "".join(f"\n{statement}\nprint(*sys.modules)" for statement in statements)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return [set(line.split()) for line in done.stdout.splitlines()]


def test_importing_the_package_loads_nothing_heavy():
    timed = f"import time; start = time.perf_counter(); import {PACKAGE}; print(time.perf_counter() - start)"
    seconds, loaded, after_dir = loaded_after(timed, f"dir({PACKAGE})")
    print(f"import {PACKAGE}: {float(*seconds):.3f} s")
    for modules in (loaded, after_dir):
        assert PACKAGE in modules
        assert not (LIBRARIES | HEAVY | {"numpy"}) & modules


def test_importing_a_part_loads_nothing_it_may_not_use():
    pure_parts = ("results", "aggregation", "partition", "secure", "seeds")
    steps = [pure_parts, ("gates", "metrics"), ("wire", "engines")]
    pure, torch_only, flower = loaded_after(
        *(f"import {', '.join(f'{PACKAGE}.{part}' for part in parts)}" for parts in steps)
    )
    assert not (LIBRARIES | HEAVY) & pure
    assert not {"lightning", "pytorch_lightning", "flwr", "numba"} & torch_only
    assert not {"lightning", "pytorch_lightning", "numba"} & flower


def test_every_public_name_can_be_imported():
    for name in lightning_fl_ext.__all__:
        assert getattr(lightning_fl_ext, name) is not None
    with pytest.raises(AttributeError, match="has no attribute `nonsense`"):
        lightning_fl_ext.nonsense  # noqa: B018
