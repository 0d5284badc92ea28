"""The house: which room imports which, how large rooms and modules are, and how they are named."""

import ast
import contextlib
import functools
import graphlib
import re
import subprocess
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).parents[1]
TOP = ("data", "stages", "pipeline")
MODULES = [*sorted(path for folder in TOP for path in (ROOT / folder).rglob("*.py")), ROOT / "cli.py"]
CODE = [path for path in MODULES if path.name != "__init__.py"]
TERMINAL = "pipeline/terminal"
BELOW_THE_TERMINAL = [path for path in CODE if path.name != "cli.py" and path.parent != ROOT / TERMINAL]
IMAGE_ROOMS = {"data", "data/images", "data/images/formats"}
DATA = {
    *IMAGE_ROOMS,
    "data/features",
    "data/hdf5",
    "data/captions",
    "data/captions/formats",
    "data/tables",
    "data/models",
}
CAPTION_ROOMS = {
    *("data", "data/captions", "data/captions/formats"),
    *("data/images/keys", "data/images/lists", "data/tables"),
}
DECODING = {*DATA, "stages", "stages/ranking", "stages/decoding"}
ALLOWED = {
    "data": {"data", "data/images/read"},
    "data/images": IMAGE_ROOMS,
    "data/images/formats": {"data", "data/images/formats", "data/images/memory"},
    "data/hdf5": {"data", "data/hdf5"},
    "data/features": {"data", "data/features", "data/hdf5", "data/images/read", "data/tables"},
    "data/captions": CAPTION_ROOMS,
    "data/captions/formats": {"data", "data/captions/formats", "data/images/formats", "data/images/walk"},
    "data/tables": {"data", "data/tables"},
    "data/models": DATA,
    "stages": {*DATA, "stages"},
    "stages/encoding": {*DATA, "stages", "stages/encoding", "stages/encoding/engines"},
    "stages/encoding/engines": {*DATA, "stages", "stages/encoding", "stages/encoding/engines"},
    "stages/ranking": {*DATA, "stages", "stages/ranking"},
    "stages/decoding": DECODING,
    "stages/scoring": {*DECODING, "stages/scoring"},
    "stages/training": {
        *DECODING,
        *("stages/scoring", "stages/training", "stages/training/given", "stages/training/reranking/build"),
    },
    "stages/training/given": {*DECODING, "stages/training", "stages/training/given"},
    "stages/training/reranking": {*DECODING, "stages/training", "stages/training/reranking"},
    "stages/portable": {*DECODING, "stages/encoding", "stages/portable"},
}
STAGES = set().union(*ALLOWED.values())
_ROOMS = ("pages", "captioning", "plan", "demo", "review", "terminal")
for _room in ("pipeline", *(f"pipeline/{name}" for name in _ROOMS)):
    ALLOWED[_room] = {*STAGES, "pipeline", _room}
ALLOWED["pipeline"] |= {"pipeline/pages", "pipeline/captioning"}
ALLOWED["pipeline/captioning"] |= {"pipeline/pages"}
ALLOWED["pipeline/plan"] |= {"pipeline/pages", "pipeline/captioning"}
ALLOWED["pipeline/demo"] |= {"pipeline/pages", "pipeline/captioning", "pipeline/plan"}
ALLOWED["pipeline/review"] |= {"pipeline/pages"}
ALLOWED[TERMINAL] |= {"pipeline/pages", "pipeline/captioning", "pipeline/plan", "pipeline/demo", "pipeline/review"}
ALLOWED[""] = {TERMINAL}
MOST_MODULES = 12
MOST_LINES, LEAST_LINES = 300, 20
MOST_PARAMETERS = 9
SHORT = ("data/progress",)  # a contract


@functools.cache
def nodes_of(path: Path) -> tuple[ast.AST, ...]:
    """All nodes of the module at `path`, the module itself first."""
    return tuple(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))


@functools.cache
def imports_of(path: Path) -> frozenset[str]:
    """The full names of the modules that `path` imports, under TYPE_CHECKING too."""
    found: set[str] = set()
    for node in nodes_of(path):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            found |= {node.module or ""} | {f"{node.module}.{alias.name}" for alias in node.names}
    return frozenset(found)


def own_imports(path: Path) -> set[Path]:
    """The modules of the package that `path` imports."""
    files = {ROOT.joinpath(*name.split(".")[1:]).with_suffix(".py") for name in imports_of(path)}
    return files.intersection(CODE)


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).with_suffix("").as_posix()


def room_of(path: Path) -> str:
    return path.parent.relative_to(ROOT).as_posix().removeprefix(".")


def test_no_module_imports_itself_in_a_circle() -> None:
    graph = {name_of(path): {name_of(other) for other in own_imports(path)} for path in CODE}
    assert len(tuple(graphlib.TopologicalSorter(graph).static_order())) == len(graph)  # else CycleError


def test_a_module_imports_only_what_its_room_may() -> None:
    wrong = [
        f"{name_of(path)} imports {name_of(other)}"
        for path in MODULES
        for other in own_imports(path)
        if not {room_of(other), name_of(other)} & ALLOWED[room_of(path)]
    ]
    assert wrong == []


def test_no_module_imports_itself_by_way_of_others() -> None:
    TopologicalSorter({path: own_imports(path) for path in CODE}).prepare()


def packages_of(path: Path) -> set[str]:
    """The packages that `path` imports from."""
    return {module.split(".")[0] for module in imports_of(path)}


def test_what_is_on_disk_is_read_without_torch() -> None:
    modules = sorted((ROOT / "data").rglob("*.py"))
    assert [name_of(path) for path in modules if packages_of(path) & {"torch", "torchvision"}] == []


def test_only_the_terminal_prints_or_exits() -> None:
    found = [name_of(path) for path in BELOW_THE_TERMINAL if packages_of(path) & {"click", "sys"}]
    assert found == ["stages/machine"]  # sees whether torch is imported, and what OpenVINO imports
    names = {path: {node.id for node in nodes_of(path) if isinstance(node, ast.Name)} for path in BELOW_THE_TERMINAL}
    assert [name_of(path) for path, found in names.items() if found & {"print", "exit", "quit", "input"}] == []


def test_help_needs_no_heavy_import() -> None:
    program = (
        "import sys; import captionmill.cli; print(sorted({'torch', 'pandas', 'h5py', 'numpy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_the_page_on_architecture_has_a_line_for_each_room() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    assert set(re.findall(r"^\| `([\w/]+)/` \|", page, re.MULTILINE)) == {room_of(path) for path in CODE} - {""}
    assert len(page.splitlines()) <= 120


def test_no_flat_room_but_the_terminal_has_more_than_twelve_modules() -> None:
    sizes = Counter(room_of(path) for path in CODE)
    assert {room: size for room, size in sizes.items() if size > MOST_MODULES and room != TERMINAL} == {}


def test_no_function_takes_more_than_nine_parameters() -> None:
    wrong = {}
    for path in MODULES:
        for node in nodes_of(path):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                parameters = [one for one in ast.walk(node.args) if isinstance(one, ast.arg)]
                count = len([one for one in parameters if one.arg not in ("self", "cls")])
                if count > MOST_PARAMETERS:
                    wrong[name_of(path), node.name] = count
    assert wrong == {}


def test_a_module_fits_its_size_and_says_what_it_is_for() -> None:
    lines = {name_of(path): len(path.read_text(encoding="utf-8").splitlines()) for path in CODE}
    assert {name: count for name, count in lines.items() if count > MOST_LINES} == {}
    assert {name: count for name, count in lines.items() if count < LEAST_LINES and name not in SHORT} == {}
    trees = {name_of(path): nodes_of(path)[0] for path in CODE}
    assert [name for name, tree in trees.items() if isinstance(tree, ast.Module) and not ast.get_docstring(tree)] == []


def test_no_module_is_named_after_its_folder() -> None:
    inside = [path for path in CODE if path.parent != ROOT and path.stem != path.parent.name.removesuffix("s")]
    assert [name_of(path) for path in inside if path.parent.name.removesuffix("s") in path.stem.split("_")] == []


def test_the_root_holds_no_other_module() -> None:
    assert sorted(path.name for path in ROOT.glob("*.py")) == ["__init__.py", "__main__.py", "cli.py"]


def is_command(node: ast.stmt) -> bool:
    """Whether `node` is a command of the terminal, which has the name of the function that it calls."""
    decorators = node.decorator_list if isinstance(node, ast.FunctionDef) else []
    return any(re.search(r"\b(command|group)\(", ast.unparse(decorator)) for decorator in decorators)


def names_defined(path: Path) -> set[str]:
    """The classes, functions and public types that the module at `path` defines, without the mark of private ones."""
    found = {node.name for node in nodes_of(path) if isinstance(node, ast.ClassDef)}
    module = nodes_of(path)[0]
    for node in module.body if isinstance(module, ast.Module) else ():
        if isinstance(node, ast.FunctionDef) and not is_command(node):
            found.add(node.name)
        elif isinstance(node, ast.Assign):
            found |= {target.id for target in node.targets if isinstance(target, ast.Name) and not target.id.isupper()}
    return {name.removeprefix("_") for name in found if not name.removeprefix("_").isupper() and name != "_logger"}


def test_no_class_and_no_function_means_two_things() -> None:
    homes = defaultdict(list)
    for path in CODE:
        for name in names_defined(path):
            homes[name].append(name_of(path))
    assert {name: found for name, found in homes.items() if len(found) > 1} == {}


def test_tables_have_one_writer() -> None:
    attributes = {path: {node.attr for node in nodes_of(path) if isinstance(node, ast.Attribute)} for path in CODE}
    assert [name_of(path) for path, found in attributes.items() if found & {"writer", "DictWriter", "to_csv"}] == []


def test_below_the_terminal_no_text_names_an_option() -> None:
    wrong = []
    for path in BELOW_THE_TERMINAL:
        if path.name != "command_line.py":  # writes command lines
            own = set(docstrings_of(path))
            constants = [node.value for node in nodes_of(path) if isinstance(node, ast.Constant)]
            texts = [text for text in constants if isinstance(text, str) and text not in own]
            wrong += [(name_of(path), text) for text in texts if re.search(r"(?<![\w-])--([a-z]|$)", text)]
    assert set(wrong) == {
        ("pipeline/pages/page", "--"),  # a colour of the style sheet
        ("stages/charts", "--"),  # a dashed line
        ("stages/training/origin", "--"),  # of names in checkpoints
    }


def docstrings_of(path: Path) -> Iterator[str]:
    """The texts of a module that belong to no expression: docstrings and those below a field."""
    for node in nodes_of(path):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            yield node.value.value


PATCHED = {
    "Reward.advantages",  # what a training makes of its samples is seen nowhere else
    "PartWriter.add",  # a signal arrives in it
    "charts.draw_curves",  # takes twice as long as a small training
    "train.train",  # torchrun starts a command, which takes no loop settings
    "writer._SMALL_ROWS",  # 20,000 rows of 2048 numbers take 80 MB
}
MOST_PATCHED = 5


def own_names(tree: ast.Module) -> set[str]:
    """The names that a test, or a program in it, has imported from the package."""
    froms = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    own = [node for node in froms if (node.module or "").split(".")[0] == "captionmill"]
    return {alias.asname or alias.name for node in own for alias in node.names}


def programs_in(tree: ast.Module) -> Iterator[ast.Module]:
    """The Python programs that stand in texts, such as those that a test starts as processes."""
    for node in ast.walk(tree):
        parts = node.values if isinstance(node, ast.JoinedStr) else [node]
        text = "".join(str(part.value) if isinstance(part, ast.Constant) else "0" for part in parts)
        if "captionmill" in text:
            with contextlib.suppress(SyntaxError):
                yield ast.parse(text)


def patched_names(tree: ast.Module) -> set[str]:
    """Whatever of the package is replaced, by `setattr` or an assignment, as "module.name" or "Class.name"."""
    own, found = own_names(tree), set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "setattr":
            first, *others = node.args
            if isinstance(first, ast.Constant):
                found |= {".".join(str(first.value).split(".")[-2:])} if "captionmill." in str(first.value) else set()
            elif ast.unparse(first).split(".")[0] in own:
                found.add(f"{ast.unparse(first)}.{ast.literal_eval(others[0])}")
        elif isinstance(node, ast.Assign):
            targets = [ast.unparse(target) for target in node.targets if isinstance(target, ast.Attribute)]
            found |= {target for target in targets if target.split(".")[0] in own}
    return found


def test_no_test_imports_a_private_name_of_the_package() -> None:
    found = {
        name_of(path): names
        for path in (ROOT / "tests").rglob("*.py")
        if (names := [name for name in imports_of(path) if re.match(r"captionmill\..*\b_[a-z]", name)])
    }
    assert found == {}


def test_the_tests_of_a_room_lie_in_a_folder_of_its_name() -> None:
    rooms = {room_of(path) for path in CODE} | {"terminal", "docs", "benchmarks"}
    folders = {path.parent.relative_to(ROOT / "tests").as_posix() for path in (ROOT / "tests").rglob("test_*.py")}
    assert folders - rooms == {"."}
    assert rooms - folders == {"", "pipeline/terminal", "stages/portable"}  # tested in terminal, pipeline/test_export
    crowded = [folder for folder in TOP if len(list((ROOT / "tests" / folder).glob("test_*.py"))) > MOST_MODULES]
    assert crowded == []


def test_few_names_of_the_package_are_patched() -> None:
    found: set[str] = set()
    for path in (ROOT / "tests").rglob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for program in (tree, *programs_in(tree)):
            found |= patched_names(program)
    assert found == PATCHED
    assert len(PATCHED) <= MOST_PATCHED
