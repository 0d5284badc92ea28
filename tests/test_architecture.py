"""Imports point down only: cli -> pipeline -> stages -> data, and stage two never knows stage one."""

import ast
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROOMS = ("data", "stages", "pipeline")
MODULES = [*sorted(path for room in ROOMS for path in (ROOT / room).rglob("*.py")), ROOT / "cli.py"]
TERMINAL = ROOT / "pipeline" / "terminal"
BELOW_THE_COMMAND_LINE = [path for path in MODULES if path.name != "cli.py" and TERMINAL not in path.parents]
ALLOWED = {
    "data": {"data"},
    "stages": {"data", "stages"},
    "stages/encoding": {"data", "stages", "stages/encoding"},
    "stages/scoring": {"data", "stages", "stages/scoring"},
    "stages/decoding": {"data", "stages", "stages/decoding", "stages/scoring"},
    "pipeline": {"data", "stages", "stages/encoding", "stages/decoding", "stages/scoring", "pipeline"},
    "pipeline/terminal": {
        "data",
        "stages",
        "stages/encoding",
        "stages/decoding",
        "stages/scoring",
        "pipeline",
        "pipeline/terminal",
    },
    "": {"pipeline/terminal"},
}


def imports_of(path: Path) -> set[str]:
    """The full names of the modules that `path` imports, under TYPE_CHECKING too."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            found |= {node.module or ""} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def room_of(module: str) -> str | None:
    """The room of one of our modules; None for a name inside a module or somebody else's module."""
    path = ROOT.joinpath(*module.split(".")[1:]).with_suffix(".py")
    if not module.startswith("captionmill.") or not path.exists():
        return None
    return path.parent.relative_to(ROOT).as_posix().removeprefix(".")


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_a_module_imports_only_rooms_below_its_own(path: Path) -> None:
    own = path.parent.relative_to(ROOT).as_posix().removeprefix(".")
    rooms = {room for module in imports_of(path) if (room := room_of(module)) is not None}
    assert rooms <= ALLOWED[own]


@pytest.mark.parametrize("path", sorted((ROOT / "data").rglob("*.py")), ids=lambda path: path.name)
def test_what_is_on_disk_is_read_without_torch(path: Path) -> None:
    assert not {module for module in imports_of(path) if module.split(".")[0] in ("torch", "torchvision")}


@pytest.mark.parametrize("path", BELOW_THE_COMMAND_LINE, ids=lambda path: path.stem)
def test_nothing_below_the_command_line_prints_or_exits(path: Path) -> None:
    assert not {module for module in imports_of(path) if module.split(".")[0] in ("click", "sys")}
    names = {node.id for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, ast.Name)}
    assert not names & {"print", "exit", "quit", "input"}


def test_help_needs_no_heavy_import() -> None:
    program = (
        "import sys; import captionmill.cli; print(sorted({'torch', 'pandas', 'h5py', 'numpy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


@pytest.mark.parametrize("room", ROOMS)
def test_the_table_of_a_room_names_each_of_its_modules_once_and_no_other(room: str) -> None:
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    table = re.search(rf"^\| {room}/ \| job \|\n\|---\|---\|\n((?:\|.*\n)+)", text, re.MULTILINE)
    assert table is not None
    named: Counter[str] = Counter()
    for line in table[1].splitlines():
        folder = ""
        for name in re.findall(r"`([^`]+)`", line.split("|")[1]):
            folder = name[: name.rfind("/") + 1] or folder  # said once for all names of a line
            found = [*(ROOT / room / folder).glob(name.removeprefix(folder) or "*")]
            assert found, f"{name} is in the table and not in {room}/"
            named.update(path.relative_to(ROOT / room).as_posix() for path in found if path.suffix == ".py")
    modules = {path.relative_to(ROOT / room).as_posix() for path in (ROOT / room).rglob("*.py")}
    assert named == dict.fromkeys((name for name in modules if not name.endswith("__init__.py")), 1)
