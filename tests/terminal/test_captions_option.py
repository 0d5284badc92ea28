"""`--captions` in every command that takes references: several files, named columns, and one value per other option."""

import csv
import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import click
import pytest
from builders import TINY_TRAINING, make_rows, make_store, make_task
from click.testing import CliRunner, Result

from captionmill.cli import main
from captionmill.data.captions.files import CaptionFiles
from captionmill.data.models.bundle import read_bundle
from captionmill.pipeline.plan.command_line import command_line
from captionmill.pipeline.plan.jobs import EvaluateJob, TrainJob
from captionmill.pipeline.plan.read import read_plan
from captionmill.pipeline.plan.run import run_pipeline
from captionmill.stages.scoring.evaluate import evaluate
from captionmill.stages.training.train import train

SETTINGS = ("--min-count=1", "--embed-dim=8", "--hidden-dim=12", "--max-epochs=1", "--beam-size=1", "--device=cpu")


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments], catch_exceptions=False)


def split_file(path: Path) -> tuple[Path, Path]:
    """The captions file cut in two, the second as JSON lines with fields of other names."""
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    first, second = path.with_name("first.csv"), path.with_name("second.jsonl")
    with first.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerows([("file", "caption", "split"), *(row.values() for row in rows[:12])])
    second.write_text("".join(json.dumps({"file": r.pop("image"), **r}) + "\n" for r in rows[12:]))
    return first, second


def commands(group: click.Group, words: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from commands(command, (*words, name))
        else:
            yield (*words, name), command


def test_an_option_of_one_value_is_refused_the_second_time_by_every_command() -> None:
    checked = 0
    for words, command in commands(main):
        for parameter in command.params:
            if isinstance(parameter, click.Option) and not parameter.multiple:
                value = [] if parameter.is_flag else ["1"]
                names = [parameter.opts[-1], (parameter.secondary_opts or parameter.opts)[-1]]
                given = [word for name in names for word in (name, *value)]
                result = run(*words, *given)
                assert result.exit_code == 2, (words, parameter.name)
                line = json.loads(result.stderr)["message"] if result.stderr.startswith("{") else result.stderr
                assert "is given 2 times; give it once" in line, (words, parameter.name)
                checked += 1
    assert checked > 150


def test_an_option_of_several_values_and_other_mistakes_are_as_before(tmp_path: Path) -> None:
    result = run("evaluate", tmp_path / "f.h5", "--model", "a", "--model", "b", "--bogus")
    assert result.stderr.endswith("Error: No such option '--bogus'.\n")


def test_train_evaluate_leaks_explain_and_report_read_several_files_with_named_columns(tmp_path: Path) -> None:
    features, captions = make_task(tmp_path)
    first, second = split_file(captions)
    given = ("--captions", first, "--captions", second, "--image-column", "file")
    model = tmp_path / "model"
    result = run("train", features, *given, "--output", model, *SETTINGS)
    assert result.exit_code == 0, result.output
    assert {name: len(keys) for name, keys in read_bundle(model).splits.items()} == {"train": 8, "val": 2, "test": 0}
    data = json.loads((model / "config.json").read_text())["data"]
    assert data["captions"] == [str(first), str(second)]
    assert data["image_column"] == "file"
    (tmp_path / "list.txt").write_text("00.jpg\n09.jpg\n")
    result = run("evaluate", features, "--model", model, *given, "--list", tmp_path / "list.txt", "--device", "cpu")
    assert result.exit_code == 0, result.output
    result = run("leaks", features, *given, "--device", "cpu")
    assert result.exit_code == 0, result.output
    result = run("explain", "09.jpg", "--model", model, "--features", features, *given, "--device", "cpu")
    assert "(09.jpg in first.csv, second.jsonl)" in result.output
    result = run("report", model, *given, "--output", tmp_path / "report.html")
    assert result.exit_code == 0, result.output


def test_the_python_api_takes_one_path_or_several(tmp_path: Path) -> None:
    features, captions = make_task(tmp_path)
    more = tmp_path / "more.csv"
    more.write_text("image,caption,split\n00.jpg,one more,train\n")
    config = replace(TINY_TRAINING, max_epochs=1)
    train(features, [captions, str(more)], tmp_path / "two", config)
    assert {"one", "more", "dog"} <= {*read_bundle(tmp_path / "two").vocabulary.words}
    evaluation = evaluate(features, tmp_path / "two", (captions, more), image_list=make_list(tmp_path))
    assert evaluation.references["00.jpg"] == ("a red dog", "there is a red dog", "one more")
    assert replace(CaptionFiles(str(captions)), image_column="file") == CaptionFiles((captions,), "file")


def make_list(folder: Path) -> Path:
    path = folder / "list.txt"
    path.write_text("00.jpg\n01.jpg\n")
    return path


def test_half_a_surrogate_pair_in_json_ends_neither_train_nor_evaluate(tmp_path: Path) -> None:
    keys = [f"{number}.jpg" for number in range(6)]
    make_store(tmp_path / "f.h5", keys, make_rows(6))
    path = tmp_path / "c.jsonl"
    splits = ("train", "train", "val", "val", "test", "test")
    lines = [
        {"image": key, "caption": "a dog \ud83d runs", "split": split} for key, split in zip(keys, splits, strict=True)
    ]
    path.write_text("\n".join(map(json.dumps, lines)))
    assert "\\ud83d" in path.read_text()
    model, scores = tmp_path / "m", tmp_path / "s.json"
    assert run("train", tmp_path / "f.h5", "--captions", path, "--output", model, *SETTINGS).exit_code == 0
    words = ("--model", model, "--captions", path, "--output", scores, "--device", "cpu", "--against", model)
    assert run("evaluate", tmp_path / "f.h5", *words, "--per-image", tmp_path / "p.csv").exit_code == 0
    assert json.loads(scores.read_text())["captions"]["4.jpg"]["references"] == ["a dog \ufffd runs"]


def test_wrong_captions_are_named_before_torch_is_imported(tmp_path: Path) -> None:
    (tmp_path / "c.csv").write_text("file,caption\na.jpg,a dog\n")
    program = """
import sys
from click.testing import CliRunner
from captionmill.cli import main
for words in (["train", "f.h5", "--output", "m"], ["evaluate", "f.h5", "--model", "m"], ["leaks", "f.h5"],
              ["explain", "a.jpg", "--model", "m"], ["report"]):
    result = CliRunner().invoke(main, [*words, "--captions", "c.csv", "--image-column", "bild"])
    print(result.exit_code, result.stderr.strip(), "torch" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=True)
    line = "1 Error: c.csv: has no column 'bild'; its columns are file, caption False\n"
    assert done.stdout == line * 5


def test_columns_without_captions_are_wrong_usage(tmp_path: Path) -> None:
    result = run("leaks", tmp_path / "f.h5", "--caption-column", "text")
    assert (result.exit_code, result.stderr.splitlines()[-1]) == (
        2,
        "Error: --image-column and --caption-column need --captions",
    )


PLAN = """
[train]
features = "features.h5"
captions = ["first.csv", "second.jsonl"]
image_column = "file"
min_count = 1
embed_dim = 8
hidden_dim = 12
max_epochs = 1

[evaluate]
list = "list.txt"
"""


def test_a_pipeline_takes_a_list_of_captions_and_sees_each_of_them_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    _, captions = make_task(tmp_path)
    first, second = split_file(captions)
    make_list(tmp_path)
    plan = tmp_path / "pipeline.toml"
    plan.write_text(PLAN)
    training, scoring = (task.job for task in read_plan(plan).tasks)
    assert isinstance(training, TrainJob)
    assert isinstance(scoring, EvaluateJob)
    assert training.captions == scoring.captions == CaptionFiles((first, second), "file")
    given = "--captions first.csv --captions second.jsonl --image-column file"
    assert f"features.h5 {given} --output model" in command_line(training)
    assert [outcome.task.id for outcome in run_pipeline(plan) if outcome.summary] == ["train", "evaluate"]
    assert [outcome.task.id for outcome in run_pipeline(plan) if outcome.summary] == []
    second.write_text(second.read_text().replace("red", "pink"))
    assert [outcome.task.id for outcome in run_pipeline(plan) if outcome.summary] == ["train", "evaluate"]


def test_a_pipeline_takes_a_folder_of_text_files_and_sees_one_change(tmp_path: Path) -> None:
    make_task(tmp_path)
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(10):
        (folder / f"{number:02d}.jpg").touch()
        (folder / f"{number:02d}.txt").write_text("a red dog\na dog")
    plan = tmp_path / "pipeline.toml"
    table = PLAN.partition("[evaluate]")[0].replace('["first.csv", "second.jsonl"]', '"photos"')
    plan.write_text(table.replace('image_column = "file"\n', ""))
    assert [outcome.task.id for outcome in run_pipeline(plan) if outcome.summary] == ["train"]
    assert [outcome.task.id for outcome in run_pipeline(plan) if outcome.summary] == []
    (folder / "03.txt").write_text("a cat")
    assert [outcome.task.id for outcome in run_pipeline(plan) if outcome.summary] == ["train"]
