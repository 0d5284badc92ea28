"""The Dockerfile, as far as it can be checked without Docker; docs/how-to/containers.md says when it was built."""

import configparser
import re
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath

import pytest

ROOT = Path(__file__).parents[1]
INSTRUCTIONS = [
    line.split(maxsplit=1)
    for line in (ROOT / "Dockerfile").read_text(encoding="utf-8").replace("\\\n", " ").splitlines()
    if line.strip() and not line.startswith("#")
]
IGNORED = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()


def is_sent(path: str) -> bool:
    """Whether a file of this folder gets into the build: the last pattern that fits it or a folder above it decides."""
    sent = True
    names = PurePosixPath(path)
    for pattern in IGNORED:
        wanted = pattern.removeprefix("!")
        tops = [str(names), *map(str, names.parents)][:-1]
        if wanted.startswith("**/"):
            fits = any(fnmatch(name, wanted[3:]) for name in names.parts)
        else:  # a star stays in its folder
            fits = any(top.count("/") == wanted.count("/") and fnmatch(top, wanted) for top in tops)
        if fits and not pattern.startswith("#"):
            sent = pattern.startswith("!")
    return sent


def test_all_that_the_package_is_made_from_is_sent_to_the_build() -> None:
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg", encoding="utf-8")
    about = config["metadata"]
    needed = ["setup.cfg", "pyproject.toml", about["long_description"].removeprefix("file: "), about["license_files"]]
    for package in config["options"]["packages"].split():
        folder = ROOT.joinpath(*package.split(".")[1:])
        needed += [path.relative_to(ROOT).as_posix() for path in folder.glob("*.py")]
        data = config["options.package_data"].get(package, "").split()
        needed += [path.relative_to(ROOT).as_posix() for pattern in data for path in folder.glob(pattern)]
    assert {"cli.py", "py.typed", "data/files.py"} < set(needed)
    assert [path for path in needed if not is_sent(path)] == []


@pytest.mark.parametrize(
    "path",
    [
        ".git/config",
        ".venv/lib/python3.12/site-packages/torch/__init__.py",
        "photos/holiday.jpg",
        "features.h5",
        "model/config.json",
        "demo/page.html",
        "tests/conftest.py",
        "data/images/__pycache__/read.cpython-312.pyc",
    ],
)
def test_what_lies_beside_the_package_is_not_sent_to_the_build(path: str) -> None:
    assert not is_sent(path)


def test_the_container_runs_as_a_user_and_keeps_what_it_fetches_in_one_folder() -> None:
    last = INSTRUCTIONS[max(number for number, (name, _) in enumerate(INSTRUCTIONS) if name == "FROM") :]
    assert [value for name, value in last if name == "USER"] == ["captionmill"]
    [environment] = [dict(word.split("=", 1) for word in value.split()) for name, value in last if name == "ENV"]
    assert {name for name, value in environment.items() if PurePosixPath(value).is_relative_to("/cache")} == {
        "HOME",
        "TORCH_HOME",
        "CAPTIONMILL_CACHE",
        "MPLCONFIGDIR",
    }
    page = (ROOT / "docs" / "how-to" / "containers.md").read_text(encoding="utf-8")
    assert '-v "$HOME/.cache:/cache"' in page


def test_the_container_has_extras_that_exist_and_torch_before_the_source() -> None:
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg", encoding="utf-8")
    lines = [" ".join(words) for words in INSTRUCTIONS]
    [extras] = re.findall(r"'/source\[(.*)\]'", "\n".join(lines))
    assert set(extras.split(",")) <= set(config["options.extras_require"])
    torch, source = [next(i for i, line in enumerate(lines) if part in line) for part in (" torch ", "COPY . /source")]
    assert torch < source  # else each change of the source fetches torch again
