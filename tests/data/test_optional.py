"""A package that is missing is one line, with the command that installs it; the extras that it names exist."""

import ast
import configparser
import json
import sys
from pathlib import Path

import pytest

from captionmill.data.errors import InputError
from captionmill.data.optional import install_command, missing_line, missing_packages, require
from captionmill.data.urls import open_filesystem

ROOT = Path(__file__).parents[2]


def test_a_module_that_is_here_is_imported() -> None:
    assert require("json", extra="parquet", needed_by="Parquet") is json


@pytest.mark.parametrize("name", ["no_such_package", "no_such_package.part"])
def test_a_missing_package_is_one_line(name: str) -> None:
    with pytest.raises(InputError) as error:
        require(name, extra="parquet", needed_by="Parquet")
    assert str(error.value) == "Parquet needs the package no_such_package; run: pip install 'captionmill[parquet]'"


def test_missing_packages_are_found_without_an_import() -> None:
    assert missing_packages("json", "no_such_package", "this") == ["no_such_package"]
    assert "this" not in sys.modules
    line = missing_line(["one", "two"], extra="onnx", needed_by="onnx")
    assert line == "onnx needs one, two; run: pip install 'captionmill[onnx]'"


def test_a_url_names_the_package_of_its_protocol(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("fsspec")
    monkeypatch.setitem(sys.modules, "s3fs", None)
    with pytest.raises(InputError) as error:
        open_filesystem("s3://bucket/photos")
    assert str(error.value) == (
        "s3://bucket/photos: needs the package s3fs; run: pip install 'captionmill[remote]' or pip install s3fs"
    )
    monkeypatch.setitem(sys.modules, "fsspec", None)
    with pytest.raises(InputError, match=r"s3://bucket/photos: needs the package fsspec; run: pip install '.*remote"):
        open_filesystem("s3://bucket/photos")


def test_every_extra_that_a_message_names_exists() -> None:
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg", encoding="utf-8")
    named = set()
    for path in (path for folder in ("data", "stages", "pipeline") for path in (ROOT / folder).rglob("*.py")):
        text = path.read_text(encoding="utf-8")
        for node in ast.walk(ast.parse(text)) if "extra" in text or install_command.__name__ in text else ():
            if isinstance(node, ast.Call):
                values = [keyword.value for keyword in node.keywords if keyword.arg == "extra"]
                values += node.args if ast.unparse(node.func) == install_command.__name__ else []
                named |= {value.value for value in values if isinstance(value, ast.Constant)}
    assert named == {"dask", "heif", "java", "metadata", "onnx", "parquet", "ray", "remote", "tensorboard", "tiff"}
    assert named <= set(config["options.extras_require"])
