"""An exported model says without captionmill, and without torch, what it says in captionmill."""

import csv
import importlib.util
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from builders import draw_photos
from click.testing import CliRunner, Result

from captionmill.cli import main

HOW = {"red": "", "blue": "so ", "green": "so very ", "yellow": "very very very "}
DOCS = Path(__file__).parents[2] / "docs" / "export.md"
needs_onnx = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("onnx", "onnxscript", "onnxruntime")),
    reason="captionmill[onnx] is not installed",
)


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments], catch_exceptions=False)


def fail(*arguments: object) -> str:
    result = run(*arguments)
    assert result.exit_code == 1, result.output
    return result.stderr.strip().splitlines()[-1]


@pytest.fixture(scope="session")
def trained(thin_weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with photos and a model that captions them by their colour."""
    folder = tmp_path_factory.mktemp("trained")
    draw_photos(folder / "photos")
    (folder / "photos" / "broken.jpg").unlink()
    with (folder / "captions.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["image", "caption", "split"])
        for image in sorted((folder / "photos").rglob("*_*.*")):
            colour, number = image.stem.split("_")
            split = "train" if int(number) < 4 else "val"
            key = image.relative_to(folder / "photos").as_posix()
            writer.writerow([key, f"the {colour} picture's {HOW[colour]}{colour}", split])
    backbone = ["--backbone", "scenes-resnet14", "--preprocess", "squash", "--image-size", "32"]
    run("extract", folder / "photos", "--output", folder / "f.h5", *backbone, "--weights", thin_weights)
    small = ["--min-count", 1, "--embed-dim", 16, "--hidden-dim", 32, "--dropout", 0, "--feature-dropout", 0]
    small += ["--learning-rate", 0.02, "--batch-size", 4, "--max-epochs", 40, "--patience", 40]
    result = run("train", folder / "f.h5", "--captions", folder / "captions.csv", "--output", folder / "model", *small)
    assert result.exit_code == 0, result.output
    return folder


@pytest.fixture(scope="session")
def exported(trained: Path) -> Path:
    """The model of `trained`, exported; no test changes it."""
    result = run("export", trained / "model", "--output", trained / "exported")
    assert result.exit_code == 0, result.output
    files = "decoder_start.onnx, decoder_step.onnx, encoder.onnx, vocabulary.json, manifest.json"
    assert result.stdout.startswith(f"{trained / 'exported'}: {files}, ")
    return trained / "exported"


@needs_onnx
def test_the_documented_loop_says_what_captionmill_says(trained: Path, exported: Path, tmp_path: Path) -> None:
    (program,) = re.findall(r"```python\n(.*?)```", DOCS.read_text(encoding="utf-8"), re.DOTALL)
    program += "assert not {'torch', 'captionmill'} & set(sys.modules)\n"
    (tmp_path / "greedy.py").write_text(program, encoding="utf-8")
    run("caption", trained / "photos", "--model", trained / "model", "--output", tmp_path / "c.csv", "--beam-size", 1)
    with (tmp_path / "c.csv").open(encoding="utf-8-sig", newline="") as file:
        expected = {row["path"]: row["caption"] for row in csv.DictReader(file)}
    command = [sys.executable, str(tmp_path / "greedy.py"), str(exported), *sorted(expected)]
    done = subprocess.run(command, cwd=trained / "photos", capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert dict(line.split("\t") for line in done.stdout.splitlines()) == expected
    assert expected["more/green_5.JPG"] == "the green picture's so very green"
    assert "very very" not in expected["more/yellow_3.png"]
    assert str(Path(__file__).parents[2]).encode() not in (exported / "decoder_step.onnx").read_bytes()


@needs_onnx
def test_the_manifest_describes_the_files(exported: Path) -> None:
    assert sorted(path.name for path in exported.iterdir()) == [
        "decoder_start.onnx",
        "decoder_step.onnx",
        "encoder.onnx",
        "manifest.json",
        "vocabulary.json",
    ]
    manifest: dict[str, Any] = json.loads((exported / "manifest.json").read_text())
    words = json.loads((exported / "vocabulary.json").read_text())
    assert manifest["special"] == {"pad": 0, "start": 1, "end": 2, "unk": 3}
    assert words[:4] == ["<pad>", "<start>", "<end>", "<unk>"]
    assert manifest["vocabulary"] == {"file": "vocabulary.json", "size": len(words)}
    assert manifest["file_format"] == "onnx"
    rule = {"never_chosen": [0, 1, 3], "not_first": [2], "max_length": 20, "repeat_words": False, "doubled": []}
    assert manifest["search"] == rule
    assert f'"search": {json.dumps(manifest["search"])}\n' in DOCS.read_text(encoding="utf-8")
    assert manifest["features"]["backbone"] == "scenes-resnet14"
    state = [{"name": name, "dtype": "float32", "shape": [1, "batch", 32]} for name in ("hidden", "cell")]
    step = manifest["networks"]["decoder_step"]
    assert step["inputs"] == [{"name": "words", "dtype": "int64", "shape": ["batch"]}, *state]
    assert step["outputs"][0] == {"name": "logits", "dtype": "float32", "shape": ["batch", len(words)]}
    assert [port["name"] for port in step["outputs"]] == ["logits", "next_hidden", "next_cell"]
    assert manifest["networks"]["decoder_start"]["outputs"] == state


@needs_onnx
def test_an_export_is_replaced_on_request_alone_and_whole(trained: Path, exported: Path, tmp_path: Path) -> None:
    output = shutil.copytree(exported, tmp_path / "exported")
    (output / "decoder_step.pt").touch()  # as the version before wrote it with --format torchscript
    arguments = ["export", trained / "model", "--output", output]
    before = {path.name: path.read_bytes() for path in output.iterdir()}
    (tmp_path / ".exported.partial").mkdir()  # as a kill leaves it that comes when all is in place
    assert fail(*arguments) == (
        f"Error: {output}: holds an export already; pass --overwrite to replace it, or another --output"
    )
    assert not list(tmp_path.glob(".*"))
    shutil.copytree(trained / "model", tmp_path / "model")
    bundle = tmp_path / "model" / "bundle.json"
    bundle.write_text(re.sub(r'"weights": "[^"]*"', '"weights": "gone.pth"', bundle.read_text(), count=1))
    arguments[1] = tmp_path / "model"
    assert "pass that file as --weights" in fail(*arguments, "--overwrite")
    assert {path.name: path.read_bytes() for path in output.iterdir()} == before
    assert run(*arguments, "--overwrite", "--no-encoder").exit_code == 0
    assert {path.name for path in output.iterdir()} == {*before} - {"encoder.onnx", "decoder_step.pt"}
    assert not list(tmp_path.glob(".*"))


@needs_onnx
def test_an_export_killed_while_it_took_its_place_is_made_by_the_same_command(
    trained: Path, exported: Path, tmp_path: Path
) -> None:
    output = shutil.copytree(exported, tmp_path / "out")
    arguments = ["export", trained / "model", "--output", output, "--no-encoder"]
    left = tmp_path / ".out.partial"
    left.mkdir()
    (output / "manifest.json").rename(left / "manifest.json")
    (output / "mine.txt").touch()
    assert "holds other files" in fail(*arguments)
    (output / "mine.txt").unlink()
    assert run(*arguments).exit_code == 0
    assert (output / "manifest.json").exists()
    assert not left.exists()


@needs_onnx
def test_an_export_killed_twice_or_stopped_while_it_took_its_place_is_made_by_the_same_command(
    trained: Path, exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = shutil.copytree(exported, tmp_path / "out")
    left = tmp_path / ".out.partial"
    left.mkdir()
    (output / "manifest.json").rename(left / "manifest.json")  # what a kill leaves
    arguments = ["export", trained / "model", "--output", output, "--no-encoder"]
    replace_path, mkdir = Path.replace, Path.mkdir

    def stop_at_the_manifest(path: Path, target: Path) -> None:
        if target == output / "manifest.json":
            raise KeyboardInterrupt
        replace_path(path, target)

    def stop_at_the_staging(path: Path, *arguments: Any, **options: Any) -> None:
        if path == left:
            raise KeyboardInterrupt
        mkdir(path, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "mkdir", stop_at_the_staging)
        assert run(*arguments).exit_code == 1
    assert not left.exists()
    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", stop_at_the_manifest)
        assert run(*arguments).exit_code == 1
    assert run(*arguments).exit_code == 0
    assert (output / "manifest.json").exists()


@needs_onnx
def test_a_folder_of_other_things_is_left_alone(trained: Path) -> None:
    message = fail("export", trained / "model", "--output", trained / "model")
    assert message == f"Error: {trained / 'model'}: holds other files; name another folder as --output"


def test_missing_packages_are_one_line(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name.startswith("onnx") else found(name))
    message = fail("export", trained / "model", "--output", tmp_path / "exported")
    assert message == ("Error: an export needs onnx, onnxscript, onnxruntime; run: pip install 'captionmill[onnx]'")
    assert not (tmp_path / "exported").exists()
